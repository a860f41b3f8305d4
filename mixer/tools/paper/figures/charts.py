# SPDX-License-Identifier: Apache-2.0
"""Labels of points, and a figure's two files: vector graphics and pixels."""

import os
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Bbox
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


def check_out(out: str | os.PathLike) -> list[pathlib.Path]:
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
    colors: number of colours of the PNG, a third as large with few; None: all.
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
  style = {"va": "center", "fontsize": 9, "annotation_clip": False}
  for (x, y, text, color), move in zip(points, moves, strict=True):
    axes.annotate(
      text, (x, y), (6, move), textcoords="offset points", color=color, **style
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
  first place around its point where it covers nothing, or as little as it can.
  """
  figure = axes.get_figure(root=True)
  figure.draw_without_rendering()  # sets the transforms
  pixels = figure.dpi / 72  # of a point
  centers = axes.transData.transform([point[:2] for point in points])
  reach = _MARK / 2 * pixels
  taken = [Bbox([center - reach, center + reach]) for center in centers]
  lines = [x.get_path().transformed(x.get_transform()) for x in axes.lines]
  # The axes stay as they are.
  style = {"va": "center", "ha": "center", "fontsize": 7.5, "in_layout": False}
  for x, y, text, color in points:
    label = axes.annotate(
      text, (x, y), (0, 0), textcoords="offset points", color=color, **style
    )
    box = label.get_window_extent()
    places = _offsets(box.width / pixels, box.height / pixels)
    boxes = [box.translated(*place) for place in places * pixels]
    costs = [_cost(box, axes, taken, lines) for box in boxes]
    # The next larger distance is as bad as a line that is crossed.
    best = int(np.argmin(costs + np.arange(len(costs)) / len(_DIRECTIONS)))
    label.set_position(places[best])
    taken.append(boxes[best])


def _cost(
  box: Bbox, axes: Axes, taken: Sequence[Bbox], lines: Sequence[Path]
) -> int:
  """Counts what a label would cover; the frame counts more than all else."""
  low, high = axes.bbox.contains(*box.min), axes.bbox.contains(*box.max)
  crossed = sum(line.intersects_bbox(box, filled=False) for line in lines)
  return 4 * box.count_overlaps(taken) + crossed + 100 * (not (low and high))


def _offsets(width: float, height: float) -> np.ndarray:
  """Returns offsets [k, 2] of a label from its point, the preferred first."""
  reach = _MARK / 2 + np.array([[2.0], [5.0], [9.0]])
  right, up = _DIRECTIONS.T
  x = right * (reach + width / 2)
  y = up * (np.where(np.abs(right) == 1, 0.5, 1.0) * reach + height / 2)
  return np.stack([x, y], axis=-1).reshape(-1, 2)
