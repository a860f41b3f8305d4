# SPDX-License-Identifier: Apache-2.0
"""RandAugment (Cubuk et al. 2019) as the Mixer authors' recipes ran it.

Every operation gives the pixels that big_vision's pp/archive/autoaugment.py
gives with TensorFlow Addons, including what its integer types made of
magnitudes above 10: in the paper recipes' randaug(2, 15), the Solarize
threshold of 384 wraps to 128.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np

from mixer.data.pp_parser import op

GREY = 128
LARGEST_MAGNITUDE = 30

# An operation takes an image uint8 [h, w, 3], the level (magnitude / 10) and
# the random generator, and returns an image of the same shape and type.
Operation = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@op("randaug")
class RandAugment:
  """Applies `layers` operations, each drawn uniformly from the sixteen.

  Attributes:
    layers: number of operations, one after the other; 2 in the recipes.
    magnitude: 0 to 30, the same for all operations; 15 in the recipes.
    contrast: "paper" blends with the grey level h * w / 256 (196 at 224 x
      224), a slip in the authors' code (big_vision issue 109); "fixed" blends
      with the image's mean grey level.
  """

  layers: int
  magnitude: float
  contrast: Literal["paper", "fixed"] = "paper"

  def __post_init__(self) -> None:
    if self.layers < 0:
      raise ValueError("layers must not be negative; the authors use 2")
    if not 0 <= self.magnitude <= LARGEST_MAGNITUDE:
      raise ValueError(
        f"magnitude={self.magnitude} is not within 0..{LARGEST_MAGNITUDE}; the"
        " authors use 10 to 20"
      )

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image = np.ascontiguousarray(image)
    for _ in range(self.layers):
      name = NAMES[rng.integers(len(NAMES))]
      image = apply(
        name, image, rng, magnitude=self.magnitude, contrast=self.contrast
      )
    return image


def apply(
  name: str,
  image: np.ndarray,
  rng: np.random.Generator,
  *,
  magnitude: float,
  contrast: str = "paper",
) -> np.ndarray:
  """Applies one operation by its name in `NAMES`; see RandAugment."""
  if name == "Contrast" and contrast == "fixed":
    name = "ContrastFixed"
  return OPERATIONS[name](image, magnitude / 10, rng)


def blend(target: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
  """`target` for factor 0, `image` for 1, beyond it for more; truncated."""
  if factor == 1:
    return image
  target = target.astype(np.float32)
  mixed = image - target
  mixed *= np.float32(factor)
  mixed += target
  return np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)


def enhancement(level: float) -> float:
  """The factor of Color, Contrast, Brightness and Sharpness."""
  return level * 1.8 + 0.1


def luma(image: np.ndarray) -> np.ndarray:
  """Grey levels, uint8 [h, w], as tf.image.rgb_to_grayscale rounds them."""
  # In float32 and in its order: near a half, the last bit decides.
  unit = image.astype(np.float32) * np.float32(1 / 255)
  weights = np.array([0.2989, 0.587, 0.114], np.float32)
  grey = unit[..., 0] * weights[0]
  grey += unit[..., 1] * weights[1]
  grey += unit[..., 2] * weights[2]
  return (grey * np.float32(255.5)).astype(np.uint8)


def autocontrast(image, level, rng):
  table = np.empty((256, 1, 3), np.uint8)
  values = np.arange(256, dtype=np.float32)
  for c in range(3):
    low, high = (np.float32(x) for x in cv2.minMaxLoc(image[..., c])[:2])
    if low == high:
      table[:, 0, c] = values
      continue
    scale = np.float32(255) / (high - low)
    table[:, 0, c] = np.clip(values * scale + -low * scale, 0, 255)
  return cv2.LUT(image, table)


def equalize(image, level, rng):
  table = np.empty((256, 1, 3), np.uint8)
  for c in range(3):
    counts = np.bincount(image[..., c].ravel(), minlength=256)
    last = counts[np.flatnonzero(counts)[-1]]
    step = (image[..., c].size - last) // 255
    if step == 0:
      table[:, 0, c] = np.arange(256)
      continue
    below = np.cumsum(counts) - counts
    ranks = (below + step // 2) // step
    table[:, 0, c] = np.minimum(ranks, 255)
  return cv2.LUT(image, table)


def posterize(image, level, rng):
  # The shift is an unsigned byte that TensorFlow limits to 7, so that 0 bits
  # mean 1. So do more than 8 (a shift below 0 wraps), from magnitude 22.5 on.
  bits = int(level * 4)
  shift = min((8 - bits) % 256, 7)
  return image >> shift << shift


def solarize(image, level, rng):
  threshold = int(level * 256) % 256  # cast to an unsigned byte
  values = np.arange(256, dtype=np.uint8)
  return cv2.LUT(image, np.where(values < threshold, values, 255 - values))


def solarize_add(image, level, rng):
  values = np.arange(256)
  brighter = np.minimum(values + int(level * 110), 255)
  table = np.where(values < 128, brighter, values)
  return cv2.LUT(image, table.astype(np.uint8))


def blend_with_level(image: np.ndarray, target: int, factor: float):
  table = blend(np.uint8(target), np.arange(256, dtype=np.uint8), factor)
  return cv2.LUT(image, table)


def contrast_as_in_the_paper(image, level, rng):
  # Meant as the mean grey level, this is the sum of a histogram's counts, not
  # of counts times grey levels.
  target = min(image.shape[0] * image.shape[1] / 256, 255)
  return blend_with_level(image, int(target), enhancement(level))


def contrast_fixed(image, level, rng):
  target = int(luma(image).mean() + 0.5)
  return blend_with_level(image, target, enhancement(level))


def sharpness(image, level, rng):
  kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32)
  kernel /= np.float32(13)
  # float32 with fused multiply-adds, as TensorFlow has it: a sum that is a
  # little below a whole number is truncated to the next lower one.
  means = cv2.filter2D(image.astype(np.float32), cv2.CV_32F, kernel)
  smooth = image.copy()  # the border stays sharp
  smooth[1:-1, 1:-1] = np.minimum(means, 255)[1:-1, 1:-1]
  return blend(smooth, image, enhancement(level))


def either_sign(value: float, rng: np.random.Generator) -> float:
  return value if rng.integers(2) else -value


@functools.lru_cache(maxsize=16)
def source_pixels(
  h: int, w: int, matrix: tuple[float, float, float, float, float, float]
) -> np.ndarray:
  """Source of each pixel: the nearest to an affine map of its position.

  Args:
    h, w: of the image.
    matrix: a, b, c, d, e, f for x' = a x + b y + c and y' = d x + e y + f.

  Returns:
    int16 [h, w, 2], x' and y'; one pixel outside the image if outside it.
  """
  a, b, c, d, e, f = (np.float32(value) for value in matrix)
  x = np.arange(w, dtype=np.float32)[None, :]
  y = np.arange(h, dtype=np.float32)[:, None]
  sources = np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)
  # Halves go away from zero, as in C; twice the precision keeps them halves.
  sources = np.trunc(sources + np.copysign(np.float64(0.5), sources))
  return np.clip(sources, -1, [w, h]).astype(np.int16)


def resample(image: np.ndarray, *matrix: float) -> np.ndarray:
  """Takes each pixel from its `source_pixels`, grey where there is none."""
  h, w = image.shape[:2]
  return cv2.remap(
    image,
    source_pixels(h, w, matrix),
    None,
    cv2.INTER_NEAREST,
    borderMode=cv2.BORDER_CONSTANT,
    borderValue=(GREY, GREY, GREY),
  )


def rotate(image, level, rng):
  """Rotates about the pixels' centre, by up to 30 degrees times level."""
  h, w = image.shape[:2]
  angle = math.radians(either_sign(level * 30, rng))
  # In float32 and in this order, as TensorFlow Addons computes the matrix.
  angle = np.float32(angle)
  sine, cosine = np.sin(angle), np.cos(angle)
  right, bottom = np.float32(w - 1), np.float32(h - 1)
  x = (right - (cosine * right - sine * bottom)) / np.float32(2)
  y = (bottom - (sine * right + cosine * bottom)) / np.float32(2)
  return resample(image, cosine, -sine, x, sine, cosine, y)


