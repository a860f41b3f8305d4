# SPDX-License-Identifier: Apache-2.0
"""Labels of points, and a figure's two files: vector graphics and pixels."""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from mixer.storage import atomic_write
from mixer.training import plots

Point = tuple[float, float, str, str]  # x, y, label, colour
_LINE = 1.25  # height of a line of text, in its size
_MARK = 7.0  # width of a marker with its edge, in points


def check_out(out: str | os.PathLike) -> list[Path]:
  """Returns the figure's two files, FILE.svg and FILE.png.

  Raises:
    UserError: `out` does not end in .svg, or nothing can be written there.
  """
  vector = plots.check_picture(
    out, "--out", suffixes=[".svg"], mark="Matplotlib"
  )
  pixels = vector.with_suffix(".png")
  if not vector.exists():  # next to our .svg the .png is ours
    plots.check_picture(pixels, "--out")
  return [vector, pixels]


def save(
  figure: Figure,
  out: str | os.PathLike,
  *,
  dpi: int = 160,
  colors: int | None = 96,
  note: str = "",
) -> str:
  """Writes FILE.svg and FILE.png; the same figure makes the same files.

  Args:
    figure: from Matplotlib.
    out: FILE.svg.
    dpi: of the PNG.
    colors: number of colours of the PNG, which makes it a third as large; None
      for all.
    note: in small letters at the foot of the figure.

  Returns:
    The names of both files, for a sentence.
  """
  files = check_out(out)
  if note:
    figure.supxlabel(note, fontsize=7, color=plots.GREY)
  for file in files:
    metadata = {"Date": None} if file.suffix == ".svg" else None
    with (
      matplotlib.rc_context({"svg.hashsalt": "mixer"}),  # names of parts
      atomic_write(file) as partial,
    ):
      figure.savefig(partial, dpi=dpi, metadata=metadata)
      if colors and file.suffix == ".png":
        Image.open(partial).convert("RGB").quantize(colors).save(partial)
  return f"{files[0]} and {files[1]}"


def label_ends(
  axes: Axes, points: Sequence[Point], *, size: float = 9, gap: float = 6
) -> None:
  """Writes labels to the right of line ends, moved up or down if they overlap.

  Call it when the axes have their limits.

  Args:
    axes: axes of the points.
    points: ends of lines, one above another.
    size: font size in points.
    gap: distance from point to label in points.
  """
  figure = axes.get_figure(root=True)
  figure.draw_without_rendering()  # sets the transforms
  ys = np.array([axes.transData.transform(point[:2])[1] for point in points])
  ys /= figure.dpi / 72  # points
  for (x, y, text, color), label_y, point_y in zip(
    points, spread(ys, size * _LINE), ys, strict=True
  ):
    axes.annotate(
      text,
      (x, y),
      xytext=(gap, label_y - point_y),
      textcoords="offset points",
      va="center",
      color=color,
      fontsize=size,
      annotation_clip=False,
    )


def spread(places: np.ndarray, gap: float) -> np.ndarray:
  """Moves numbers [n] at least `gap` apart, each as little as possible.

  Neighbours that would lie closer form a group, which keeps its mean.
  """
  order = np.argsort(places, kind="stable")
  groups: list[list[float]] = []
  for place in places[order]:
    groups.append([place])
    while len(groups) > 1 and _lowest(groups[-1], gap) < (
      _lowest(groups[-2], gap) + gap * len(groups[-2])
    ):
      groups[-2:] = [groups[-2] + groups[-1]]
  result = np.empty(len(places))
  result[order] = [
    _lowest(group, gap) + gap * i for group in groups for i in range(len(group))
  ]
  return result


def _lowest(group: list[float], gap: float) -> float:
  return float(np.mean(group)) - gap * (len(group) - 1) / 2


