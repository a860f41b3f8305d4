# SPDX-License-Identifier: Apache-2.0
"""Image operations, their distributions, and unreadable specs.

tests/test_fidelity.py compares the recipes' operations with the authors'.
"""

import numpy as np
import pytest
from photographs import PHOTOGRAPHS, encoded
from scipy import stats
from test_resize import as_tensorflow_resizes

from benchmarks.input.parity import tensorflow_boxes
from mixer.data import pp_parser, preprocess
from mixer.data.decode import decode
from mixer.errors import UserError


def rng(seed=0):
  return np.random.default_rng(seed)


def numbered(height, width):
  """An image whose every pixel tells its place: (y, x, 0)."""
  y, x = np.mgrid[0:height, 0:width]
  return np.stack([y, x, 0 * x], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
  "spec, method, antialias",
  [
    ("resize((99, 55), 'area')", "area", False),
    ("resize((99, 55), 'bicubic', antialias=True)", "bicubic", True),
    # Whose only box is the whole image.
    ("inception_crop((99, 55), 100, antialias=True)", "bilinear", True),
  ],
)
def test_an_op_hands_its_arguments_on(spec, method, antialias):
  photograph = PHOTOGRAPHS["rocket"]

  resized = preprocess.parse(spec)(photograph, rng())

  expected = as_tensorflow_resizes(photograph, 99, 55, method, antialias)
  np.testing.assert_array_equal(resized, expected)


def test_resize_small_rounds_halves_to_even():
  resized = preprocess.parse("resize_small(2)")(numbered(4, 5), rng())

  assert resized.shape == (2, 2, 3)


def test_crops_and_pads_are_where_they_should_be():
  cut = preprocess.parse("\n pad(0)\n | central_crop(\n(4, 2))\n")
  cropped = cut(numbered(7, 5), rng())
  padded = preprocess.parse("pad(2, value=7)")(numbered(3, 4), rng())

  assert cropped.shape == (4, 2, 3)
  assert cropped[0, 0].tolist() == [1, 1, 0]
  assert padded.shape == (7, 8, 3)
  np.testing.assert_array_equal(padded[2:-2, 2:-2], numbered(3, 4))
  assert np.unique(padded[:2]).tolist() == [7]


def test_random_crop_reaches_every_place_equally():
  crop, image = preprocess.parse("random_crop(8)"), numbered(10, 9)
  generator = rng()

  corners = [crop(image, generator)[0, 0] for _ in range(3000)]

  places, counts = np.unique(corners, axis=0, return_counts=True)
  assert places[:, :2].tolist() == [[y, x] for y in range(3) for x in range(2)]
  assert stats.chisquare(counts).pvalue > 1e-3


def test_flip_mirrors_every_second_image():
  flip, image, generator = preprocess.parse("flip"), numbered(2, 3), rng()

  images = np.array([flip(image, generator) for _ in range(1000)])

  mirrored = images[:, 0, 0, 1] == 2
  assert 450 < mirrored.sum() < 550
  assert (images[mirrored] == image[:, ::-1]).all()
  assert (images[~mirrored] == image).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
  "spec",
  [
    "inception_crop(64) | flip",
    "random_resized_crop((64, 32), interpolation='random') | flip",
    "resize_small(64) | random_crop(32)",
  ],
)
def test_a_crop_that_comes_first_is_that_of_the_whole_image(spec, kind):
  data, ops = encoded(PHOTOGRAPHS["coffee"], kind), preprocess.parse(spec)
  for seed in range(20):
    loaded = ops.load(data, 10**6, rng(seed))

    np.testing.assert_array_equal(loaded, ops(decode(data), rng(seed)))


