# SPDX-License-Identifier: Apache-2.0
"""Image operations, the ops of a recipe: `inception_crop(224) | flip`.

`parse` turns such a line into a function of a uint8 image [h, w, 3] and a NumPy
Generator that returns a uint8 image. Results agree with those of the TensorFlow
operations of the paper's training code. More ops: `randaugment`, `augment`.
"""

import functools
from typing import Literal

import cv2
import numpy as np

from mixer.data import augment, randaugment  # noqa: F401
from mixer.data.pp_parser import (  # noqa: F401
  Crop,
  Size,
  height_width,
  op,
  output_size,
  parse,
)
from mixer.data.resize import Method, check_size, resize
from mixer.errors import UserError

# Workers use all cores already, an image a thread.
cv2.setNumThreads(0)


@op("resize")
class Resize:
  """Resizes to `size`, a number for squares or (h, w); ignores the aspect."""

  size: Size
  method: Method = "bilinear"
  antialias: bool = False

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    h, w = height_width(self.size)
    return resize(image, h, w, self.method, self.antialias)


@op("resize_small")
class ResizeSmall:
  """Resizes so that the shorter side is `size`, and keeps the aspect."""

  size: int
  method: Method = "area"
  antialias: bool = False

  def __post_init__(self) -> None:
    if self.size < 1:
      raise ValueError("size must be above 0")

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sides = np.array(image.shape[:2], np.float32)
    # Half goes to even and the product is float32, as in the training code:
    # otherwise some images come out one pixel longer or shorter.
    h, w = np.round(sides * (np.float32(self.size) / sides.min()))
    return resize(image, int(h), int(w), self.method, self.antialias)


@op("central_crop")
class CentralCrop:
  """Cuts `size`, a number for squares or (h, w), out of the middle."""

  size: Size

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    h, w = height_width(self.size)
    _check_fits("central_crop", image, h, w)
    y, x = (image.shape[0] - h) // 2, (image.shape[1] - w) // 2
    return image[y : y + h, x : x + w]


@op("random_crop")
class RandomCrop:
  """Cuts `size`, a number for squares or (h, w), out of anywhere."""

  size: Size

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    h, w = height_width(self.size)
    _check_fits("random_crop", image, h, w)
    y = rng.integers(image.shape[0] - h + 1)
    x = rng.integers(image.shape[1] - w + 1)
    return image[y : y + h, x : x + w]


def _check_fits(name: str, image: np.ndarray, h: int, w: int) -> None:
  if h > image.shape[0] or w > image.shape[1]:
    raise UserError(
      f"{name} cannot cut {h} x {w} pixels out of an image of"
      f" {image.shape[0]} x {image.shape[1]}: resize or pad it first."
    )


