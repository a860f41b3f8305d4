# SPDX-License-Identifier: Apache-2.0
"""RandAugment against the authors' pixels, Pillow, SciPy and formulas."""

import math
import zlib

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from mixer.data import randaugment as module
from mixer.data.randaugment import NAMES, RandAugment, apply

# CRC-32 of the pixels that big_vision's autoaugment.py gives for picture(37,
# 53), by operation, magnitude and sign; run in tf.data with TensorFlow 2.12,
# TensorFlow Addons 0.20 and NumPy 1.23, the last that go together.
AUTHORS = {
  ("Rotate", 9, 1): 0x1F4B33F0,
  ("Rotate", 9, -1): 0x64E0CF8D,
  ("Posterize", 9, 1): 0x5DC6F3C7,
  ("Solarize", 9, 1): 0x49A9D12F,
  ("SolarizeAdd", 9, 1): 0xED0618C2,
  ("Color", 9, 1): 0x03D300C2,
  ("Contrast", 9, 1): 0xD62CE9E5,
  ("Brightness", 9, 1): 0x5E93E730,
  ("ShearX", 9, 1): 0x5A31734D,
  ("ShearX", 9, -1): 0x9D5B7291,
  ("ShearY", 9, 1): 0x9DA8BF1F,
  ("ShearY", 9, -1): 0xDDE6D084,
  ("TranslateX", 9, 1): 0xE9F4AA4D,
  ("TranslateX", 9, -1): 0xE9F4AA4D,
  ("TranslateY", 9, 1): 0xE9F4AA4D,
  ("TranslateY", 9, -1): 0xE9F4AA4D,
  ("AutoContrast", 15, 1): 0x857AA1A3,
  ("Equalize", 15, 1): 0x2B35E273,
  ("Invert", 15, 1): 0x537949E5,
  ("Rotate", 15, 1): 0x02BEE63D,
  ("Rotate", 15, -1): 0xBC0262A7,
  ("Posterize", 15, 1): 0xEBEB4985,
  ("Solarize", 15, 1): 0xF14D4A8B,
  ("SolarizeAdd", 15, 1): 0x085B4023,
  ("Color", 15, 1): 0x962DBAF7,
  ("Contrast", 15, 1): 0xAD24E5C0,
  ("Brightness", 15, 1): 0xF7BCAFAB,
  ("ShearX", 15, 1): 0xEA8623A2,
  ("ShearX", 15, -1): 0x90547610,
  ("ShearY", 15, 1): 0x3C589BE5,
  ("ShearY", 15, -1): 0x0B725612,
  ("TranslateX", 15, 1): 0xE9F4AA4D,
  ("TranslateX", 15, -1): 0xE9F4AA4D,
  ("TranslateY", 15, 1): 0xE9F4AA4D,
  ("TranslateY", 15, -1): 0xE9F4AA4D,
  ("Posterize", 23, 1): 0xE7B61357,
  ("Solarize", 23, 1): 0xCA6BF558,
}


def picture(h, w):
  y, x = np.mgrid[:h, :w]
  texture = (x * 7919 + y * 104729 + x * y * 31) % 251
  channels = [
    x * 255 // (w - 1),
    y * 200 // (h - 1) + 20,
    texture * 3 // 4 + 16,
  ]
  return np.stack(channels, axis=-1).astype(np.uint8)


IMAGE = picture(37, 53)
PHOTO = picture(224, 224)


class Draws:
  """Gives the numbers that a test chooses instead of random ones."""

  def __init__(self, *numbers):
    self.numbers = list(numbers)

  def integers(self, _):
    return self.numbers.pop(0)


PLUS, MINUS = 1, 0


def run(name, image=IMAGE, magnitude=15, draws=(PLUS,), contrast="paper"):
  before = image.copy()
  result = apply(
    name, image, Draws(*draws), magnitude=magnitude, contrast=contrast
  )
  np.testing.assert_array_equal(image, before)
  assert result.dtype == np.uint8 and result.shape == image.shape
  return result


def largest_difference(a, b):
  return np.abs(np.asarray(a).astype(int) - np.asarray(b)).max()


