# SPDX-License-Identifier: Apache-2.0
"""RandAugment against the authors' pixels, Pillow and formulas.

That operations and signs are equally frequent, tests/test_fidelity.py shows.
"""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.fidelity.stages import GOLDENS
from mixer.data.randaugment import NAMES, RandAugment, apply

# Pixels of big_vision's autoaugment.py, by "operation/magnitude/sign".
AUTHORS = dict(np.load(GOLDENS / "randaugment.npz"))
GRID = AUTHORS.pop("image")


def picture(h, w):
  y, x = np.mgrid[:h, :w]
  texture = (x * 7919 + y * 104729 + x * y * 31) % 251
  red, green = x * 255 // (w - 1), y * 200 // (h - 1) + 20
  channels = [red, green, texture * 3 // 4 + 16]
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


@pytest.mark.parametrize("key", AUTHORS)
def test_every_pixel_is_that_of_the_authors(key):
  name, magnitude, sign = key.split("/")
  draws = [40, 90] if name == "Cutout" else [PLUS if sign == "1" else MINUS]

  result = run(name, GRID, int(magnitude), draws)

  np.testing.assert_array_equal(result, AUTHORS[key])


def test_all_sixteen_operations_are_recorded():
  assert {key.partition("/")[0] for key in AUTHORS} == {*NAMES}
  assert len(NAMES) == 16


def test_autocontrast_leaves_a_flat_channel_alone():
  image = IMAGE.copy()
  image[..., 1] = 77

  assert (run("AutoContrast", image)[..., 1] == 77).all()


@pytest.mark.parametrize("image", [IMAGE, IMAGE[:9, :9], IMAGE * 0])
def test_equalize_is_pillows(image):
  expected = ImageOps.equalize(Image.fromarray(image))

  np.testing.assert_array_equal(run("Equalize", image), expected)


@pytest.mark.parametrize(
  ("magnitude", "bits"), [(5, 2), (20, 8), (0, 1), (23, 1), (30, 1)]
)
def test_posterize_is_pillows_and_never_leaves_less_than_a_bit(magnitude, bits):
  expected = ImageOps.posterize(Image.fromarray(IMAGE), bits)

  np.testing.assert_array_equal(run("Posterize", IMAGE, magnitude), expected)


@pytest.mark.parametrize("magnitude", [0, 5, 15])
def test_fixed_contrast_is_pillows_within_rounding(magnitude):
  factor = magnitude / 10 * 1.8 + 0.1
  expected = ImageEnhance.Contrast(Image.fromarray(PHOTO)).enhance(factor)

  result = run("Contrast", PHOTO, magnitude, contrast="fixed")

  # The level to blend with may be rounded differently, by 1, which counts
  # |1 - factor| times.
  bound = 1 + abs(1 - factor)
  np.testing.assert_allclose(result, np.array(expected, int), atol=bound)


def test_fixed_contrast_blends_with_the_mean_not_the_median():
  image = np.zeros((10, 10, 3), np.uint8)
  image[0] = 250  # mean 25

  result = run("Contrast", image, magnitude=0, contrast="fixed")

  assert (result[0] == 47).all()  # 25 + 0.1 * 225, truncated
  assert (result[1:] == 22).all()  # 25 - 0.1 * 25, truncated


@pytest.mark.parametrize(
  ("h", "w", "level"), [(224, 224, 196), (16, 16, 1), (300, 300, 255)]
)
def test_the_papers_contrast_blends_with_a_level_set_by_the_size(h, w, level):
  image = picture(h, w)

  result = run("Contrast", image, magnitude=15)

  mixed = level + 2.8 * (image.astype(float) - level)
  np.testing.assert_allclose(result, np.clip(mixed, 0, 255), atol=1)


def test_the_cutout_may_be_anywhere():
  rng = np.random.default_rng(0)
  image = np.zeros((5, 7, 3), np.uint8)

  corners = set()
  for _ in range(1000):
    # Half a side is 1: the square ends at the place that was drawn.
    result = apply("Cutout", image, rng, magnitude=0.25)
    corners.add(tuple(np.argwhere(result[..., 0] == 128)[-1]))

  assert corners == {(y, x) for y in range(5) for x in range(7)}


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
