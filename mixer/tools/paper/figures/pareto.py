# SPDX-License-Identifier: Apache-2.0
"""Accuracy against cost: figures 2 (left) and 3 of the paper, and throughput.

  python -m mixer paper figure 3
  python -m mixer paper figure throughput

Figure 3 has the models that the paper pre-trained on JFT-300M and fine-tuned at
224 px, all from table 3: ImageNet accuracy over the cost of pre-training (left)
and over images per second per TPUv3 core (right).

`figure throughput` starts with all of table 3. Each further panel is a device
measured by `python -m benchmarks.throughput` (results/throughput/): the same
models and accuracies, the paper's, over images per second there, in the dtype
in which most models were measured.

Lines join the models of a family that none of the family beats in both respects
(only those of JFT-300M at 224 px).
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from mixer.tools.paper.figures import charts
from mixer.tools.paper.numbers import TABLE_2, TABLE_3, Row
from mixer.tools.paper.results_store import THROUGHPUT_COMMAND, read_devices
from mixer.training import plots

FAMILIES = {
  "Mixer": (plots.BLUE, "o"),
  "ViT": (plots.VERMILION, "s"),
  "BiT": (plots.GREEN, "D"),
}
_OTHERS = "0.35", "^"
_LEGEND = (
  "circles: Mixer, squares: ViT, diamonds: BiT; filled: JFT-300M, open: "
  "ImageNet-21k (large), ImageNet (small)"
)
_COST = "pre-training, thousand TPUv3 core-days"
_SPEED = "images per second per TPUv3 core"
_MAX_DEVICES = 2  # panels besides the paper's

Points = list[tuple[Row, float]]  # rows of a table with their cost or speed


def draw_figure3(out: str | Path) -> str:
  """Draws figure 3 and returns the files' names, for a sentence."""
  rows = [row for row in TABLE_3 if _is_joined(row)]
  figure = plots.new_figure(9.6, 4.6)
  left, right = plots.make_axes(figure, 1, 2, sharey=True)
  draw_points(left, [(r, r.thousand_core_days) for r in rows], is_cost=True)
  draw_points(right, [(r, r.images_per_second) for r in rows])
  for axes, name in (left, _COST), (right, _SPEED):
    axes.set_xlabel(name, fontsize=9)
  left.set_ylabel("ImageNet top-1, %", fontsize=9)
  note = (
    "Paper, table 3: pre-trained on JFT-300M, fine-tuned at 224 px. "
    "Circles: Mixer, squares: ViT, diamonds: BiT."
  )
  return f"Figure 3: {charts.save(figure, out, note=note)}"


def draw_throughput(results: Path, out: str | Path) -> str:
  """Draws accuracy against throughput, the paper's and the measured one.

  Returns:
    The files' names, and devices that are missing or left out, for a sentence.
  """
  devices = rank_devices(results)
  shown, others = devices[:_MAX_DEVICES], devices[_MAX_DEVICES:]
  figure = plots.new_figure(5.4 + 4.4 * len(shown), 5.4)
  left, *panels = plots.make_axes(figure, 1, 1 + len(shown), sharey=True)
  draw_points(left, [(r, r.images_per_second) for r in TABLE_3])
  left.set_title("the paper: TPUv3", loc="left", fontsize=10)
  left.set_xlabel(_SPEED, fontsize=9)
  left.set_ylabel("ImageNet top-1, % (paper)", fontsize=9)
  for axes, (device, points) in zip(panels, shown, strict=True):
    draw_points(axes, points)
    axes.set_title(f"here: {device}", loc="left", fontsize=10)
    axes.set_xlabel("images per second", fontsize=9)
  files = charts.save(figure, out, note=_LEGEND)
  message = f"Accuracy against throughput: {files}"
  if not devices:
    message += f". Nothing is measured here yet: {THROUGHPUT_COMMAND}"
  if others:
    names = ", ".join(device for device, _ in others)
    message += f". Left out, the slower ones: {names}"
  return message