@pytest.mark.parametrize(("name", "magnitude", "sign"), AUTHORS)
def test_every_pixel_is_that_of_the_authors(name, magnitude, sign):
  result = run(name, magnitude=magnitude, draws=[PLUS if sign > 0 else MINUS])

  assert zlib.crc32(result.tobytes()) == AUTHORS[name, magnitude, sign]


def test_autocontrast_leaves_a_flat_channel_alone():
  image = IMAGE.copy()
  image[..., 1] = 77

  assert (run("AutoContrast", image)[..., 1] == 77).all()


@pytest.mark.parametrize("image", [IMAGE, PHOTO, IMAGE[:9, :9], IMAGE * 0])
def test_equalize_is_pillows(image):
  expected = ImageOps.equalize(Image.fromarray(image))

  assert largest_difference(run("Equalize", image), expected) == 0


@pytest.mark.parametrize(
  ("magnitude", "bits"), [(5, 2), (10, 4), (15, 6), (20, 8), (0, 1), (30, 1)]
)
def test_posterize_is_pillows_and_never_leaves_less_than_a_bit(magnitude, bits):
  expected = ImageOps.posterize(Image.fromarray(IMAGE), bits)

  assert largest_difference(run("Posterize", IMAGE, magnitude), expected) == 0


@pytest.mark.parametrize("magnitude", [0, 3, 5, 9, 15])
@pytest.mark.parametrize(
  "name", ["Color", "Contrast", "Brightness", "Sharpness"]
)
def test_enhancements_are_pillows_within_rounding(name, magnitude):
  factor = magnitude / 10 * 1.8 + 0.1
  enhancer = getattr(ImageEnhance, name)(Image.fromarray(PHOTO))
  expected = enhancer.enhance(factor)

  result = run(name, PHOTO, magnitude, contrast="fixed")

  # The image to blend with may be rounded differently, by 1, which counts
  # |1 - factor| times.
  exact = name == "Brightness"
  bound = 1 if exact else 1 + math.ceil(abs(1 - factor))
  assert largest_difference(result, expected) <= bound
  assert np.abs(result.astype(int) - np.asarray(expected)).mean() < 1


def test_fixed_contrast_blends_with_the_mean_not_the_median():
  image = np.zeros((10, 10, 3), np.uint8)
  image[0] = 250  # mean 25

  result = run("Contrast", image, magnitude=0, contrast="fixed")

  assert (result[0] == 47).all()  # 25 + 0.1 * 225, truncated
  assert (result[1:] == 22).all()  # 25 - 0.1 * 25, truncated


def test_sharpness_keeps_the_border():
  result = run("Sharpness", magnitude=0)

  for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
    np.testing.assert_array_equal(result[edge], IMAGE[edge])


@pytest.mark.parametrize(
  ("h", "w", "level"), [(224, 224, 196), (16, 16, 1), (300, 300, 255)]
)
def test_the_papers_contrast_blends_with_a_level_set_by_the_size(h, w, level):
  image = picture(h, w)

  result = run("Contrast", image, magnitude=15)

  mixed = level + 2.8 * (image.astype(float) - level)
  np.testing.assert_allclose(result, np.clip(mixed, 0, 255), atol=1)


def geometric_truth(image, matrix, offset):
  """SciPy's nearest neighbour on (y, x); -1 where there is no neighbour."""
  h, w = image.shape[:2]
  places = np.stack(np.mgrid[:h, :w], axis=-1) @ np.transpose(matrix) + offset
  channels = [
    ndimage.map_coordinates(
      np.pad(image[..., c].astype(int), 1, constant_values=-1),
      np.moveaxis(places + 1, -1, 0),
      order=0,
      mode="constant",
      cval=-1,
    )
    for c in range(3)
  ]
  inside = (channels[0] >= 0)[..., None]
  return np.where(inside, np.stack(channels, axis=-1), 128)


