# SPDX-License-Identifier: Apache-2.0
"""Figures that are made of mosaics, as vector graphics and as pixels.

A pixel of a mosaic is a pixel of the PNG: none is drawn wider than another.
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mixer.tools.paper.figures import files

_DPI = 200
_TITLE, _TEXT = 11, 7.5  # points
_MARGIN = 28  # px
_LINE = 1.4  # height of a line of text, in its size
_LETTER = 0.55  # width of a letter, about


@dataclasses.dataclass(frozen=True)
class Panel:
  """A mosaic with what is written above it.

  mosaic: float [h, w, 3], 0 to 1.
  """

  title: str
  mosaic: np.ndarray = dataclasses.field(repr=False)

  @property
  def size(self) -> tuple[int, int]:
    """Height and width in pixels, with its title."""
    h, w, _ = self.mosaic.shape
    lines = self.title.splitlines()
    text = max(len(line) for line in lines) * _pixels(_LETTER * _TEXT)
    return h + _pixels(_TEXT * _LINE) * len(lines), max(w, text)


def draw(
  title: str, note: str, rows: Sequence[Sequence[Panel]], out: str
) -> str:
  """Draws rows of panels, each from left to right.

  Args:
    title: in large type, at the top.
    note: in small type, below it.
    rows: from above.
    out: the vector file, whose name ends in .svg; the other lies beside it.

  Returns:
    The names of both files, for a sentence.

  Raises:
    UserError: `out` is no such name, or it is in no folder.
  """
  sizes = [[panel.size for panel in row] for row in rows]
  width = max(sum(w + _MARGIN for _, w in row) for row in sizes) + _MARGIN
  width = max(width, 800)  # px, for the text
  texts = [(line, _TITLE) for line in _wrap(title, _TITLE, width)]
  texts += [(line, _TEXT) for line in _wrap(note, _TEXT, width)]
  top = _MARGIN + sum(_pixels(size * _LINE) for _, size in texts)
  height = top + sum(max(h for h, _ in row) + _MARGIN for row in sizes)
  height += _MARGIN // 2
  figure = Figure((width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")

  def write(x: int, y: int, text: str, **look) -> None:
    figure.text(
      x / width, 1 - y / height, text, va="top", parse_math=False, **look
    )

  y = _MARGIN // 2
  for line, size in texts:
    bold = "bold" if size == _TITLE else "normal"
    write(_MARGIN, y, line, fontsize=size, weight=bold)
    y += _pixels(size * _LINE)
  y = top
  for row in rows:
    x = _MARGIN
    for panel in row:
      h, w, _ = panel.mosaic.shape
      write(x, y, panel.title, fontsize=_TEXT, linespacing=_LINE - 0.15)
      below = y + panel.size[0]
      axes = figure.add_axes(
        (x / width, 1 - below / height, w / width, h / height)
      )
      axes.axis("off")
      axes.imshow(panel.mosaic, interpolation="nearest", aspect="auto")
      x += panel.size[1] + _MARGIN
    y += max(panel.size[0] for panel in row) + _MARGIN
  return files.save(figure, out, dpi=_DPI)


def _pixels(points: float) -> int:
  return round(points * _DPI / 72)


def _wrap(text: str, size: float, width: int) -> list[str]:
  """Cuts text into lines."""
  letters = (width - 2 * _MARGIN) / _pixels(_LETTER * size)
  return textwrap.wrap(text, int(letters))


def short_name(init: str) -> str:
  """Of weights, for titles: a path's last two parts, a published name whole."""
  return "/".join(Path(init).parts[-2:])
