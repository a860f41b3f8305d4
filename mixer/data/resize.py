# SPDX-License-Identifier: Apache-2.0
"""Resizing, with the pixels that tf.image.resize gives once cast to uint8.

The cast cuts fractions off, so that a sum a hair below a whole number lands
one level lower. In flat areas that happens to many pixels, and to the same
ones only where the same float32 operations are done in the same order. Here
two sparse matrices do them, one for each axis.

Bilinear interpolation without antialiasing, which nearly every image passes
through in training, is left to OpenCV: several times as fast, and one level
off in a few pixels of a thousand.
"""

import functools
from typing import Literal

import cv2
import numpy as np
from scipy import sparse

from mixer.errors import UserError

Method = Literal["bilinear", "bicubic", "area"]

# Beyond 8192 x 8192 it is a slip of the pen, and would fill the memory.
LARGEST_RESULT = 2**26

# Random crops come in hundreds of heights and widths; a matrix has some 20 kB.
cached = functools.lru_cache(maxsize=1024)


def resize(
  image: np.ndarray,
  height: int,
  width: int,
  method: Method = "bilinear",
  antialias: bool = False,
) -> np.ndarray:
  """Resizes uint8 [h, w, 3] to uint8 [height, width, 3].

  Args:
    image: may be a part of a larger one.
    height: of the result.
    width: of the result.
    method: "bilinear" and "bicubic" weigh the nearest 2 and 4 pixels of each
      axis; where bicubic leaves 0..255, it is clipped. "area" averages what
      lies under a new pixel.
    antialias: takes more pixels where the image shrinks, so that each counts;
      no change for "area", which averages them all.

  Raises:
    UserError: the result would be enormous.
  """
  check_size(height, width)
  h, w = image.shape[:2]
  if method == "area":
    rows, columns = area_weights(h, height), area_weights(w, width)
    image = _weigh(columns, cv2.transpose(image))  # width h c
    image = _weigh(rows, cv2.transpose(image))  # height width c
    share = np.float32(1 / float(_step(h, height) * _step(w, width)))
    return (image * share).astype(np.uint8)
  if antialias:
    rows = antialiased_weights(h, height, method)
    columns = antialiased_weights(w, width, method)
  elif method == "bicubic":
    rows, columns = bicubic_weights(h, height), bicubic_weights(w, width)
  else:
    image = image.astype(np.float32)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    # Its rounding errors are far too small to wrap around in the cast.
    return image.astype(np.uint8)
  image = _weigh(rows, image)  # height w c
  image = _weigh(columns, cv2.transpose(image))  # width height c
  return cv2.transpose(np.clip(image, 0, 255, out=image).astype(np.uint8))


def check_size(height: int, width: int) -> None:
  """Raises UserError if an image of this size would be enormous."""
  if height * width > LARGEST_RESULT:
    raise UserError(
      f"The ops make an image of {height} x {width} pixels, more than the"
      f" {LARGEST_RESULT} that are allowed: give a smaller size or padding."
    )


def _step(size: int, new_size: int) -> np.float32:
  """Length of a new pixel, in old pixels."""
  return np.float32(size) / np.float32(new_size)


def _weigh(weights: sparse.csr_array, image: np.ndarray) -> np.ndarray:
  """Takes weighted sums, in float32, along the first axis of [a, b, 3]."""
  flat = image.astype(np.float32, copy=False).reshape(len(image), -1)
  return (weights @ flat).reshape(weights.shape[0], *image.shape[1:])


def _matrix(
  weights: np.ndarray, pixels: np.ndarray, size: int
) -> sparse.csr_array:
  """Places weights [new, n] at their pixels [new, n] in a row of `size`."""
  used = weights != 0
  ends = np.cumsum(used.sum(axis=1))
  return sparse.csr_array(
    (weights[used], pixels[used], np.concatenate([[0], ends])),
    shape=(len(weights), size),
  )


@cached
def area_weights(size: int, new_size: int) -> sparse.csr_array:
  """Overlap of each old pixel with a new one, in old pixels."""
  step = _step(size, new_size)
  edges = np.arange(new_size + 1, dtype=np.float32)[:, None] * step
  begin, end = edges[:-1], edges[1:]
  first, last = np.floor(begin), np.ceil(end) - 1
  left = first + np.arange((last - first).max() + 1, dtype=np.float32)
  right = left + 1
  weights = np.where(right > end, end - left, np.float32(1))
  weights = np.where(left < begin, right - begin, weights)
  weights = np.where((left < begin) & (right > end), step, weights)
  weights[left > last] = 0
  # Rounding may let the last pixel reach a hair over the edge of the image.
  pixels = np.minimum(left, size - 1).astype(np.int64)
  return _matrix(weights, pixels, size)


@cached
def bicubic_weights(size: int, new_size: int) -> sparse.csr_array:
  """Keys' cubic kernel with a = -1/2, from a table of 1,024 distances."""
  step = _step(size, new_size)
  places = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * step
  places -= np.float32(0.5)
  first = np.floor(places)
  distance = np.rint((places - first) * np.float32(1024)) / 1024
  offsets = np.arange(-1, 3)
  weights = _keys_cubic(np.abs(offsets - distance[:, None]))
  pixels = first.astype(np.int64)[:, None] + offsets
  return _normalised(weights.astype(np.float32), pixels, size)


@cached
def antialiased_weights(
  size: int, new_size: int, method: Method
) -> sparse.csr_array:
  """Triangle or Keys' cubic kernel, stretched where the image shrinks."""
  kernel, radius = {"bilinear": (_triangle, 1), "bicubic": (_keys_cubic, 2)}[
    method
  ]
  half = np.float32(0.5)
  # The inverse of the factor, which TensorFlow's op is given, is not _step.
  step = np.float32(1) / (np.float32(new_size) / np.float32(size))
  stretch = np.maximum(step, np.float32(1))
  centre = (np.arange(new_size, dtype=np.float32)[:, None] + half) * step
  first = np.ceil(centre - radius * stretch - half)
  last = np.floor(centre + radius * stretch - half)
  pixels = first + np.arange((last - first).max() + 1, dtype=np.float32)
  distance = np.abs((pixels + half - centre) * (np.float32(1) / stretch))
  weights = np.where(pixels > last, np.float32(0), kernel(distance))
  return _normalised(weights, pixels.astype(np.int64), size)


def _normalised(
  weights: np.ndarray, pixels: np.ndarray, size: int
) -> sparse.csr_array:
  """Drops the pixels outside the image, and lets the rest sum up to 1."""
  weights = np.where((pixels >= 0) & (pixels < size), weights, np.float32(0))
  # A running total adds in order, where a sum adds in pairs.
  total = np.cumsum(weights, axis=1, dtype=np.float32)[:, -1:]
  return _matrix(weights * (np.float32(1) / total), pixels, size)


def _triangle(distance: np.ndarray) -> np.ndarray:
  return np.maximum(1 - distance, 0)


def _keys_cubic(distance: np.ndarray) -> np.ndarray:
  """R. Keys 1981, a = -1/2; in the type of the distance, 0 or more."""
  x = distance
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  return np.where(x >= 2, x.dtype.type(0), np.where(x >= 1, far, near))