def cutout(image, level, rng):
  h, w = image.shape[:2]
  half = int(level * 40)
  y, x = rng.integers(h), rng.integers(w)
  image = image.copy()
  image[max(0, y - half) : y + half, max(0, x - half) : x + half] = GREY
  return image


OPERATIONS: dict[str, Operation] = {
  "AutoContrast": autocontrast,
  "Equalize": equalize,
  "Invert": lambda image, level, rng: 255 - image,
  "Rotate": rotate,
  "Posterize": posterize,
  "Solarize": solarize,
  "Color": lambda image, level, rng: blend(
    luma(image)[..., None], image, enhancement(level)
  ),
  "Contrast": contrast_as_in_the_paper,
  "Brightness": lambda image, level, rng: blend_with_level(
    image, 0, enhancement(level)
  ),
  "Sharpness": sharpness,
  "ShearX": lambda image, level, rng: resample(
    image, 1, either_sign(level * 0.3, rng), 0, 0, 1, 0
  ),
  "ShearY": lambda image, level, rng: resample(
    image, 1, 0, 0, either_sign(level * 0.3, rng), 1, 0
  ),
  "TranslateX": lambda image, level, rng: resample(
    image, 1, 0, either_sign(level * 100, rng), 0, 1, 0
  ),
  "TranslateY": lambda image, level, rng: resample(
    image, 1, 0, 0, 0, 1, either_sign(level * 100, rng)
  ),
  "Cutout": cutout,
  "SolarizeAdd": solarize_add,
  "ContrastFixed": contrast_fixed,
}
NAMES = tuple(name for name in OPERATIONS if name != "ContrastFixed")
