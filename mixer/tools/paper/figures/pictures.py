# SPDX-License-Identifier: Apache-2.0
"""Many small pictures side by side.

Letters in shape comments: n pictures, h w their rows and columns.
"""

import math

import numpy as np
from matplotlib import colormaps

# Blue for negative, white for zero, red for positive: told apart by
# colour-blind readers, and apart from the grey between pictures.
SIGNED = "RdBu_r"
GREY = 0.45


def signed_colors(pictures: np.ndarray) -> np.ndarray:
  """Colours pictures [n, h, w] around zero, each by its own largest weight.

  Returns:
    float [n, h, w, 3]; an empty picture is white.
  """
  largest = np.abs(pictures).max((1, 2), keepdims=True)
  scaled = pictures / np.where(largest > 0, largest, 1.0)
  return colormaps[SIGNED]((scaled + 1) / 2)[..., :3]


def around_grey(filters: np.ndarray) -> np.ndarray:
  """Colours filters [n, h, w, channels] so that 0 is mid-grey.

  Each by its own largest weight, all colours alike. Filters of another number
  of channels than three are drawn in grey, by their mean.

  Returns:
    float [n, h, w, 3].
  """
  if filters.shape[-1] != 3:
    filters = filters.mean(-1, keepdims=True).repeat(3, -1)
  largest = np.abs(filters).max((1, 2, 3), keepdims=True)
  return 0.5 + filters / np.where(largest > 0, 2 * largest, 1.0)


def mosaic(
  pictures: np.ndarray,
  columns: int,
  *,
  zoom: int = 1,
  pairs: bool = False,
  between: float = GREY,
) -> np.ndarray:
  """Puts pictures in rows, from left to right.

  Args:
    pictures: float [n, h, w, 3].
    columns: pictures in a row; with pairs, an even number.
    zoom: pixels of a picture's pixel, in both directions.
    pairs: whether there is more room between pairs than within them.
    between: grey around pictures, and where there is none, 0 to 1.

  Returns:
    float [h', w', 3].
  """
  pictures = pictures.repeat(zoom, 1).repeat(zoom, 2)
  n, h, w, _ = pictures.shape
  near = max(round(h / 20), 1)  # pixels within a pair
  far = 3 * near if pairs else 2 * near
  place, row = np.arange(min(columns, n)), np.arange(-(-n // columns))
  lefts = far + place * (w + far)
  if pairs:
    lefts -= (place + 1) // 2 * (far - near)
  tops = far + row * (h + far)
  sheet = np.full((tops[-1] + h + far, lefts[-1] + w + far, 3), between)
  for i, picture in enumerate(pictures):
    top, left = tops[i // columns], lefts[i % columns]
    sheet[top : top + h, left : left + w] = picture
  return sheet


def whole_zoom(size: int, pixels: int) -> int:
  """By how much pictures of a size grow to about so many pixels, 1 at least."""
  return max(round(pixels / size), 1)


def columns_for(n: int, shape: tuple[int, int], ratio: float) -> int:
  """An even number of columns that makes a mosaic of about this shape.

  One that fills the last row, if there is one nearby.

  Args:
    n: pictures.
    shape: their height and width.
    ratio: width of the mosaic for a height of one.
  """
  ideal = math.sqrt(n * ratio * shape[0] / shape[1])
  even = range(2, n + 1, 2)
  near = [c for c in even if n % c == 0 and 0.75 < c / ideal < 1.34]
  return min(near or even or [2], key=lambda columns: abs(columns - ideal))
