# SPDX-License-Identifier: Apache-2.0
"""Later recipes' augmentation against definitions in NumPy, SciPy and skimage.

Pillow computes it; these tests hold the definitions of torchvision, timm and
DeiT III against it, in other terms.
"""

import numpy as np
import pytest
from photographs import PHOTOGRAPHS
from PIL import Image
from scipy import ndimage, stats
from skimage import color
from test_resize import as_tensorflow_resizes

from mixer.data import augment
from mixer.data.preprocess import parse
from mixer.errors import UserError

BILINEAR = Image.Resampling.BILINEAR
BICUBIC = Image.Resampling.BICUBIC
PHOTOGRAPH = np.ascontiguousarray(PHOTOGRAPHS["rocket"][:200, :300])
MEAN = np.array([124, 116, 104])


def rng(seed=0):
  return np.random.default_rng(seed)


def grey(image):
  """ITU-R 601-2 luma, [h, w, 1]."""
  return np.round(image @ [0.299, 0.587, 0.114])[..., None]


def blend(target, image, factor):
  return np.clip(target + factor * (image.astype(float) - target), 0, 255)


def enhanced(name, image, factor):
  """The image that an enhancement of this factor makes, before truncation."""
  if name == "Brightness":
    return blend(0, image, factor)
  if name == "Contrast":
    return blend(np.round(grey(image).mean()), image, factor)
  if name == "Color":
    return blend(grey(image), image, factor)
  kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
  smooth = image.astype(float)
  inner = ndimage.convolve(smooth, kernel[..., None])
  smooth[1:-1, 1:-1] = np.round(inner[1:-1, 1:-1])
  return blend(smooth, image, factor)


def operate(name, magnitude, sign=1, resampling=BILINEAR, image=PHOTOGRAPH):
  function = augment.OPERATIONS[name]
  picture = Image.fromarray(image)
  return np.asarray(function(picture, magnitude / 10, sign, resampling))


@pytest.mark.parametrize(
  "name", ["Brightness", "Contrast", "Color", "Sharpness"]
)
@pytest.mark.parametrize(
  "magnitude, sign, factor", [(9, 1, 1.81), (9, -1, 0.19), (10, -1, 0.1)]
)
def test_enhancements_move_away_from_1(name, magnitude, sign, factor):
  result = operate(f"{name}Increasing", magnitude, sign)

  # Grey levels are rounded in other places.
  expected = enhanced(name, PHOTOGRAPH, factor)
  assert np.abs(result - expected).max() <= 2.5


LEVELS = np.arange(256)
TABLES = {
  ("Invert", 5): 255 - LEVELS,
  ("PosterizeIncreasing", 2): LEVELS // 16 * 16,
  ("PosterizeIncreasing", 9): LEVELS // 128 * 128,
  ("PosterizeIncreasing", 10): 0 * LEVELS,
  ("SolarizeIncreasing", 0): LEVELS,
  ("SolarizeIncreasing", 9): np.where(LEVELS < 26, LEVELS, 255 - LEVELS),
  ("SolarizeAdd", 9): np.where(
    LEVELS < 128, np.minimum(LEVELS + 99, 255), LEVELS
  ),
}


@pytest.mark.parametrize("name, magnitude", TABLES)
def test_operations_on_single_pixels_follow_a_table(name, magnitude):
  expected = TABLES[name, magnitude][PHOTOGRAPH]

  np.testing.assert_array_equal(operate(name, magnitude), expected)


