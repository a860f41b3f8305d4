# SPDX-License-Identifier: Apache-2.0
"""Figures of the experiments that are repeated here, from files of results.

  python -m mixer paper figure 2
  python -m mixer paper figure 4

Figure 2: on the left the paper's table 2, ImageNet accuracy against the cost of
pre-training. Next to it accuracy against the number of training images, from
results/data_size.json, which `python -m benchmarks.data_size` writes: models
trained on 3, 10, 30 and 100 % of the images, all for as many steps, and taken
where their validation accuracy was best, which is the paper's early stopping.
The middle panel is linear few-shot accuracy, the paper's measure, the right one
the accuracy of the model itself. Lines are means over seeds, bars go from the
lowest to the highest.

Figure 4: few-shot accuracy of a Mixer and a ResNet over training, from
results/permutations.json, which `python -m benchmarks.permutations` writes: on
original images, on images whose patches are permuted and the pixels within
them, and on images all of whose pixels are permuted. Bands go from the lowest
seed to the highest.

The paper published its own curves, of JFT-300M, only as pictures.
"""

from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes

from mixer.data import preprocess
from mixer.errors import UserError
from mixer.tools.paper.figures import charts, pareto
from mixer.tools.paper.results_store import read_json
from mixer.training import plots

DATA_SIZE = "data_size.json"
PERMUTATIONS = "permutations.json"
FEWSHOT = "eval/fewshot/few/5shot"
TEST = "eval/test/accuracy"
STOPPED_BY = "eval/val/accuracy"
# Name in the results -> name in the figure, colour, marker, line.
SIZE_MODELS = {
  "mixer-small": ("small Mixer", plots.BLUE, "o", (0, (4, 2))),
  "mixer-large": ("large Mixer", plots.BLUE, "o", "-"),
  "vit": ("ViT", plots.VERMILION, "s", "-"),
  "resnet": ("ResNet", plots.GREEN, "D", "-"),
}
PERMUTED_MODELS = {"mixer": "Mixer", "resnet": "ResNet"}
# Name of an input -> title, colour, line, op.
INPUTS = {
  "original": ("original", plots.BLUE, "-", ""),
  "patches": (
    "patches permuted,\nand pixels within them",
    plots.VERMILION,
    (0, (4, 2)),
    " | permute_patches(16)",
  ),
  "pixels": ("all pixels permuted", plots.GREEN, "-", " | permute_pixels"),
}
_EXAMPLE = 64  # px of the picture that shows the inputs


def draw_figure2(results: Path, out: str | Path) -> str:
  """Draws figure 2 and returns the files' names, for a sentence."""
  content = _read(results / DATA_SIZE, "benchmarks.data_size")
  curves = content["curves"]
  largest = max(c["config"]["data.examples"] for c in curves)
  note = (
    "Left: the paper, table 2; circles: Mixer, squares: ViT, diamonds: BiT; "
    "filled: JFT-300M or weak labels, open: ImageNet-21k.\nMiddle and right: "
    f"share of {largest:,} tiles of photographs, not of JFT-300M; "
    f"{curves[0]['config']['total_steps']:,} steps each; means of "
    f"{len(curves[0]['runs'])} seeds, bars from the lowest to the highest. "
    f"{_origin(content)}"
  )
  figure = plots.new_figure(12.2, 4.2)
  left, *others = plots.make_axes(figure, 1, 3, width_ratios=(1.25, 1, 1))
  pareto.draw_table2(left)
  left.set_title("the paper: ImageNet top-1, %", loc="left", fontsize=10)
  titles = {FEWSHOT: "linear 5-shot accuracy, %", TEST: "test accuracy, %"}
  for axes, (result, title) in zip(others, titles.items(), strict=True):
    _draw_sizes(axes, curves, result)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("share of the training images", fontsize=9)
  others[0].sharex(others[1])
  return f"Figure 2: {charts.save(figure, out, note=note)}"


def stopped(curve: dict, result: str) -> np.ndarray:
  """Returns a result of each run at its best validation accuracy, [seeds]."""
  return np.array(
    [run[result][int(np.argmax(run[STOPPED_BY]))] for run in curve["runs"]],
    float,
  )