def draw_table2(axes: Axes) -> None:
  """Draws figure 2, left: accuracy against pre-training cost, of table 2.

  The dashed line is the Pareto frontier of all models.
  """
  points = [(row, row.thousand_core_days) for row in TABLE_2]
  _prepare(axes)
  line = frontier([(x, row.imagenet) for row, x in points], is_cost=True)
  axes.plot(*zip(*line, strict=True), color="0.6", linewidth=1, linestyle="--")
  labels = [_mark(axes, row, x, row.model) for row, x in points]
  axes.margins(x=0.16, y=0.08)
  charts.label_cloud(axes, labels)
  axes.set_xlabel(_COST, fontsize=9)


def rank_devices(results: Path) -> list[tuple[str, Points]]:
  """Returns each measured device with table 3's rows and their images/s.

  A device's name includes the dtype in which most models were measured there;
  the fastest device is the first.
  """
  devices = []
  for device in read_devices(results):
    dtype = device.dtypes[0] if device.dtypes else ""
    points = [
      (row, best.images_per_second)
      for row in TABLE_3
      if (best := device.best.get((row.model, row.resolution, dtype)))
    ]
    if points:
      devices.append((f"{device.name}, {dtype}", points))
  return sorted(devices, key=lambda item: -max(speed for _, speed in item[1]))


def draw_points(axes: Axes, points: Points, *, is_cost: bool = False) -> None:
  """Draws markers, labels, and a line for each family."""
  _prepare(axes)
  labels = []
  for family, (color, _) in FAMILIES.items():
    members = [(r, x) for r, x in points if _family(r) == family]
    joined = [(x, r.imagenet) for r, x in members if _is_joined(r)]
    line = frontier(joined, is_cost=is_cost)
    if line:
      axes.plot(*zip(*line, strict=True), color=color, linewidth=1, alpha=0.4)
    for row, x in members:
      # The family's name stands once, at the most accurate model of its line.
      is_named = bool(line) and row.imagenet == max(y for _, y in line)
      labels.append(_mark(axes, row, x, _label(row, is_named, points)))
  axes.margins(x=0.1, y=0.06)
  charts.label_cloud(axes, labels)


def frontier(
  points: Sequence[tuple[float, float]], *, is_cost: bool = False
) -> list[tuple[float, float]]:
  """Returns the Pareto frontier of (speed or cost, accuracy), by speed or cost.

  A point is on it if none is as fast (or cheap) and more accurate.
  """
  line = []
  for x, y in sorted(points, key=lambda p: (p[0] if is_cost else -p[0], -p[1])):
    if not line or y > line[-1][1]:
      line.append((x, y))
  return sorted(line)


def _prepare(axes: Axes) -> None:
  axes.set_xscale("log")
  axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
  axes.xaxis.set_minor_locator(NullLocator())


def _mark(axes: Axes, row: Row, x: float, label: str) -> charts.Point:
  """Draws a row's marker and returns its label."""
  color, marker = FAMILIES.get(_family(row), _OTHERS)
  axes.plot(
    x,
    row.imagenet,
    marker,
    markersize=4 if row.data == "i1k" else 6,
    color=color,
    markerfacecolor="white" if row.data in ("i1k", "i21k") else color,
  )
  return x, row.imagenet, label, color


def _family(row: Row) -> str:
  return row.model.partition("-")[0]


def _is_joined(row: Row) -> bool:
  return row.data == "JFT-300M" and row.resolution == 224


def _label(row: Row, is_named: bool, points: Points) -> str:
  """Returns a model's size, and whatever else tells rows apart."""
  name = row.model if is_named else row.model.partition("-")[2]
  if row.resolution != 224:
    name += f" {row.resolution} px"
  same = (row.model, row.data, row.resolution)
  if sum((r.model, r.data, r.resolution) == same for r, _ in points) > 1:
    name += f" {row.epochs} epochs"
  return name