def label_cloud(
  axes: Axes, points: Sequence[Point], *, size: float = 7.5
) -> None:
  """Writes labels next to scattered points, clear of markers, lines and labels.

  Call it when the axes have their limits and all lines. Each label takes the
  place around its point that overlaps least with everything else; a few rounds
  let labels give way to each other.

  Args:
    axes: axes of the points.
    points: the points and their labels.
    size: font size in points.
  """
  figure = axes.get_figure(root=True)
  figure.draw_without_rendering()  # sets the transforms
  pixels = figure.dpi / 72
  inside = np.array(axes.get_window_extent().extents) / pixels
  marks = _boxes(
    axes.transData.transform([point[:2] for point in points]) / pixels, _MARK
  )
  lines = [
    _sample(line, pixels) for line in axes.lines if len(line.get_xdata())
  ]
  obstacles = np.concatenate([marks, *(_boxes(line, 1.0) for line in lines)])
  texts = [
    axes.annotate(
      text,
      (x, y),
      (0, 0),
      textcoords="offset points",
      va="center",
      ha="center",
      fontsize=size,
      color=color,
      in_layout=False,  # the axes stay as they are
    )
    for x, y, text, color in points
  ]
  places, costs = [], []  # of each label: boxes [k, 4], and their costs [k]
  for text, mark in zip(texts, marks, strict=True):
    extent = text.get_window_extent()
    places.append(_places(mark, extent.width / pixels, extent.height / pixels))
    outside = _area(places[-1]) - _overlap(places[-1], inside[None])
    blocked = _overlap(places[-1], obstacles)
    # Of places as good as each other, the first.
    costs.append(blocked + 5 * outside + 0.25 * np.arange(len(places[-1])))
  chosen = [int(np.argmin(cost)) for cost in costs]
  for _ in range(5):
    for i, (boxes, cost) in enumerate(zip(places, costs, strict=True)):
      others = [places[j][k] for j, k in enumerate(chosen) if j != i]
      if others:
        cost = cost + 3 * _overlap(boxes, np.array(others))
      chosen[i] = int(np.argmin(cost))
  for text, boxes, mark, k in zip(texts, places, marks, chosen, strict=True):
    text.set_position(
      boxes[k].reshape(2, 2).mean(0) - mark.reshape(2, 2).mean(0)
    )


def _places(mark: np.ndarray, width: float, height: float) -> np.ndarray:
  """Returns boxes [k, 4] for a label around a marker, the preferred first."""
  center = mark.reshape(2, 2).mean(0)
  boxes = []
  for distance in (2.0, 5.0, 9.0):
    reach = _MARK / 2 + distance
    for right, up in (
      (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1),
      (0.5, 1), (0.5, -1), (-0.5, 1), (-0.5, -1),
    ):  # fmt: skip
      x = center[0] + right * (reach + width / 2)
      y = center[1] + up * reach * (0.5 if abs(right) == 1 else 1.0)
      y += up * height / 2
      boxes.append(
        (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
      )
  return np.array(boxes)


def _sample(line, pixels: float) -> np.ndarray:
  """Returns points [n, 2] along a line, in points of the page, 2 apart."""
  corners = line.get_transform().transform(line.get_xydata()) / pixels
  lengths = np.hypot(*np.diff(corners, axis=0).T)
  parts = [
    np.linspace(start, end, int(length / 2) + 2)
    for start, end, length in zip(corners, corners[1:], lengths, strict=False)
  ]
  return np.concatenate(parts) if parts else corners


def _boxes(centers: np.ndarray, size: float) -> np.ndarray:
  """Returns squares [n, 4] around centres [n, 2]: left, bottom, right, top."""
  return np.concatenate([centers - size / 2, centers + size / 2], axis=1)


def _area(boxes: np.ndarray) -> np.ndarray:
  return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Returns the area of each box [n, 4] that others [m, 4] cover, [n]."""
  low = np.maximum(boxes[:, None, :2], others[None, :, :2])
  high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
  return np.prod(np.maximum(high - low, 0), axis=2).sum(1)
