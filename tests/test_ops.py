# SPDX-License-Identifier: Apache-2.0
"""Image operations agree with TensorFlow's, and say what they cannot read."""

import cv2
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from sklearn.datasets import load_sample_images

from mixer.data import ops
from mixer.errors import UserError


@pytest.fixture(scope="module")
def photographs():
  return load_sample_images().images


def rng(seed=0):
  return np.random.default_rng(seed)


def numbered(height, width):
  """An image whose every pixel tells its place: (y, x, 0)."""
  y, x = np.mgrid[0:height, 0:width]
  return np.stack([y, x, 0 * x], axis=-1).astype(np.uint8)


def as_tensorflow_resizes(image, height, width, method):
  resized = tf.image.resize(image, (height, width), method)
  return tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8).numpy()


def assert_close(ours, theirs):
  difference = ours.astype(int) - theirs.astype(int)
  assert np.abs(difference).mean() <= 0.5
  assert abs(difference.mean()) <= 0.1
  assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("method", ["bilinear", "area"])
@pytest.mark.parametrize(
  "height, width",
  [(224, 224), (256, 384), (213, 320), (448, 448), (600, 500), (1000, 1500)],
)
def test_resize_agrees_with_tensorflow(photographs, method, height, width):
  resize = ops.parse(f"resize(({height}, {width}), method='{method}')")

  for photograph in photographs:
    ours = resize(photograph, rng())

    assert ours.dtype == np.uint8
    theirs = as_tensorflow_resizes(photograph, height, width, method)
    assert_close(ours, theirs)


def test_resizing_cuts_fractions_off():
  image = np.array([[0, 1]], np.uint8)[..., None].repeat(3, axis=-1)

  for method in "bilinear", "area":
    resized = ops.resize_image(image, 1, 1, method)

    assert resized.reshape(-1, 3).tolist() == [[0, 0, 0]]


def test_resizing_leaves_a_flat_image_flat():
  image = np.full((333, 517, 3), 200, np.uint8)

  resized = ops.parse("resize(224)")(image, rng())

  np.testing.assert_array_equal(resized, 200)


@pytest.mark.parametrize(
  "height, width", [(427, 640), (640, 427), (333, 517), (99, 150), (75, 250)]
)
def test_resize_small_rounds_sides_as_tensorflow_does(height, width):
  image = rng().integers(256, size=(height, width, 3), dtype=np.uint8)
  factor = tf.cast(100, tf.float32) / tf.cast(min(height, width), tf.float32)
  expected = [
    int(tf.round(tf.cast(side, tf.float32) * factor))
    for side in (height, width)
  ]

  resized = ops.parse("resize_small(100)")(image, rng())

  assert list(resized.shape[:2]) == expected
  assert_close(resized, as_tensorflow_resizes(image, *expected, "area"))


def test_resize_small_rounds_halves_to_even():
  resized = ops.parse("resize_small(2)")(numbered(4, 5), rng())

  assert resized.shape == (2, 2, 3)