# The source (x', y') of a pixel (x, y) of an image of 300 x 200, by name.
SOURCES = {
  "ShearX": lambda x, y, d: (x + 0.3 * d * y, y),
  "ShearY": lambda x, y, d: (x, y + 0.3 * d * x),
  "TranslateXRel": lambda x, y, d: (x + 0.45 * d * 300, y),
  "TranslateYRel": lambda x, y, d: (x, y + 0.45 * d * 200),
  "Rotate": lambda x, y, d: (
    150 + (x - 150) * np.cos(d * np.pi / 6) - (y - 100) * np.sin(d * np.pi / 6),
    100 + (x - 150) * np.sin(d * np.pi / 6) + (y - 100) * np.cos(d * np.pi / 6),
  ),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("sign", [1, -1])
def test_movements_interpolate_and_fill_with_the_mean_colour(name, sign):
  y, x = np.mgrid[:200, :300] + 0.5
  source_x, source_y = SOURCES[name](x, y, 0.9 * sign)

  result = operate(name, 9, sign)

  outside = (source_x < 0) | (source_x >= 300) | (source_y < 0)
  outside |= source_y >= 200
  near_edge = ndimage.binary_dilation(outside, iterations=2)
  clear = ndimage.binary_erosion(outside, iterations=2)
  assert (result[clear] == MEAN).all() and clear.mean() > 0.02
  for c in range(3):
    places = [source_y - 0.5, source_x - 0.5]
    expected = ndimage.map_coordinates(
      PHOTOGRAPH[..., c].astype(float), places, order=1, mode="nearest"
    )
    error = np.abs(result[..., c] - expected)[~near_edge]
    assert error.max() < 2


def test_draws_of_randaug_timm_are_those_of_its_description(monkeypatch):
  draws = []

  def recorder(name):
    def record(picture, *arguments):
      draws.append((name, *arguments))
      return picture

    return record

  names = [*augment.OPERATIONS]
  monkeypatch.setattr(
    augment, "OPERATIONS", {name: recorder(name) for name in names}
  )
  transform = parse("randaug_timm(2, 9)")
  for seed in range(4_000):
    transform(PHOTOGRAPH[:4, :4], rng(seed))

  chosen, levels, signs, resamplings = zip(*draws, strict=True)
  assert stats.binomtest(len(draws), 8_000, 0.5).pvalue > 0.001
  counts = [chosen.count(name) for name in names]
  assert stats.chisquare(counts).pvalue > 0.001
  for values, one in (signs, 1), (resamplings, BICUBIC):
    count = values.count(one)
    assert stats.binomtest(count, len(draws), 0.5).pvalue > 0.001
  levels = np.array(levels)
  cut = stats.binomtest(int((levels == 1).sum()), len(levels), stats.norm.sf(2))
  assert cut.pvalue > 0.001 and levels.max() == 1
  below = stats.truncnorm(-18, 2, 0.9, 0.05).cdf
  assert stats.kstest(levels[levels < 1], below).pvalue > 0.001


def test_color_jitter_applies_torchvisions_definition_in_random_order():
  orders = set()
  image = PHOTOGRAPH[::8, ::8]
  for seed in range(40):
    draws = rng(seed)
    order = draws.permutation(4)
    expected = image.astype(float)
    for change in order[order < 3]:  # hue is off
      factor = draws.uniform(0.6, 1.4)
      name = ("Brightness", "Contrast", "Color")[change]
      expected = np.trunc(enhanced(name, expected, factor))
    orders.add(tuple(order[order < 3]))

    jittered = parse("color_jitter(0.4, 0.4, 0.4)")(image, rng(seed))

    assert np.abs(jittered - expected).max() <= 4
  assert len(orders) == 6
  dark = parse("color_jitter(brightness=3)")
  factors = [dark(np.full((1, 1, 3), 50, np.uint8), rng(i)) for i in range(999)]
  assert np.mean(np.equal(factors, 0)) < 0.05 and np.max(factors) >= 198


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.1, 0.5])
def test_hue_turns_on_the_colour_circle(turn):
  colours = rng().integers(256, size=(8, 8, 3), dtype=np.uint8)

  shifted = augment.shift_hue(Image.fromarray(colours), turn)

  hsv = color.rgb2hsv(colours)
  hsv[..., 0] = (hsv[..., 0] + turn) % 1
  error = np.asarray(shifted) - 255 * color.hsv2rgb(hsv)
  assert np.abs(error).max() < 16  # hues are 8 bits