@pytest.mark.parametrize(
  ("op", "far"), [("inception_crop", 15), ("random_resized_crop", 9)]
)
def test_a_crop_of_a_reduced_image_looks_alike(op, far):
  data = encoded(PHOTOGRAPHS["coffee"], "JPEG", quality=95)
  full, scaled = (
    preprocess.parse(f"{op}(32{x})") for x in ("", ", scaled=True")
  )
  distances = [
    np.abs(scaled.load(data, 10**6, rng(seed)) - expected.astype(int)).mean()
    for seed in range(20)
    for expected in [full.load(data, 10**6, rng(seed))]
  ]

  assert 0 < np.mean(distances) < far


def assert_same_distribution(ours, theirs):
  """Compares places, sides, shapes and areas of boxes (y, x, h, w), [n, 4]."""
  measures = [
    np.column_stack([box, box[:, 3] / box[:, 2], box[:, 3] * box[:, 2]])
    for box in (ours, theirs)
  ]
  pvalues = stats.ks_2samp(*measures).pvalue  # of each column
  assert (pvalues > 1e-3).all(), pvalues


@pytest.mark.parametrize(
  "height, width, area_min", [(500, 333, 8), (32, 32, 30)]
)
def test_crops_of_other_least_areas_are_distributed_as_tensorflow_draws_them(
  height, width, area_min
):
  crop, generator = preprocess.InceptionCrop(224, area_min=area_min), rng(1)

  theirs = tensorflow_boxes(height, width, area_min, draws=1500)
  ours = np.array([crop.sample(height, width, generator) for _ in range(1500)])

  assert_same_distribution(ours, theirs)


def test_inception_crop_takes_the_whole_image_where_no_box_fits():
  crop = preprocess.InceptionCrop(
    8, area_min=99, ratio_min=0.75, ratio_max=0.76
  )

  assert crop.sample(100, 400, rng()) == (0, 0, 100, 400)


def test_random_erasing_covers_a_box_of_a_quarter_of_the_images():
  image, generator = np.full((60, 80, 3), 9, np.uint8), rng()
  erase = preprocess.parse("random_erasing(fill=77)")

  results = [erase(image, generator) for _ in range(2000)]

  hit = [result for result in results if result is not image]
  assert 420 < len(hit) < 580
  assert (image == 9).all()
  for result in hit:
    changed = (result != image).any(axis=-1)
    box = np.ix_(changed.any(axis=1), changed.any(axis=0))
    assert changed[box].all() and (result[box] == 77).all()


def test_random_erasing_is_distributed_as_algorithm_1_draws():
  erase, generator = preprocess.RandomErasing(), rng(1)
  numpys = np.random.RandomState(2)
  height, width, boxes = 150, 200, []
  while len(boxes) < 3000:
    area = numpys.uniform(0.02, 0.33) * height * width
    ratio = numpys.uniform(0.3, 1 / 0.3)
    h, w = (area * ratio) ** 0.5, (area / ratio) ** 0.5
    y, x = numpys.uniform(0, height), numpys.uniform(0, width)
    if y + h <= height and x + w <= width:
      boxes.append((y, x, h, w))

  ours = [erase.sample(height, width, generator) for _ in range(3000)]

  # Half a pixel either way, which rounding took.
  ours = np.array(ours) + rng(3).uniform(0, 1, (3000, 4)) - [0, 0, 0.5, 0.5]
  assert_same_distribution(ours, np.array(boxes))


def test_random_erasing_leaves_an_image_where_no_box_fits():
  image = numbered(1, 200)

  result = preprocess.parse("random_erasing(1, ratio_min=1)")(image, rng())

  np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize(
  "spec, size",
  [
    ("pad(1000000000)", "2000000003 x 2000000004"),
    ("resize(100000)", "100000 x 100000"),
    ("resize_small(20000)", "20000 x 26667"),
  ],
)
def test_enormous_images_are_refused_before_they_fill_the_memory(spec, size):
  with pytest.raises(UserError, match=f"make an image of {size} pixels"):
    preprocess.parse(spec)(numbered(3, 4), rng())


