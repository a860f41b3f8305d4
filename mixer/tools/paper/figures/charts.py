# SPDX-License-Identifier: Apache-2.0
"""Labels of points, and a figure's two files: vector graphics and pixels."""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from scipy.optimize import isotonic_regression

from mixer.storage import atomic_write
from mixer.training import plots

Point = tuple[float, float, str, str]  # x, y, label, colour
_LINE = 1.25  # height of a line of text, in its size
_MARK = 7.0  # width of a marker with its edge, in points
# Places of a label around its point, to the right and up.
_DIRECTIONS = np.array(
  [
    (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1),
    (0.5, 1), (0.5, -1), (-0.5, 1), (-0.5, -1),
  ]
)  # fmt: skip


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


def label_ends(axes: Axes, points: Sequence[Point]) -> None:
  """Writes labels to the right of line ends, moved up or down if they overlap.

  Call it when the axes have their limits.
  """
  figure = axes.get_figure(root=True)
  figure.draw_without_rendering()  # sets the transforms
  ys = axes.transData.transform([point[:2] for point in points])[:, 1]
  ys /= figure.dpi / 72  # points
  moves = spread(ys, _LINE * 9) - ys
  for (x, y, text, color), move in zip(points, moves, strict=True):
    axes.annotate(
      text,
      (x, y),
      xytext=(6, move),
      textcoords="offset points",
      va="center",
      color=color,
      fontsize=9,
      annotation_clip=False,
    )


def spread(places: np.ndarray, gap: float) -> np.ndarray:
  """Moves numbers [n] at least `gap` apart, each as little as possible."""
  order = np.argsort(places, kind="stable")
  steps = gap * np.arange(len(places))
  result = np.empty(len(places))
  result[order] = isotonic_regression(places[order] - steps).x + steps
  return result


def label_cloud(axes: Axes, points: Sequence[Point]) -> None:
  """Writes labels next to scattered points, clear of markers, lines and labels.

  Call it when the axes have their limits and all lines. Each label takes the
  place around its point that overlaps least with everything else; a few rounds
  let labels give way to each other.
  """
  figure = axes.get_figure(root=True)
  figure.draw_without_rendering()  # sets the transforms
  pixels = figure.dpi / 72
  inside = np.array(axes.get_window_extent().extents) / pixels
  centers = axes.transData.transform([point[:2] for point in points]) / pixels
  lines = np.concatenate([_sample(line, pixels) for line in axes.lines])
  obstacles = np.concatenate([_boxes(centers, _MARK), _boxes(lines, 1.0)])
  texts = [
    axes.annotate(
      text,
      (x, y),
      (0, 0),
      textcoords="offset points",
      va="center",
      ha="center",
      fontsize=7.5,
      color=color,
      in_layout=False,  # the axes stay as they are
    )
    for x, y, text, color in points
  ]
  offsets, boxes, costs = [], [], []  # of each label [k, 2], [k, 4], [k]
  for text, center in zip(texts, centers, strict=True):
    label_size = np.array(text.get_window_extent().size) / pixels
    offsets.append(_offsets(*label_size))
    boxes.append(_boxes(center + offsets[-1], label_size))
    outside = label_size.prod() - _overlap(boxes[-1], inside[None])
    blocked = _overlap(boxes[-1], obstacles)
    # Of places as good as each other, the first.
    costs.append(blocked + 5 * outside + 0.25 * np.arange(len(boxes[-1])))
  chosen = [int(np.argmin(cost)) for cost in costs]
  for _ in range(5):
    for i, cost in enumerate(costs):
      taken = np.array([each[k] for each, k in zip(boxes, chosen, strict=True)])
      others = np.delete(taken, i, axis=0)
      chosen[i] = int(np.argmin(cost + 3 * _overlap(boxes[i], others)))
  for text, each, k in zip(texts, offsets, chosen, strict=True):
    text.set_position(each[k])


def _offsets(width: float, height: float) -> np.ndarray:
  """Returns offsets [k, 2] of a label from its point, the preferred first."""
  reach = _MARK / 2 + np.array([[2.0], [5.0], [9.0]])
  right, up = _DIRECTIONS.T
  x = right * (reach + width / 2)
  y = up * (np.where(np.abs(right) == 1, 0.5, 1.0) * reach + height / 2)
  return np.stack([x, y], axis=-1).reshape(-1, 2)


def _sample(line: Line2D, pixels: float) -> np.ndarray:
  """Returns points [n, 2] along a line, in points of the page, 2 apart."""
  corners = line.get_transform().transform(line.get_xydata()) / pixels
  lengths = np.hypot(*np.diff(corners, axis=0).T)
  along = np.cumulative_sum(lengths, include_initial=True)
  places = np.arange(0, along[-1], 2.0)
  return np.stack([np.interp(places, along, x) for x in corners.T], axis=1)


def _boxes(centers: np.ndarray, size: np.ndarray | float) -> np.ndarray:
  """Returns boxes [n, 4] around centres [n, 2]: left, bottom, right, top."""
  return np.concatenate([centers - size / 2, centers + size / 2], axis=1)


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Returns the area of each box [n, 4] that others [m, 4] cover, [n]."""
  low = np.maximum(boxes[:, None, :2], others[None, :, :2])
  high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
  return np.prod(np.maximum(high - low, 0), axis=2).sum(1)