def test_three_augment_draws_grey_solarised_or_blurred():
  image = PHOTOGRAPH[50:100, 50:100]
  solarised = np.where(image < 128, image, 255 - image)
  # The energy of a photograph's details falls with the radius.
  details = [
    np.abs(image - ndimage.gaussian_filter(image.astype(float), (r, r, 0)))
    for r in (0.1, 1, 2)
  ]
  blurs, counts = [], np.zeros(3, int)
  for seed in range(200):
    result = parse("three_augment")(image, rng(seed)).astype(float)
    if np.ptp(result, axis=-1).max() == 0:
      assert np.abs(result - grey(image)).max() <= 1
      counts[0] += 1
    elif (result == solarised).all():
      counts[1] += 1
    else:
      blurs.append(np.abs(result - image).mean())
      counts[2] += 1
  assert stats.chisquare(counts).pvalue > 0.001
  least, middle, most = (x.mean() for x in details)
  assert min(blurs) < least + 0.5 and max(blurs) < most + 1
  assert 0.3 < np.mean(blurs > middle) < 0.7


BOXES = {
  augment.RandomResizedCrop(8): ((0.08, 1), 4 / 3),
  augment.RandomErasingTimm(): ((0.02, 1 / 3), 10 / 3),
}


@pytest.mark.parametrize("op", BOXES, ids=["crop", "erasing"])
def test_boxes_have_uniform_areas_and_log_ratios(op):
  areas, most = BOXES[op]
  areas = rng(1).uniform(*areas, 10_000)
  ratios = most ** rng(2).uniform(-1, 1, 10_000)
  fits = areas * np.maximum(ratios, 1 / ratios) <= 1

  y, x, h, w = np.array(
    [op.sample(2000, 2000, rng(seed)) for seed in range(3_000)]
  ).T

  assert stats.ks_2samp(h * w / 2000**2, areas[fits]).pvalue > 0.001
  assert stats.ks_2samp(h / w, ratios[fits]).pvalue > 0.001
  for places, sizes in (y, h), (x, w):
    places = (places + 0.5) / (2001 - sizes)
    assert stats.kstest(places, "uniform").pvalue > 0.001


def test_random_resized_crop_takes_the_middle_where_no_box_fits():
  op = augment.RandomResizedCrop(8, area_min=99)

  assert op.sample(100, 900, rng()) == (0, 383, 100, 133)
  assert op.sample(900, 100, rng()) == (383, 0, 133, 100)


def test_random_resized_crop_is_antialiased():
  image = PHOTOGRAPH[:, :200]
  crop = parse("random_resized_crop((50, 75), 100)")  # no other box fits

  expected = as_tensorflow_resizes(image, 50, 75, "bicubic", True)
  error = np.abs(crop(image, rng()) - expected.astype(float))
  assert error.max() <= 2  # Pillow rounds where TensorFlow truncates


def test_random_erasing_timm_covers_a_box_with_imagenets_noise():
  image = np.full((224, 224, 3), 255, np.uint8)
  erase = parse("random_erasing_timm(0.25)")
  results = [erase(image, rng(seed)) for seed in range(400)]
  erased = [result for result in results if result is not image]

  assert stats.binomtest(len(erased), 400, 0.25).pvalue > 0.001
  assert (image == 255).all()
  noise = np.concatenate([x[(x < 255).any(axis=-1)] for x in erased])
  deviations = (noise / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  is_middle = np.abs(deviations) < 1.5
  expected = 1 - 2 * stats.norm.sf(1.5)
  assert np.abs(is_middle.mean(axis=0) - expected).max() < 0.005
  assert np.abs(deviations.mean(axis=0, where=is_middle)).max() < 0.01


@pytest.mark.parametrize(
  "spec",
  [
    "color_jitter(-0.1)",
    "color_jitter(0, 0, 0, 0.6)",
    "randaug_timm(-1)",
    "randaug_timm(2, 15)",
    "randaug_timm(2, 9, -0.5)",
    "randaug_timm(2, 9, 0.5, 1.5)",
    "randaug_timm(interpolation='nearest')",
    "random_resized_crop(224, 0)",
    "random_erasing_timm(2)",
    "three_augment(2)",
  ],
)
def test_arguments_out_of_range_are_refused(spec):
  with pytest.raises(UserError, match="Cannot read"):
    parse(spec)