def test_an_op_takes_no_other_s_name():
  with pytest.raises(UserError, match=f"{__name__} and mixer.* an op 'flip'"):
    pp_parser.op("flip")(type("Mine", (), {}))


@pytest.mark.parametrize(
  "spec, message",
  [
    ("flip | resise(8)", "character 8 .*no op 'resise'; did you mean resize"),
    ("resize(8, methd='area')", "no argument 'methd'.*did you mean method"),
    ("resize(8, method='cubic')", "not 'bilinear' or 'bicubic' or 'area'"),
    ("resize()", "missing a required argument: 'size'.*write resize"),
    ("resize(8, 'area', False, 3)", "too many positional"),
    ("resize('8')", "size='8' is not a whole number of pixels above 0"),
    ("resize((8, 8, 8))", r"pair \(height, width\)"),
    ("resize(True)", "size=True is not"),
    ("resize(size)", "size is not a plain number, text or tuple"),
    ("resize(*[8])", "not a plain number"),
    ("flip | resize((8, 8)", "character 14: .*never closed.*write an op as"),
    ("resize(8]", "character 9: .*does not match"),
    ("resize(8, 'area)", "character 11: unterminated string"),
    ("flip || resize(8)", "character 7: .*separate ops by one"),
    ("", "invalid syntax; write an op as name"),
    ("resize(8) flip", "write an op as name"),
    ("a.flip", "write an op as name"),
    ("inception_crop(8, area_min=200)", "area_min and area_max must rise"),
    ("pad(1, value=300)", "value must lie within 0..255"),
    ("resize(8, antialias=1)", "antialias=1 is not True or False"),
    ("resize_small(0)", "size must be above 0"),
    ("random_erasing(1.5)", "probability must lie within 0..1"),
    ("random_erasing(ratio_min=2)", "ratio_min must lie above 0"),
    ("random_erasing(fill=256)", "fill must be 'noise' or lie within"),
    ("random_erasing(fill='grey')", "is not 'noise' or a whole number"),
    ("randaug(2, 99)", "character 1 .*magnitude=99"),
    ("resize(size=8, size=9)", "character 1 .*once, as name=value"),
    ("resize(**{'size': 8})", "character 1 .*once, as name=value"),
    ("flip | resize(8, 'a|b') | flip", "character 8 .*method='a|b' is not"),
  ],
)
def test_an_unreadable_spec_says_where_and_how_to_write_it(spec, message):
  with pytest.raises(UserError, match=message):
    preprocess.parse(spec)


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda image: image / 2, r"float64 \[480, 640, 3\]"),
    (lambda image: image[..., :1], r"uint8 \[480, 640, 1\]"),
    (lambda image: image[..., 0], r"uint8 \[480, 640\]"),
    (lambda image: None, r"object \[\]"),
  ],
)
def test_an_op_that_returns_no_uint8_image_is_named(monkeypatch, change, words):
  monkeypatch.setattr(pp_parser, "OPS", {**pp_parser.OPS})

  @pp_parser.op("broken")
  class Broken:
    def __call__(self, image, rng):
      return change(image)

  with pytest.raises(
    UserError, match=rf"test image.*Broken\(\) returns {words}"
  ):
    preprocess.output_size("flip | broken | resize(8)")


def test_a_crop_larger_than_the_image_names_both_sizes():
  for name in "random_crop", "central_crop":
    with pytest.raises(
      UserError, match="8 x 9 pixels out of an image of 7 x 9"
    ):
      preprocess.parse(f"{name}((8, 9))")(numbered(7, 9), rng())


def test_an_image_too_long_for_opencv_is_an_error_of_that_image():
  image = np.zeros((1, 60_000, 3), np.uint8)
  warp = preprocess.parse("randaug(8, 15)")

  with pytest.raises(ValueError, match="RandAug.* image of 1 x 60000 pixels"):
    for seed in range(99):
      warp(image, rng(seed))