@pytest.mark.parametrize(("draw", "sign"), [(PLUS, 1), (MINUS, -1)])
@pytest.mark.parametrize(
  "name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"]
)
def test_geometry_is_scipys_with_grey_outside(name, draw, sign):
  magnitude = 1.7
  level = sign * magnitude / 10
  turn = math.radians(30 * level)
  c, s = math.cos(turn), math.sin(turn)
  centre = np.array([36, 52]) / 2
  rotation = np.array([[c, s], [-s, c]])
  matrix, offset = {
    "Rotate": (rotation, centre - rotation @ centre),
    "ShearX": ([[1, 0], [0.3 * level, 1]], [0, 0]),
    "ShearY": ([[1, 0.3 * level], [0, 1]], [0, 0]),
    "TranslateX": (np.eye(2), [0, 100 * level]),
    "TranslateY": (np.eye(2), [100 * level, 0]),
  }[name]

  result = run(name, magnitude=magnitude, draws=[draw])

  assert (result == geometric_truth(IMAGE, matrix, offset)).mean() > 0.999
  assert (result != IMAGE).any()


def test_the_cutout_is_a_grey_square_that_may_hang_over_the_edge():
  inside = run("Cutout", magnitude=2, draws=[20, 30])
  at_corner = run("Cutout", magnitude=2, draws=[0, 52])

  expected = IMAGE.copy()
  expected[12:28, 22:38] = 128
  np.testing.assert_array_equal(inside, expected)
  expected = IMAGE.copy()
  expected[:8, 44:] = 128
  np.testing.assert_array_equal(at_corner, expected)


def test_operations_are_drawn_uniformly(monkeypatch):
  applied = []
  monkeypatch.setattr(
    module, "apply", lambda name, image, rng, **_: applied.append(name)
  )
  rng = np.random.default_rng(0)

  for _ in range(2000):
    RandAugment(2, 15)(IMAGE, rng)

  counts = np.array([applied.count(name) for name in NAMES])
  assert counts.sum() == 4000
  # 30.6 is the 99th percentile of chi-square with 15 degrees of freedom.
  assert ((counts - 250) ** 2 / 250).sum() < 30.6


@pytest.mark.parametrize(
  "name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"]
)
def test_both_signs_are_drawn_evenly(name):
  rng = np.random.default_rng(0)
  results = [apply(name, IMAGE, rng, magnitude=1).tobytes() for _ in range(400)]

  assert len(set(results)) == 2
  assert 160 < results.count(results[0]) < 240


def test_the_cutout_may_be_anywhere():
  rng = np.random.default_rng(0)
  image = np.zeros((5, 7, 3), np.uint8)

  corners = set()
  for _ in range(1000):
    # Half a side is 1: the square ends at the place that was drawn.
    result = apply("Cutout", image, rng, magnitude=0.25)
    corners.add(tuple(np.argwhere(result[..., 0] == 128)[-1]))

  assert corners == {(y, x) for y in range(5) for x in range(7)}


def test_the_sixteen_operations_stand_in_the_authors_order():
  assert NAMES == (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize"),
    *("Solarize", "Color", "Contrast", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout"),
    "SolarizeAdd",
  )


def test_layers_are_applied_one_after_the_other():
  posterize, invert = NAMES.index("Posterize"), NAMES.index("Invert")

  result = RandAugment(2, 5)(IMAGE, Draws(posterize, invert))

  np.testing.assert_array_equal(result, 255 - (IMAGE >> 6 << 6))


def test_the_same_randomness_gives_the_same_image():
  def some(seed):
    rng = np.random.default_rng(seed)
    return [RandAugment(2, 15)(IMAGE, rng).tobytes() for _ in range(20)]

  assert some(1) == some(1)
  assert some(1) != some(2)


def test_the_choice_of_contrast_reaches_the_operation():
  draw = NAMES.index("Contrast")

  as_in_paper, fixed = (
    RandAugment(1, 15, contrast)(PHOTO, Draws(draw))
    for contrast in ("paper", "fixed")
  )

  assert (as_in_paper != fixed).any()


@pytest.mark.parametrize(
  ("layers", "magnitude", "message"),
  [
    (2, 31, "magnitude=31 is not within 0..30"),
    (2, -1, "magnitude=-1 is not within 0..30"),
    (-1, 15, "layers must not be negative"),
  ],
)
def test_arguments_out_of_range_are_refused(layers, magnitude, message):
  with pytest.raises(ValueError, match=message):
    RandAugment(layers, magnitude)
