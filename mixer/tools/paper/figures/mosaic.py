# SPDX-License-Identifier: Apache-2.0
"""Mosaics: many small pictures side by side, and figures made of them.

A pixel of a mosaic is a pixel of the figure's PNG, so that none is drawn wider
than another. Letters in shape comments: n pictures, h w their rows and columns.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from mixer.tools.paper.figures import charts

# Blue for negative, white for zero, red for positive: colour-blind readers tell
# them apart, and from the grey between pictures.
_SIGNED = "RdBu_r"
_GREY = 0.45
_DPI = 200
_TITLE, _TEXT = 11, 7.5  # font sizes in points
_MARGIN = 28  # px
_LINE = 1.4  # height of a line of text, in its size
_LETTER = 0.55  # mean width of a letter, in its size


def signed_colors(pictures: np.ndarray) -> np.ndarray:
  """Colours pictures [n, h, w] around zero, each by its own largest weight.

  Returns:
    float [n, h, w, 3]; an all-zero picture is white.
  """
  largest = np.abs(pictures).max((1, 2), keepdims=True)
  scaled = pictures / np.where(largest > 0, largest, 1.0)
  return colormaps[_SIGNED]((scaled + 1) / 2)[..., :3]


def around_grey(filters: np.ndarray) -> np.ndarray:
  """Colours filters [n, h, w, 3] so that 0 is mid-grey.

  Each filter is scaled by its own largest weight, all channels alike.
  """
  largest = np.abs(filters).max((1, 2, 3), keepdims=True)
  return 0.5 + filters / np.where(largest > 0, 2 * largest, 1.0)


def make_mosaic(
  pictures: np.ndarray,
  columns: int,
  *,
  zoom: int = 1,
  cell: int = 0,
  pairs: bool = False,
  between: float = _GREY,
) -> np.ndarray:
  """Puts pictures in rows, from left to right.

  Args:
    pictures: float [n, h, w, 3].
    columns: pictures in a row; with pairs, an even number.
    zoom: factor by which pictures grow, in both directions.
    cell: minimum height and width of a picture, with background around it.
    pairs: leaves more room between pairs than within them.
    between: grey of the background, 0 to 1.

  Returns:
    float [h', w', 3].
  """
  pictures = pictures.repeat(zoom, 1).repeat(zoom, 2)
  n, h, w, _ = pictures.shape
  cell_h, cell_w = max(h, cell), max(w, cell)
  near = max(round(cell_h / 20), 1)  # pixels within a pair
  far = 3 * near if pairs else 2 * near
  column, row = np.arange(min(columns, n)), np.arange(-(-n // columns))
  lefts = far + column * (cell_w + far)
  if pairs:
    lefts -= (column + 1) // 2 * (far - near)
  tops = far + row * (cell_h + far)
  shape = tops[-1] + cell_h + far, lefts[-1] + cell_w + far, 3
  sheet = np.full(shape, between)
  for i, picture in enumerate(pictures):
    top = tops[i // columns] + (cell_h - h) // 2
    left = lefts[i % columns] + (cell_w - w) // 2
    sheet[top : top + h, left : left + w] = picture
  return sheet


def choose_zoom(size: int, pixels: int) -> int:
  """Returns the whole factor, at least 1, from `size` to about `pixels`."""
  return max(round(pixels / size), 1)


def choose_columns(n: int, shape: tuple[int, int], ratio: float) -> int:
  """Returns an even number of columns for a mosaic of about this shape.

  One that fills the last row is preferred, if there is one nearby.

  Args:
    n: number of pictures.
    shape: their height and width.
    ratio: width of the mosaic divided by its height.
  """
  ideal = math.sqrt(n * ratio * shape[0] / shape[1])
  even = range(2, n + 1, 2)
  near = [c for c in even if n % c == 0 and 0.75 < c / ideal < 1.34]
  return min(near or even or [2], key=lambda columns: abs(columns - ideal))


class Panel(NamedTuple):
  """A mosaic, float [h, w, 3] from 0 to 1, with a title above it."""

  title: str
  mosaic: np.ndarray

  @property
  def size(self) -> tuple[int, int]:
    """Height and width in pixels, with the title."""
    h, w, _ = self.mosaic.shape
    lines = self.title.splitlines()
    text = max(len(line) for line in lines) * _pixels(_LETTER * _TEXT)
    return h + _pixels(_TEXT * _LINE) * len(lines), max(w, text)


def draw_panels(
  subject: str,
  init: Sequence[str],
  note: str,
  rows: Sequence[Sequence[Panel]],
  out: str | Path,
) -> str:
  """Draws rows of panels, aligned in columns too.

  Args:
    subject: in large type at the top, before the models' names.
    init: weights of the models.
    note: in small type, below the title.
    rows: panels from top to bottom, each row from left to right.
    out: FILE.svg.

  Returns:
    The title and the names of both files, for a sentence.
  """
  title = f"{subject} of {', '.join(map(short_name, init))}"
  sizes = np.array([[panel.size for panel in row] for row in rows])
  heights, widths = sizes[..., 0].max(1), sizes[..., 1].max(0)
  width = max(int(widths.sum()) + _MARGIN * (len(widths) + 1), 800)
  texts = [(line, _TITLE, "bold") for line in _wrap(title, _TITLE, width)]
  texts += [(line, _TEXT, "normal") for line in _wrap(note, _TEXT, width)]
  top = _MARGIN + sum(_pixels(size * _LINE) for _, size, _ in texts)
  height = top + int(heights.sum()) + _MARGIN * len(rows) + _MARGIN // 2
  figure = Figure((width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")

  def write(x: int, y: int, text: str, **style) -> None:
    x, y = x / width, 1 - y / height
    figure.text(x, y, text, va="top", parse_math=False, **style)

  y = _MARGIN // 2
  for line, size, weight in texts:
    write(_MARGIN, y, line, fontsize=size, weight=weight)
    y += _pixels(size * _LINE)
  lefts = _MARGIN + np.cumulative_sum(widths + _MARGIN, include_initial=True)
  tops = top + np.cumulative_sum(heights + _MARGIN, include_initial=True)
  for row, y in zip(rows, tops[:-1], strict=True):
    for panel, x in zip(row, lefts[:-1], strict=True):
      h, w, _ = panel.mosaic.shape
      write(x, y, panel.title, fontsize=_TEXT, linespacing=_LINE - 0.15)
      bottom = 1 - (y + panel.size[0]) / height
      axes = figure.add_axes((x / width, bottom, w / width, h / height))
      axes.axis("off")
      axes.imshow(panel.mosaic, interpolation="nearest", aspect="auto")
  return f"{title}: {charts.save(figure, out, dpi=_DPI, colors=None)}"


def _pixels(points: float) -> int:
  return round(points * _DPI / 72)


def _wrap(text: str, size: float, width: int) -> list[str]:
  letters = (width - 2 * _MARGIN) / _pixels(_LETTER * size)
  return textwrap.wrap(text, int(letters))


def short_name(init: str) -> str:
  """Returns the last two parts of a path; a published name stays whole."""
  return "/".join(Path(init).parts[-2:])
