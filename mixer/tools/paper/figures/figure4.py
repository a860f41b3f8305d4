# SPDX-License-Identifier: Apache-2.0
"""Figure 4: what a fixed permutation of pixels costs, over training.

  python -m mixer paper figure 4

Draws results/permutations.json, which `python -m benchmarks.permutations`
writes: few-shot accuracy of a Mixer and of a ResNet on original images, on
images whose patches are permuted and the pixels within them, and on images all
of whose pixels are. Lines are means over seeds, bands go from the lowest to the
highest. The paper's own curves, of JFT-300M, are published as a picture alone.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes

from mixer.data import preprocess
from mixer.tools.paper.figures import charts

FILE = "permutations.json"
COMMAND = "python -m benchmarks.permutations"
RESULT = "eval/fewshot/few/5shot"
MODELS = {"mixer": "Mixer", "resnet": "ResNet"}
# Name of an input -> what it is, colour, line, op.
INPUTS = {
  "original": ("original", charts.BLUE, "-", ""),
  "patches": (
    "patches permuted,\nand pixels within them",
    charts.ORANGE,
    (0, (4, 2)),
    " | permute_patches(16)",
  ),
  "pixels": (
    "all pixels permuted",
    charts.GREEN,
    "-",
    " | permute_pixels",
  ),
}
_EXAMPLE = 64  # px of the picture that shows the inputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
  charts.add_results(parser)


def draw(
  results: Path = charts.RESULTS, out: str | Path = "figure4.svg"
) -> str:
  """Draws the figure; see the flags.

  Raises:
    UserError: there are no results, or the files cannot be written.
  """
  content = charts.read_results(
    results / FILE,
    COMMAND,
    about={"model": MODELS, "input": INPUTS},
    config=("model.num_classes",),
    results=(RESULT,),
  )
  figure = charts.new_figure(7.4, 5.2)
  upper, lower = figure.subfigures(2, 1, height_ratios=(1.9, 3.3))
  for axes, kind in zip(upper.subplots(1, 3), INPUTS, strict=True):
    draw_example(axes, kind)
  panels = lower.subplots(1, 2, sharex=True, sharey=True)
  ends = {}
  for axes, model in zip(panels, MODELS, strict=True):
    curves = {c["input"]: c for c in content["curves"] if c["model"] == model}
    ends[axes] = draw_curves(axes, curves)
    axes.set_title(MODELS[model], loc="left", fontsize=11, weight="bold")
    axes.set_xlabel("training steps", fontsize=9)
  panels[0].set_ylim(bottom=0)
  for axes, labels in ends.items():
    charts.label_points(axes, labels)
  panels[0].set_ylabel("linear 5-shot accuracy, %", fontsize=9)
  seeds = len(content["curves"][0]["runs"])
  figure.supxlabel(
    f"Photographs, not JFT-300M; means of {seeds} seeds, bands from the lowest "
    f"to the highest. {charts.made(content)}",
    fontsize=7,
    color=charts.GREY,
  )
  return f"Figure 4: {charts.save(figure, out)}"


def draw_example(axes: Axes, kind: str) -> None:
  """A photograph as a model sees it, with the name of the input beside it."""
  from sklearn.datasets import load_sample_image

  said, color, _, op = INPUTS[kind]
  grey = cv2.cvtColor(load_sample_image("china.jpg"), cv2.COLOR_RGB2GRAY)
  transform = preprocess.parse(
    f"central_crop(420) | resize({_EXAMPLE}, 'area'){op}"
  )
  image = np.repeat(grey[..., None], 3, axis=-1)
  axes.imshow(
    transform(image, np.random.default_rng(0)), interpolation="nearest"
  )
  axes.set_xticks([])
  axes.set_yticks([])
  for spine in axes.spines.values():
    spine.set_color(color)
    spine.set_linewidth(2)
  axes.set_title(said, fontsize=9, color=color, y=1.02, va="bottom")


def draw_curves(axes: Axes, curves: dict[str, dict]) -> list[tuple]:
  """Draws a line for each input; returns the labels for their ends."""
  charts.style(axes)
  ends = []
  for kind, (_, color, line, _) in INPUTS.items():
    steps = curves[kind]["runs"][0]["steps"]
    shares = 100 * charts.runs_of(curves[kind], RESULT)  # seeds evaluations
    mean = shares.mean(axis=0)
    axes.fill_between(
      steps, shares.min(0), shares.max(0), color=color, alpha=0.15, linewidth=0
    )
    axes.plot(steps, mean, color=color, linestyle=line, linewidth=1.8)
    ends.append((steps[-1], mean[-1], f"{kind} {mean[-1]:.0f}", color))
  chance = 100 / curves["original"]["config"]["model.num_classes"]
  axes.axhline(chance, color="0.6", linewidth=0.8, linestyle=":")
  axes.set_xlim(0, 1.02 * steps[-1])
  axes.annotate(
    "chance",
    (0, chance),
    xytext=(2, 2),
    textcoords="offset points",
    fontsize=8,
    color=charts.GREY,
  )
  return ends