def test_the_usual_evaluation_agrees_with_tensorflow(photographs):
  evaluate = ops.parse("resize_small(256) | central_crop(224)")

  for photograph in photographs:
    h, w = 256, round(photograph.shape[1] * 256 / photograph.shape[0])
    theirs = as_tensorflow_resizes(photograph, h, w, "area")
    theirs = theirs[16:240, (w - 224) // 2 : (w - 224) // 2 + 224]

    assert_close(evaluate(photograph, rng()), theirs)


def test_central_crop_rounds_its_corner_down():
  cropped = ops.parse("central_crop((4, 2))")(numbered(7, 5), rng())

  assert cropped.shape == (4, 2, 3)
  assert cropped[0, 0].tolist() == [1, 1, 0]


def test_random_crop_reaches_every_place_equally():
  crop, image, generator = ops.parse("random_crop(8)"), numbered(10, 9), rng()

  corners = [crop(image, generator)[0, 0] for _ in range(3000)]

  places, counts = np.unique(corners, axis=0, return_counts=True)
  assert places[:, :2].tolist() == [[y, x] for y in range(3) for x in range(2)]
  assert stats.chisquare(counts).pvalue > 1e-3


def test_flip_mirrors_every_second_image():
  flip, image, generator = ops.parse("flip"), numbered(2, 3), rng()

  images = np.array([flip(image, generator) for _ in range(1000)])

  mirrored = images[:, 0, 0, 1] == 2
  assert 450 < mirrored.sum() < 550
  assert (images[mirrored] == image[:, ::-1]).all()
  assert (images[~mirrored] == image).all()


def test_pad_adds_a_border_of_one_value():
  padded = ops.parse("pad(2, value=7)")(numbered(3, 4), rng())

  assert padded.shape == (7, 8, 3)
  np.testing.assert_array_equal(padded[2:-2, 2:-2], numbered(3, 4))
  assert np.unique(padded[:2]).tolist() == [7]


@pytest.mark.parametrize(
  "height, width, area_min", [(375, 500, 5), (500, 333, 8), (32, 32, 30)]
)
def test_inception_crops_are_distributed_as_tensorflow_draws_them(
  height, width, area_min
):
  draws = 3000
  crop = ops.InceptionCrop(224, area_min=area_min)
  generator = rng(1)

  @tf.function
  def tensorflow_box(i):
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
      [height, width, 3],
      tf.zeros([0, 0, 4], tf.float32),
      seed=[i, 1],
      min_object_covered=0,
      aspect_ratio_range=(0.75, 1.33),
      area_range=(area_min / 100, 1),
      use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)

  theirs = tf.map_fn(tensorflow_box, tf.range(draws)).numpy()
  ours = np.array([crop.sample(height, width, generator) for _ in range(draws)])

  for name, measure in {
    "y": lambda box: box[:, 0],
    "x": lambda box: box[:, 1],
    "height": lambda box: box[:, 2],
    "width": lambda box: box[:, 3],
    "ratio": lambda box: box[:, 3] / box[:, 2],
    "area": lambda box: box[:, 3] * box[:, 2],
  }.items():
    pvalue = stats.ks_2samp(measure(ours), measure(theirs)).pvalue
    assert pvalue > 1e-3, name
  for box in ours, theirs:
    assert (box[:, 0] + box[:, 2]).max() <= height
    assert (box[:, 1] + box[:, 3]).max() <= width


def test_inception_crop_takes_the_whole_image_where_no_box_fits():
  crop = ops.InceptionCrop(8, area_min=99, ratio_min=0.75, ratio_max=0.76)

  assert crop.sample(100, 400, rng()) == (0, 0, 100, 400)


def test_inception_crop_resizes_what_it_cut_out(photographs):
  spec = "inception_crop((20, 30), area_min=100, ratio_min=1.4, ratio_max=1.6)"
  theirs = as_tensorflow_resizes(photographs[0], 20, 30, "bilinear")

  cropped = ops.parse(spec)(photographs[0], rng(3))

  assert cropped.shape == (20, 30, 3)
  # Nearly the whole image is left, so the two look nearly the same.
  assert np.corrcoef(cropped.ravel(), theirs.ravel())[0, 1] > 0.95


def test_randaug_is_one_of_the_ops():
  image = rng().integers(256, size=(32, 32, 3), dtype=np.uint8)
  distort = ops.parse("flip | randaug(2, 15, contrast='fixed')")

  distorted = distort(image, rng(1))

  assert distorted.shape == image.shape
  assert distorted.dtype == np.uint8
  np.testing.assert_array_equal(distorted, distort(image, rng(1)))


@pytest.mark.parametrize("channels", [1, 3])
def test_decoding_png_agrees_with_tensorflow(photographs, channels):
  picture = photographs[0][..., :channels]
  data = cv2.imencode(".png", picture)[1].tobytes()

  decoded = ops.decode(data)

  theirs = tf.io.decode_image(data, channels=3).numpy()
  np.testing.assert_array_equal(decoded, theirs)


