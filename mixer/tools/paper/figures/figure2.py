# SPDX-License-Identifier: Apache-2.0
"""Figure 2, right: accuracy against the number of training images.

  python -m mixer paper figure 2

Draws results/data_size.json, which `python -m benchmarks.data_size` writes:
models trained on 3, 10, 30 and 100 % of the images, all for as many steps, and
judged where their validation accuracy was best, which is the paper's early
stopping. On the left linear few-shot accuracy, the paper's measure, on the
right the accuracy of the model itself. Lines are means over seeds, bars go from
the lowest to the highest. The paper's own curves, of JFT-300M, are published as
a picture alone.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from mixer.tools.paper.figures import charts

FILE = "data_size.json"
COMMAND = "python -m benchmarks.data_size"
PANELS = {
  "eval/fewshot/few/5shot": "linear 5-shot accuracy, %",
  "eval/test/accuracy": "test accuracy, %",
}
STOPPED_BY = "eval/val/accuracy"
# Name of a model -> name in the figure, colour, marker, line.
MODELS = {
  "mixer-small": ("small Mixer", charts.BLUE, "o", (0, (4, 2))),
  "mixer-large": ("large Mixer", charts.BLUE, "o", "-"),
  "vit": ("ViT", charts.ORANGE, "s", "-"),
  "resnet": ("ResNet", charts.GREEN, "D", "-"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  charts.add_results(parser)


def draw(
  results: Path = charts.RESULTS, out: str | Path = "figure2.svg"
) -> str:
  """Draws the figure; see the flags.

  Raises:
    UserError: there are no results, or the files cannot be written.
  """
  content = charts.read_results(
    results / FILE,
    COMMAND,
    about={"model": MODELS},
    numbers=("share",),
    config=("data.examples", "total_steps"),
    results=(*PANELS, STOPPED_BY),
  )
  figure = charts.new_figure(7.4, 3.7)
  panels = figure.subplots(1, 2, sharex=True)
  for axes, (result, said) in zip(panels, PANELS.items(), strict=True):
    draw_models(axes, content["curves"], result)
    axes.set_title(said, loc="left", fontsize=10)
  config = max(
    (curve["config"] for curve in content["curves"]),
    key=lambda config: config["data.examples"],
  )
  seeds = len(content["curves"][0]["runs"])
  figure.supxlabel(
    f"Share of {config['data.examples']:,} tiles of photographs, not of "
    f"JFT-300M; {config['total_steps']:,} steps each; means of {seeds} seeds, "
    f"bars from the lowest to the highest.\n{charts.made(content)}",
    fontsize=7,
    color=charts.GREY,
  )
  return f"Figure 2: {charts.save(figure, out)}"


def draw_models(axes: Axes, curves: list[dict], result: str) -> None:
  """A line a model, over shares of the training images."""
  charts.style(axes)
  ends = []
  for model, (said, color, marker, line) in MODELS.items():
    points = sorted(
      (c for c in curves if c["model"] == model), key=lambda c: c["share"]
    )
    shares = [each["share"] for each in points]
    accuracies = 100 * np.array([stopped(each, result) for each in points])
    mean = accuracies.mean(axis=1)
    # Rounding would make a mean larger than equal values.
    around = np.abs([accuracies.min(1) - mean, accuracies.max(1) - mean])
    axes.errorbar(
      shares,
      mean,
      yerr=around,
      color=color,
      marker=marker,
      markersize=4.5,
      linestyle=line,
      linewidth=1.6,
      elinewidth=0.8,
    )
    ends.append((shares[-1], mean[-1], said, color))
  axes.set_xscale("log")
  axes.set_xticks(shares, [f"{share} %" for share in shares])
  axes.minorticks_off()
  axes.set_xlim(0.85 * shares[0], 1.1 * shares[-1])
  axes.set_ylim(bottom=0)
  charts.label_points(axes, ends)


def stopped(curve: dict, result: str) -> np.ndarray:
  """A result of each run where its validation accuracy was best, [seeds]."""
  return np.array(
    [run[result][int(np.argmax(run[STOPPED_BY]))] for run in curve["runs"]]
  )
