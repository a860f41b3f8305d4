# SPDX-License-Identifier: Apache-2.0
"""Image operations, and the one-line language in which recipes name them.

A recipe says `inception_crop(224) | flip`; `parse` turns that into a function
from a uint8 image [h, w, 3] and a NumPy Generator to a uint8 image. Results
agree with the TensorFlow operations of the paper's training code: half-pixel
centres, no antialiasing, float32 arithmetic, fractions cut off.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np

from mixer.data import op_language, randaug
from mixer.data.op_language import Size
from mixer.errors import UserError

Method = Literal["bilinear", "area"]

OPS: dict[str, type] = {}

# The loader runs one image per thread; OpenCV's own threads on top of those
# would only fight for the same cores.
cv2.setNumThreads(0)


def op(name: str) -> Callable[[type], type]:
  """Registers a frozen dataclass: its fields are the op's arguments."""

  def register(cls: type) -> type:
    OPS[name] = dataclasses.dataclass(frozen=True)(cls)
    return OPS[name]

  return register


def decode(data: bytes) -> np.ndarray:
  """Decodes a JPEG or PNG into uint8 RGB [h, w, 3].

  Grey images get three equal channels, transparency is dropped, and the
  orientation that a camera noted is not applied, all as TensorFlow does.

  Raises:
    ValueError: the bytes are not an image that OpenCV can read.
  """
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  try:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  except cv2.error:
    image = None
  if image is None:
    raise ValueError(
      f"Cannot decode {len(data)} bytes that begin with {data[:8]!r}: they are"
      " not a whole JPEG or PNG image."
    )
  return image


def resize_image(
  image: np.ndarray, height: int, width: int, method: Method = "bilinear"
) -> np.ndarray:
  """Resizes uint8 [h, w, c] to uint8 [height, width, c]."""
  image = image.astype(np.float32)
  if method == "bilinear":
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
  else:
    image = _resize_area(image, height, width)
  # Averages of uint8 values lie within 0..255, give or take a rounding error,
  # which must not wrap around in the cast.
  return np.clip(image, 0, 255).astype(np.uint8)


def _resize_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """Averages the input area under each output pixel, in float32."""
  h, w = image.shape[:2]
  # OpenCV interpolates both axes as soon as one of them grows, so it gets only
  # those that shrink.
  if height < h or width < w:
    smaller = min(width, w), min(height, h)
    image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
  if height > h:
    image = _grow_area(image, height, axis=0)
  if width > w:
    image = _grow_area(image, width, axis=1)
  return image


def _grow_area(image: np.ndarray, size: int, axis: int) -> np.ndarray:
  """Area averages along an axis that grows: at most two pixels under each."""
  scale = np.float32(image.shape[axis]) / np.float32(size)
  begin = np.arange(size, dtype=np.float32) * scale
  end = np.arange(1, size + 1, dtype=np.float32) * scale
  first = np.floor(begin)
  shape = [1, 1, 1]
  shape[axis] = size
  left = np.where(first + 1 > end, scale, first + 1 - begin).reshape(shape)
  right = np.maximum(end - (first + 1), 0).reshape(shape)
  first = first.astype(np.int64)
  second = np.minimum(first + 1, image.shape[axis] - 1)
  total = left * image.take(first, axis) + right * image.take(second, axis)
  return total * (np.float32(1) / scale)


def _height_width(size: Size) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else size


def _crop(image: np.ndarray, y: int, x: int, h: int, w: int) -> np.ndarray:
  return image[y : y + h, x : x + w]


@op("resize")
class Resize:
  """Resizes to `size`, a number for squares or (h, w); ignores the aspect."""

  size: Size
  method: Method = "bilinear"

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return resize_image(image, *_height_width(self.size), self.method)


@op("resize_small")
class ResizeSmall:
  """Resizes so that the shorter side is `size`, and keeps the aspect."""

  size: int
  method: Method = "area"

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sides = np.array(image.shape[:2], np.float32)
    # Half goes to even and the product is float32, as in the training code:
    # otherwise some images come out one pixel longer or shorter.
    sides = np.round(sides * (np.float32(self.size) / sides.min()))
    return resize_image(image, int(sides[0]), int(sides[1]), self.method)


@op("central_crop")
class CentralCrop:
  """Cuts `size`, a number for squares or (h, w), out of the middle."""

  size: Size

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    h, w = _height_width(self.size)
    _check_fits("central_crop", image, h, w)
    y, x = (image.shape[0] - h) // 2, (image.shape[1] - w) // 2
    return _crop(image, y, x, h, w)


@op("random_crop")
class RandomCrop:
  """Cuts `size`, a number for squares or (h, w), out of anywhere."""

  size: Size

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    h, w = _height_width(self.size)
    _check_fits("random_crop", image, h, w)
    y = rng.integers(image.shape[0] - h + 1)
    x = rng.integers(image.shape[1] - w + 1)
    return _crop(image, y, x, h, w)


def _check_fits(name: str, image: np.ndarray, h: int, w: int) -> None:
  if h > image.shape[0] or w > image.shape[1]:
    raise UserError(
      f"{name} cannot cut {h} x {w} pixels out of an image of"
      f" {image.shape[0]} x {image.shape[1]}: resize or pad it first."
    )


@op("inception_crop")
class InceptionCrop:
  """Cuts a box of random area, shape and place, and resizes it to `size`.

  Areas are in per cent of the image, ratios are width over height.
  """

  size: Size
  area_min: float = 5
  area_max: float = 100
  ratio_min: float = 0.75
  ratio_max: float = 1.33
  method: Method = "bilinear"

  def __post_init__(self) -> None:
    if not 0 < self.area_min <= self.area_max <= 100:
      raise ValueError("area_min and area_max must rise within 0..100 per cent")
    if not 0 < self.ratio_min <= self.ratio_max:
      raise ValueError("ratio_min and ratio_max must rise, from above 0")

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    box = self.sample(image.shape[0], image.shape[1], rng)
    height, width = _height_width(self.size)
    return resize_image(_crop(image, *box), height, width, self.method)

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
    return image[:, ::-1] if rng.random() < 0.5 else image


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
    border = (self.pixels, self.pixels)
    return np.pad(image, (border, border, (0, 0)), constant_values=self.value)


@op("randaug")
class RandAugment:
  """RandAugment: `layers` random distortions, each of strength `magnitude`."""

  layers: int
  magnitude: float
  contrast: str = "paper"

  def __post_init__(self) -> None:
    randaug.check(self.layers, self.magnitude, self.contrast)

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return randaug.randaug(
      np.ascontiguousarray(image),
      rng,
      layers=self.layers,
      magnitude=self.magnitude,
      contrast=self.contrast,
    )


@dataclasses.dataclass(frozen=True)
class Ops:
  """A chain of ops that is called like one of them."""

  spec: str
  chain: tuple[Callable[[np.ndarray, np.random.Generator], np.ndarray], ...]

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Maps uint8 [h, w, 3] to uint8 [h', w', 3]."""
    for step in self.chain:
      image = step(image, rng)
    return image


def parse(spec: str) -> Ops:
  """Turns `resize_small(256) | central_crop(224)` into a callable.

  Raises:
    UserError: a part cannot be read; says which, where, and what would do.
  """
  return Ops(spec, tuple(op_language.parse(spec, OPS)))