def _draw_sizes(axes: Axes, curves: list[dict], result: str) -> None:
  """Draws a result over the share of the images, a line for each model."""
  ends = []
  for model, (name, color, marker, line) in SIZE_MODELS.items():
    by_share = {c["share"]: c for c in curves if c["model"] == model}
    shares = sorted(by_share)
    # [shares, seeds]
    values = 100 * np.array([stopped(by_share[x], result) for x in shares])
    mean = values.mean(axis=1)
    # Rounding can put a mean above equal values.
    around = np.abs([values.min(1) - mean, values.max(1) - mean])
    style = {"color": color, "marker": marker, "linestyle": line}
    style |= {"markersize": 4.5, "linewidth": 1.6, "elinewidth": 0.8}
    axes.errorbar(shares, mean, yerr=around, **style)
    ends.append((shares[-1], mean[-1], name, color))
  axes.set_xscale("log")
  axes.set_xticks(shares, [f"{share} %" for share in shares])
  axes.minorticks_off()
  axes.set_xlim(0.85 * shares[0], 1.1 * shares[-1])
  axes.set_ylim(bottom=0)
  charts.label_ends(axes, ends)


def draw_figure4(results: Path, out: str | Path) -> str:
  """Draws figure 4 and returns the files' names, for a sentence."""
  content = _read(results / PERMUTATIONS, "benchmarks.permutations")
  curves = {(c["model"], c["input"]): c for c in content["curves"]}
  one = curves["mixer", "original"]
  chance = 100 / one["config"]["model.num_classes"]
  figure = plots.new_figure(7.4, 5.2)
  upper, lower = figure.subfigures(2, 1, height_ratios=(1.9, 3.3))
  for axes, kind in zip(upper.subplots(1, 3), INPUTS, strict=True):
    _draw_example(axes, kind)
  panels = plots.make_axes(lower, 1, 2, sharex=True, sharey=True)
  ends = {}
  for axes, (model, name) in zip(panels, PERMUTED_MODELS.items(), strict=True):
    ends[axes] = _draw_permuted(axes, {k: curves[model, k] for k in INPUTS})
    axes.axhline(chance, color="0.6", linewidth=0.8, linestyle=":")
    axes.annotate("chance", (0, chance), (2, 2), textcoords="offset points",
                  fontsize=8, color=plots.GREY)  # fmt: skip
    axes.set_title(name, loc="left", fontsize=11, weight="bold")
    axes.set_xlabel("training steps", fontsize=9)
  panels[0].set_ylim(bottom=0)
  for axes, labels in ends.items():
    charts.label_ends(axes, labels)
  panels[0].set_ylabel("linear 5-shot accuracy, %", fontsize=9)
  note = (
    f"Photographs, not JFT-300M; means of {len(one['runs'])} seeds, bands from "
    f"the lowest to the highest. {_origin(content)}"
  )
  return f"Figure 4: {charts.save(figure, out, note=note)}"


def _draw_example(axes: Axes, kind: str) -> None:
  """Draws a photograph as a model sees it, under the name of the input."""
  from sklearn.datasets import load_sample_image

  title, color, _, op = INPUTS[kind]
  grey = cv2.cvtColor(load_sample_image("china.jpg"), cv2.COLOR_RGB2GRAY)
  ops = f"central_crop(420) | resize({_EXAMPLE}, 'area'){op}"
  image = np.repeat(grey[..., None], 3, axis=-1)
  image = preprocess.parse(ops)(image, np.random.default_rng(0))
  axes.imshow(image, interpolation="nearest")
  axes.set_xticks([])
  axes.set_yticks([])
  axes.spines[:].set(color=color, linewidth=2)
  axes.set_title(title, fontsize=9, color=color, y=1.02, va="bottom")


def _draw_permuted(axes: Axes, curves: dict) -> list[charts.Point]:
  """Draws a line for each input; returns the labels of their ends."""
  ends = []
  for kind, curve in curves.items():
    _, color, line, _ = INPUTS[kind]
    steps = curve["runs"][0]["steps"]
    accuracies = 100 * np.array([run[FEWSHOT] for run in curve["runs"]])
    low, high = accuracies.min(0), accuracies.max(0)
    mean = accuracies.mean(axis=0)
    axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(steps, mean, color=color, linestyle=line, linewidth=1.8)
    ends.append((steps[-1], mean[-1], f"{kind} {mean[-1]:.0f}", color))
  axes.set_xlim(0, 1.02 * steps[-1])
  return ends


def _read(file: Path, module: str) -> dict:
  command = f"python -m {module}"
  if not file.is_file():
    raise UserError(
      f"There are no results to draw in {file}. They are made by: {command}"
    )
  return read_json(file, command)


def _origin(content: dict) -> str:
  """Returns date, commit and devices of results, for the foot of a figure."""
  commit = (content["git_commit"] or "no repository")[:7]
  return f"{content['date'][:10]}, commit {commit}, {content['devices']}"
