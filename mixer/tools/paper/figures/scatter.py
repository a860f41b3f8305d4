# SPDX-License-Identifier: Apache-2.0
"""Accuracy against throughput: the paper's table 3, and measured here.

  python -m mixer paper figure throughput

The first panel has the paper's ImageNet accuracy over its images per second
and TPUv3 core, both of table 3. Each further panel is a device that
`python -m benchmarks.throughput` has measured (results/throughput/): the same
models and accuracies, the paper's, over images per second there, all in the
dtype in which most of the models were measured. Filled marks
are pre-trained on JFT-300M, and those of 224 px that no faster model of their
family beats are joined by lines; open ones on ImageNet-21k (large) and ImageNet
(small).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from mixer.tools.paper.figures import charts
from mixer.tools.paper.numbers import TABLE_3, Row
from mixer.tools.paper.results_store import (
  THROUGHPUT,
  THROUGHPUT_COMMAND,
  read_devices,
)

FAMILIES = {
  "Mixer": (charts.BLUE, "o"),
  "ViT": (charts.ORANGE, "s"),
  "BiT": (charts.GREEN, "D"),
}
_MOST_DEVICES = 2  # panels beside the paper's


def add_arguments(parser: argparse.ArgumentParser) -> None:
  charts.add_results(parser)


def draw(
  results: Path = charts.RESULTS, out: str | Path = "throughput.svg"
) -> str:
  """Draws the figure; see the flags.

  Raises:
    UserError: a file of results is damaged, or the figure cannot be written.
  """
  devices = measured(results)
  shown = devices[:_MOST_DEVICES]
  figure = charts.new_figure(4.6 + 3.4 * len(shown), 4.3)
  panels = figure.subplots(1, 1 + len(shown), sharey=True, squeeze=False)[0]
  paper = [(row, row.images_per_second) for row in TABLE_3]
  draw_rows(panels[0], paper)
  panels[0].set_title("the paper: TPUv3", loc="left", fontsize=10)
  panels[0].set_xlabel("images per second and core", fontsize=9)
  panels[0].set_ylabel("ImageNet top-1, % (paper)", fontsize=9)
  for axes, (device, points) in zip(panels[1:], shown, strict=True):
    draw_rows(axes, points)
    axes.set_title(f"here: {device}", loc="left", fontsize=10)
    axes.set_xlabel("images per second", fontsize=9)
  figure.supxlabel(
    "circles: Mixer, squares: ViT, diamonds: BiT; filled: JFT-300M, open: "
    "ImageNet-21k (large), ImageNet (small)",
    fontsize=7.5,
    color=charts.GREY,
  )
  said = f"Accuracy against throughput: {charts.save(figure, out)}"
  if not devices:
    said += (
      f". Nothing is measured here yet ({results / THROUGHPUT}): "
      f"{THROUGHPUT_COMMAND}"
    )
  elif len(devices) > len(shown):
    left_out = ", ".join(device for device, _ in devices[_MOST_DEVICES:])
    said += f". Left out, the slower ones: {left_out}"
  return said


def measured(results: Path) -> list[tuple[str, list[tuple[Row, float]]]]:
  """Rows of the table with what each device does a second, fastest first.

  A device is its name and the dtype in which most models were measured there.
  """
  found = []
  for device in read_devices(results):
    for dtype in device.dtypes[:1]:
      speeds = [
        (row, device.best.get((row.model, row.resolution, dtype)))
        for row in TABLE_3
      ]
      points = [
        (row, best.images_per_second)
        for row, best in speeds
        if best and best.images_per_second
      ]
      if points:
        found.append((f"{device.name}, {dtype}", points))
  return sorted(found, key=lambda item: -max(rate for _, rate in item[1]))


def draw_rows(axes: Axes, points: Sequence[tuple[Row, float]]) -> None:
  """Marks, labels and lines of rows at their throughput."""
  charts.style(axes)
  axes.set_xscale("log")
  axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
  axes.xaxis.set_minor_locator(NullLocator())
  labels = []
  for family, (color, marker) in FAMILIES.items():
    own = [(r, x) for r, x in points if r.model.partition("-")[0] == family]
    line = frontier([(x, r.imagenet) for r, x in own if _is_joined(r)])
    axes.plot(
      [x for x, _ in line],
      [y for _, y in line],
      color=color,
      linewidth=1,
      alpha=0.4,
    )
    for row, rate in own:
      axes.plot(
        rate,
        row.imagenet,
        marker,
        markersize=4 if row.data == "i1k" else 6,
        color=color,
        markerfacecolor=color if row.data == "JFT-300M" else "white",
      )
      is_first = [(rate, row.imagenet)] == line[:1]
      label = _label(row, is_first, points)
      labels.append((rate, row.imagenet, label, color))
  axes.margins(x=0.1, y=0.06)
  # Those that say whose line it is, first.
  charts.place_labels(axes, sorted(labels, key=lambda each: -len(each[2])))


def frontier(points: Sequence[tuple[float, float]]) -> list:
  """Of (rate, accuracy) those that no faster one beats, slowest first."""
  kept = []
  for point in sorted(points, reverse=True):
    if not kept or point[1] > kept[-1][1]:
      kept.append(point)
  return kept[::-1]


def _is_joined(row: Row) -> bool:
  return row.data == "JFT-300M" and row.resolution == 224


def _label(row: Row, is_first: bool, points: Sequence) -> str:
  """The size of a model, and what else it takes to tell rows apart."""
  name = row.model if is_first else row.model.partition("-")[2]
  if row.resolution != 224:
    name += f" {row.resolution} px"
  same = (row.model, row.data, row.resolution)
  if sum((r.model, r.data, r.resolution) == same for r, _ in points) > 1:
    name += f" {row.epochs} epochs"
  return name