@op("inception_crop")
class InceptionCrop(Crop):
  """Cuts a box of random area, shape and place, and resizes it to `size`.

  Areas are in per cent of the image, ratios are width over height. `scaled`
  decodes large JPEGs at a reduced resolution (`pp_parser.Crop`).
  """

  size: Size
  area_min: float = 5
  area_max: float = 100
  ratio_min: float = 0.75
  ratio_max: float = 1.33
  method: Method = "bilinear"
  antialias: bool = False
  scaled: bool = False

  def __post_init__(self) -> None:
    if not 0 < self.area_min <= self.area_max <= 100:
      raise ValueError("area_min and area_max must rise within 0..100 per cent")
    if not 0 < self.ratio_min <= self.ratio_max:
      raise ValueError("ratio_min and ratio_max must rise, from above 0")

  def resize(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    h, w = height_width(self.size)
    return resize(image, h, w, self.method, self.antialias)

  def sample(
    self, height: int, width: int, rng: np.random.Generator
  ) -> tuple[int, int, int, int]:
    """Draws (y, x, h, w) as TensorFlow's sample_distorted_bounding_box does."""
    for _ in range(100):
      ratio = rng.uniform(self.ratio_min, self.ratio_max)
      size = self._sample_size(height, width, ratio, rng)
      if size is not None:
        h, w = size
        # The last place at the far edge is never drawn; so it is in TensorFlow.
        y = int(rng.integers(height - h)) if h < height else 0
        x = int(rng.integers(width - w)) if w < width else 0
        return y, x, h, w
    return 0, 0, height, width

  def _sample_size(
    self, height: int, width: int, ratio: float, rng: np.random.Generator
  ) -> tuple[int, int] | None:
    """Draws h uniformly between the heights of the least and largest area."""
    area_min = self.area_min / 100 * height * width
    area_max = self.area_max / 100 * height * width
    lowest = round((area_min / ratio) ** 0.5)
    highest = round((area_max / ratio) ** 0.5)
    if round(highest * ratio) > width:
      highest = int((width + 0.5 - 1e-7) / ratio)
      if round(highest * ratio) > width:
        highest -= 1
    highest = min(highest, height)
    h = highest
    if lowest < highest:
      h = int(rng.integers(lowest, highest + 1))
    # Rounding to whole pixels may leave the range of areas by a row.
    if h * round(h * ratio) < area_min:
      h += 1
    if h * round(h * ratio) > area_max:
      h -= 1
    w = round(h * ratio)
    fits = 0 < h <= height and 0 < w <= width
    return (h, w) if fits and area_min <= h * w <= area_max else None


@op("flip")
class Flip:
  """Mirrors left and right for every second image."""

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cv2.flip(image, 1) if rng.random() < 0.5 else image


@op("pad")
class Pad:
  """Adds `pixels` rows and columns of `value` (0..255) on every side."""

  pixels: int
  value: int = 0

  def __post_init__(self) -> None:
    if not 0 <= self.value <= 255:
      raise ValueError("value must lie within 0..255")
    if self.pixels < 0:
      raise ValueError("pixels must not be negative")

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    check_size(*(side + 2 * self.pixels for side in image.shape[:2]))
    border = (self.pixels, self.pixels)
    return np.pad(image, (border, border, (0, 0)), constant_values=self.value)


@op("scale")
class Scale:
  """Multiplies the values, up to 255; for images that are stored as 0 and 1."""

  factor: float

  def __post_init__(self) -> None:
    if not 0 < self.factor <= 255:
      raise ValueError("factor must lie above 0 and not above 255")

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cv2.convertScaleAbs(image, alpha=self.factor)


@op("random_erasing")
class RandomErasing:
  """Covers a random box with noise, or with a grey level (arXiv 1708.04896).

  Areas are in per cent of the image; the ratio, height over width, lies
  between ratio_min and its inverse. As in the paper's algorithm 1 all four are
  drawn uniformly, and again as long as the box hangs over the edge.
  """

  probability: float = 0.25
  area_min: float = 2
  area_max: float = 33
  ratio_min: float = 0.3
  fill: Literal["noise"] | int = "noise"

  def __post_init__(self) -> None:
    if not 0 <= self.probability <= 1:
      raise ValueError("probability must lie within 0..1")
    if not 0 < self.area_min <= self.area_max < 100:
      raise ValueError("area_min and area_max must rise within 0..100 per cent")
    if not 0 < self.ratio_min <= 1:
      raise ValueError("ratio_min must lie above 0 and not above 1")
    if self.fill != "noise" and not 0 <= self.fill <= 255:
      raise ValueError("fill must be 'noise' or lie within 0..255")

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= self.probability:
      return image
    y, x, h, w = self.sample(image.shape[0], image.shape[1], rng)
    image = image.copy()
    box = image[y : y + h, x : x + w]
    if self.fill == "noise":
      box[:] = rng.integers(256, size=box.shape, dtype=np.uint8)
    else:
      box[:] = self.fill
    return image

  def sample(
    self, height: int, width: int, rng: np.random.Generator
  ) -> tuple[int, int, int, int]:
    """Draws (y, x, h, w); of no height where no box fits."""
    for _ in range(100):
      area = rng.uniform(self.area_min, self.area_max) / 100 * height * width
      ratio = rng.uniform(self.ratio_min, 1 / self.ratio_min)
      h, w = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
      y, x = int(rng.integers(height)), int(rng.integers(width))
      if y + h <= height and x + w <= width:
        return y, x, h, w
    return 0, 0, 0, 0


# Fixed permutations of pixels, for the paper's figure 4. Streams of a seed, by
# purpose: entropy next to the seed.
_PATCHES, _WITHIN, _PIXELS = range(3)


def permutation(n: int, seed: int, stream: int) -> np.ndarray:
  """Returns a random permutation of range(n), int64 [n]."""
  # RandomState, because NumPy promises never to change its draws.
  bits = np.random.MT19937(np.random.SeedSequence([seed, stream]))
  return np.random.RandomState(bits).permutation(n)


def patch_order(patches: int, seed: int) -> np.ndarray:
  """Returns the permutation of an image's patches, counted row by row."""
  return permutation(patches, seed, _PATCHES)


def within_patch_order(patch: int, seed: int) -> np.ndarray:
  """Returns the permutation of the pixels of every patch of this side."""
  return permutation(patch**2, seed, _WITHIN)


@functools.lru_cache(maxsize=16)
def patches_index(height: int, width: int, patch: int, seed: int) -> np.ndarray:
  """Permutes patches, and the pixels within each of them alike.

  Args:
    height, width: of the image in pixels.
    patch: side of a patch in pixels; divides both.
    seed: of both permutations.

  Returns:
    int64 [height * width], of pixels counted row by row.

  Raises:
    UserError: the patch does not divide the image.
  """
  if height % patch or width % patch:
    near = [max(round(side / patch), 1) * patch for side in (height, width)]
    raise UserError(
      f"permute_patches cannot cut an image of {height} x {width} pixels into "
      f"patches of {patch} x {patch}: crop or resize it to {near[0]} x "
      f"{near[1]} first."
    )
  h, w = height // patch, width // patch
  pixels = np.arange(height * width).reshape(h, patch, w, patch)
  tokens = pixels.transpose(0, 2, 1, 3).reshape(h * w, patch**2)  # s p*p
  tokens = tokens[patch_order(h * w, seed)]
  tokens = tokens[:, within_patch_order(patch, seed)]
  pixels = tokens.reshape(h, w, patch, patch).transpose(0, 2, 1, 3)
  return pixels.ravel()


@functools.lru_cache(maxsize=16)
def pixels_index(height: int, width: int, seed: int) -> np.ndarray:
  """Permutes all pixels of an image, int64 [height * width]."""
  return permutation(height * width, seed, _PIXELS)


def take(image: np.ndarray, index: np.ndarray) -> np.ndarray:
  """Applies an index of pixels to an image [h, w, c]."""
  h, w, c = image.shape
  return image.reshape(h * w, c)[index].reshape(h, w, c)


@op("permute_patches")
class PermutePatches:
  """Permutes the patches, and the pixels within every patch alike.

  `patch` is a patch's side in pixels. The permutation follows from the seed: it
  is the same for all images.
  """

  patch: int
  seed: int = 0

  def __post_init__(self) -> None:
    if self.patch < 1:
      raise ValueError("patch must be above 0")

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return take(image, patches_index(*image.shape[:2], self.patch, self.seed))


@op("permute_pixels")
class PermutePixels:
  """Permutes all pixels; likewise the same for all images of one size."""

  seed: int = 0

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return take(image, pixels_index(*image.shape[:2], self.seed))