@pytest.mark.parametrize("channels", [1, 3])
def test_decoding_jpeg_agrees_with_tensorflow(photographs, channels):
  picture = photographs[0][..., :channels]
  data = cv2.imencode(".jpg", picture)[1].tobytes()

  decoded = ops.decode(data).astype(int)

  accurate = tf.io.decode_jpeg(data, 3, dct_method="INTEGER_ACCURATE").numpy()
  assert np.abs(decoded - accurate).mean() < 0.1
  # TensorFlow's default trades accuracy for time.
  default = tf.io.decode_image(data, channels=3).numpy()
  assert np.abs(decoded - default).mean() < 1.5


def test_decoding_drops_transparency_without_blending():
  picture = rng().integers(256, size=(9, 7, 4), dtype=np.uint8)
  data = cv2.imencode(".png", picture)[1].tobytes()

  decoded = ops.decode(data)

  np.testing.assert_array_equal(decoded, picture[..., 2::-1])


def test_decoding_ignores_the_orientation_a_camera_noted():
  exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
  exif += b"\0\0\0\0"
  jpeg = cv2.imencode(".jpg", numbered(8, 16))[1].tobytes()
  length = (len(exif) + 2).to_bytes(2, "big")
  turned = jpeg[:2] + b"\xff\xe1" + length + exif + jpeg[2:]
  assert cv2.imdecode(np.frombuffer(turned, np.uint8), 1).shape == (16, 8, 3)

  assert ops.decode(turned).shape == (8, 16, 3)


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_cannot_be_decoded_is_named(data):
  with pytest.raises(ValueError, match=f"Cannot decode {len(data)} bytes"):
    ops.decode(data)


@pytest.mark.parametrize(
  "spec, said",
  [
    ("flip | resise(8)", "character 8 .*no op 'resise'; did you mean 'resize'"),
    ("resize(8, methd='area')", "no argument 'methd'.*did you mean 'method'"),
    ("resize(8, method='cubic')", "not one of 'bilinear', 'area'"),
    ("resize()", "missing a required argument: 'size'.*write resize"),
    ("resize(8, 'area', 3)", "too many positional"),
    ("resize('8')", "size='8' is not a whole number of pixels above 0"),
    ("resize(0)", "size=0 is not a whole number"),
    ("resize((8, 8, 8))", r"pair \(height, width\)"),
    ("resize(True)", "size=True is not"),
    ("resize(size)", "size is not a plain number, text or tuple"),
    ("resize(*[8])", "not a plain number"),
    ("flip | resize((8, 8)", "character 14 .*bracket is never closed"),
    ("resize(8]", "character 9 .*closes nothing"),
    ("flip)", "character 5 .*closes nothing"),
    ("resize(8, 'area)", "never closed"),
    ("flip || resize(8)", "character 7 .*no op here"),
    ("", "no op here"),
    ("resize(8) flip", "write an op as name"),
    ("a.flip", "write an op as name"),
    ("inception_crop(8, area_min=200)", "area_min and area_max must rise"),
    ("pad(1, value=300)", "value must lie within 0..255"),
    ("randaug(2, 99)", "magnitude=99"),
  ],
)
def test_an_unreadable_spec_says_where_and_what_would_do(spec, said):
  with pytest.raises(UserError, match=said):
    ops.parse(spec)


def test_bars_and_commas_inside_quotes_do_not_split():
  with pytest.raises(UserError, match=r"'resize\(8, \"a\|b\"\)'|a\|b"):
    ops.parse('flip | resize(8, "a|b") | flip')


def test_a_crop_larger_than_the_image_names_both_sizes():
  for name in "random_crop", "central_crop":
    with pytest.raises(
      UserError, match="8 x 9 pixels out of an image of 7 x 9"
    ):
      ops.parse(f"{name}((8, 9))")(numbered(7, 9), rng())
