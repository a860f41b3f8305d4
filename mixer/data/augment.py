# SPDX-License-Identifier: Apache-2.0
"""Augmentation of later recipes, as torchvision, timm and DeiT III define it.

Pillow computes it there and here, on uint8 images, so that pixels are the same
bit for bit. The paper's own augmentation is in preprocess and randaugment.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mixer.data.pp_parser import Crop, Size, height_width, op

# Mean and deviation of ImageNet's pixels, of 0..1.
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
FILL = tuple(int(value) for value in np.round(255 * MEAN))

_RESAMPLING = {
  "bilinear": (Image.Resampling.BILINEAR,),
  "bicubic": (Image.Resampling.BICUBIC,),
  "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}
Interpolation = Literal["bilinear", "bicubic", "random"]


def _draw_resampling(
  interpolation: Interpolation, rng: np.random.Generator
) -> Image.Resampling:
  choices = _RESAMPLING[interpolation]
  return choices[rng.integers(len(choices))] if len(choices) > 1 else choices[0]


@op("random_resized_crop")
class RandomResizedCrop(Crop):
  """Cuts a box of random area, shape and place, and resizes it to `size`.

  Unlike `inception_crop`, draws areas (from area_min per cent of the image to
  all of it) uniformly, and ratios of 3:4 to 4:3 uniformly in their logarithm;
  takes the middle of the image if ten boxes do not fit (torchvision's
  RandomResizedCrop). "random" interpolation is one of the two, as in timm.
  Resizing is antialiased. `scaled` decodes large JPEGs at a reduced resolution
  (`pp_parser.Crop`).
  """

  size: Size
  area_min: float = 8
  interpolation: Interpolation = "bicubic"
  scaled: bool = False

  def __post_init__(self) -> None:
    if not 0 < self.area_min <= 100:
      raise ValueError("area_min must lie above 0 and not above 100 per cent")

  def resize(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    resampling = _draw_resampling(self.interpolation, rng)
    size = height_width(self.size)[::-1]
    return np.asarray(Image.fromarray(image).resize(size, resampling))

  def sample(
    self, height: int, width: int, rng: np.random.Generator
  ) -> tuple[int, int, int, int]:
    """Draws (y, x, h, w)."""
    for _ in range(10):
      area = rng.uniform(self.area_min / 100, 1) * height * width
      ratio = _draw_ratio(4 / 3, rng)
      h, w = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
      if 0 < h <= height and 0 < w <= width:
        y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
        return int(y), int(x), h, w
    ratio = np.clip(width / height, 3 / 4, 4 / 3)
    h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def _draw_ratio(most: float, rng: np.random.Generator) -> float:
  """Draws from 1 / most to most, uniformly in the logarithm."""
  return most ** rng.uniform(-1, 1)


@op("color_jitter")
class ColorJitter:
  """Changes brightness, contrast, saturation and hue, in random order.

  The first three are multiplied by a factor drawn from 1 - value to 1 + value
  (from 0 if that is negative), the hue is shifted by up to its value of a turn
  either way; 0 turns one off (torchvision's ColorJitter).
  """

  brightness: float = 0
  contrast: float = 0
  saturation: float = 0
  hue: float = 0

  def __post_init__(self) -> None:
    if min(self.brightness, self.contrast, self.saturation) < 0:
      raise ValueError(
        "brightness, contrast and saturation must not be negative"
      )
    if not 0 <= self.hue <= 0.5:
      raise ValueError("hue must lie within 0..0.5, a half turn either way")

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    factors = self.brightness, self.contrast, self.saturation
    ranges = [*((max(0, 1 - x), 1 + x) for x in factors), (-self.hue, self.hue)]
    picture = Image.fromarray(image)
    for change in rng.permutation(4):
      low, high = ranges[change]
      if low < high:
        picture = _JITTER[change](picture, rng.uniform(low, high))
    return np.asarray(picture)


def shift_hue(picture: Image.Image, turn: float) -> Image.Image:
  """Adds a share of a turn, -0.5 to 0.5, to the hue of a Pillow image."""
  same = [*range(256)]
  hue = [(value + int(turn * 255)) % 256 for value in same]
  return picture.convert("HSV").point(hue + same + same).convert("RGB")


# Of brightness, contrast, saturation and hue: functions of a Pillow image and a
# factor.
_JITTER = (
  lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
  lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
  lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
  shift_hue,
)


@op("three_augment")
class ThreeAugment:
  """Makes the image grey, solarises or blurs it (DeiT III, arXiv 2204.07118).

  One of the three, each as likely. The colour jitter that belongs to it there
  is an op of its own: three_augment | color_jitter(0.3, 0.3, 0.3).
  """

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    picture, choice = Image.fromarray(image), rng.integers(3)
    if choice == 0:
      picture = picture.convert("L").convert("RGB")
    elif choice == 1:
      picture = ImageOps.solarize(picture, 128)
    else:
      blur = ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0))
      picture = picture.filter(blur)
    return np.asarray(picture)


@op("randaug_timm")
class RandAugmentTimm:
  """RandAugment in timm's form: rand-m9-mstd0.5-inc1 by default.

  `layers` times draws one of the fifteen operations, and applies it with this
  probability. Unlike in `randaug`, all of them grow with the magnitude, which
  is drawn anew from a normal distribution of this deviation and cut to 0..10;
  there is no Cutout; what moves in from outside is ImageNet's mean colour.
  "random" interpolation draws one of the two for each operation.
  """

  layers: int = 2
  magnitude: float = 9
  std: float = 0.5
  probability: float = 0.5
  interpolation: Interpolation = "random"

  def __post_init__(self) -> None:
    if self.layers < 0:
      raise ValueError("layers must not be negative; timm's recipes use 2")
    if not 0 <= self.magnitude <= 10:
      raise ValueError("magnitude must lie within 0..10; timm's recipes use 9")
    if self.std < 0:
      raise ValueError("std must not be negative; timm's recipes use 0.5")
    if not 0 <= self.probability <= 1:
      raise ValueError("probability must lie within 0..1")

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    picture = Image.fromarray(image)
    for operation in rng.integers(len(OPERATIONS), size=self.layers):
      if rng.random() < self.probability:
        magnitude = np.clip(rng.normal(self.magnitude, self.std), 0, 10)
        sign = 1 if rng.integers(2) else -1
        resampling = _draw_resampling(self.interpolation, rng)
        function = [*OPERATIONS.values()][operation]
        picture = function(picture, float(magnitude) / 10, sign, resampling)
    return np.asarray(picture)


def _shift(
  picture: Image.Image, resampling: Image.Resampling, *matrix: float
) -> Image.Image:
  """Maps each pixel's place to its source by the first two rows of a matrix."""
  return picture.transform(
    picture.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=FILL
  )


def _enhance(kind: type) -> Callable:
  def function(picture, level, sign, resampling):
    return kind(picture).enhance(1 + sign * level * 0.9)

  return function


# Functions of a Pillow image, the level (magnitude / 10), the sign 1 or -1 and
# the resampling of movements.
OPERATIONS: dict[str, Callable[..., Image.Image]] = {
  "AutoContrast": lambda picture, *_: ImageOps.autocontrast(picture),
  "Equalize": lambda picture, *_: ImageOps.equalize(picture),
  "Invert": lambda picture, *_: ImageOps.invert(picture),
  "Rotate": lambda picture, level, sign, resampling: picture.rotate(
    sign * level * 30, resampling, fillcolor=FILL
  ),
  # Magnitude 10 leaves 0 bits, a black image; ImageOps.posterize refuses that.
  "PosterizeIncreasing": lambda picture, level, *_: picture.point(
    [x & (256 - 2 ** (4 + int(level * 4))) for x in range(256)] * 3
  ),
  "SolarizeIncreasing": lambda picture, level, *_: ImageOps.solarize(
    picture, 256 - int(level * 256)
  ),
  "SolarizeAdd": lambda picture, level, *_: picture.point(
    [min(255, x + (x < 128) * int(level * 110)) for x in range(256)] * 3
  ),
  "ColorIncreasing": _enhance(ImageEnhance.Color),
  "ContrastIncreasing": _enhance(ImageEnhance.Contrast),
  "BrightnessIncreasing": _enhance(ImageEnhance.Brightness),
  "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness),
  "ShearX": lambda picture, level, sign, resampling: _shift(
    picture, resampling, 1, sign * level * 0.3, 0, 0, 1, 0
  ),
  "ShearY": lambda picture, level, sign, resampling: _shift(
    picture, resampling, 1, 0, 0, sign * level * 0.3, 1, 0
  ),
  "TranslateXRel": lambda picture, level, sign, resampling: _shift(
    picture, resampling, 1, 0, sign * level * 0.45 * picture.width, 0, 1, 0
  ),
  "TranslateYRel": lambda picture, level, sign, resampling: _shift(
    picture, resampling, 1, 0, 0, 0, 1, sign * level * 0.45 * picture.height
  ),
}


@op("random_erasing_timm")
class RandomErasingTimm:
  """Covers a random box with noise of the mean and deviation of ImageNet.

  timm's form, mode "pixel": areas (2 % to a third of the image) are uniform,
  ratios of 3:10 to 10:3 are uniform in their logarithm, and the box never hangs
  over the edge. timm draws its noise after normalisation; in uint8 it is
  rounded, by at most 0.009 of a deviation, and clipped to 0..255, which changes
  3 to 4 % of the values and takes 5 to 7 % of the variance.
  """

  probability: float = 0.25

  def __post_init__(self) -> None:
    if not 0 <= self.probability <= 1:
      raise ValueError("probability must lie within 0..1")

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= self.probability:
      return image
    y, x, h, w = self.sample(image.shape[0], image.shape[1], rng)
    noise = 255 * (MEAN + STD * rng.standard_normal((h, w, 3)))
    image = image.copy()
    image[y : y + h, x : x + w] = np.clip(np.round(noise), 0, 255)
    return image

  def sample(
    self, height: int, width: int, rng: np.random.Generator
  ) -> tuple[int, int, int, int]:
    """Draws (y, x, h, w); of no height where none of ten boxes fits."""
    for _ in range(10):
      area = rng.uniform(0.02, 1 / 3) * height * width
      ratio = _draw_ratio(1 / 0.3, rng)
      h, w = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
      if h < height and w < width:
        y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
        return int(y), int(x), h, w
    return 0, 0, 0, 0
