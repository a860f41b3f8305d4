# SPDX-License-Identifier: Apache-2.0
"""Pixels and random draws compared with TensorFlow's."""

import collections
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import tensorflow as tf
from scipy import stats

from benchmarks.input.photos import encode, photographs
from mixer.data import preprocess, randaugment
from mixer.data.decode import decode
from mixer.tools.table import render
from mixer.training.step import normalise

BOXES = 10  # of inception crops, in every photograph
# (method, antialias)
RESIZES = [(x, False) for x in ("bilinear", "bicubic", "area")]
RESIZES += [(x, True) for x in ("bilinear", "bicubic")]
DRAWS = 10_000
SIZES = ((375, 500), (500, 333))
# Functions of boxes (y, x, h, w), [n, 4].
MEASURES = {
  "area": lambda box: box[:, 2] * box[:, 3],
  "ratio": lambda box: box[:, 3] / box[:, 2],
  "height": lambda box: box[:, 2],
  "width": lambda box: box[:, 3],
  "y": lambda box: box[:, 0],
  "x": lambda box: box[:, 1],
}

# Maps an encoded image to an array.
Read = Callable[[bytes], np.ndarray]


def pixels(folder: Path) -> str:
  """Pixels against TensorFlow's operations, which the authors' code calls.

  Each operation begins with the same JPEG on both sides; differences are in
  levels of 255, over scikit-image's photographs.
  """
  images = photographs().values()
  files = [encode(image, ".jpg") for image in images]
  rows = [_compare(*operation, files) for operation in _operations()]
  files = [encode(image, ".png") for image in images]
  png = _compare("decode PNG", "tf.io.decode_image", decode, _decode, files)
  rows.insert(1, png)
  head = "operation", "reference", "mean", "bias", "differ", "by 2 or more"
  return render((*head, "largest"), rows)


def _compare(
  name: str, reference: str, ours: Read, theirs: Read, files: list[bytes]
) -> tuple[str, ...]:
  """Pools the differences of all files, each pixel counting once."""
  difference = np.concatenate(
    [
      (ours(data).astype(np.float64) - np.asarray(theirs(data))).ravel()
      for data in files
    ]
  )
  levels, bias = np.abs(difference), difference.mean()
  # Values on -1..1 are float32, and no whole levels.
  shares = [f"{(levels >= least).mean():.2g}" for least in (0.5, 1.5)]
  means = f"{levels.mean():.5f}", f"{bias:+.5f}"
  return name, reference, *means, *shares, f"{levels.max():.3g}"


def _operations() -> Iterator[tuple[str, str, Read, Read]]:
  yield "decode JPEG", "tf.io.decode_image", decode, _decode
  for size in 224, 448:
    for method, antialias in RESIZES:
      yield (
        f"resize({size}), {method}{', antialias' if antialias else ''}",
        "tf.image.resize",
        _ours(f"resize({size}, {method!r}, {antialias})"),
        lambda data, size=size, method=method, antialias=antialias: _resize(
          _decode(data), size, size, method, antialias
        ),
      )
  for spec, theirs in {
    "resize_small(256)": _resize_small,
    "resize_small(256) | central_crop(224)": _evaluate,
  }.items():
    name = spec.replace(" |", ",")  # a bar would end a cell of the table
    yield name, "tf.image.resize, area", _ours(spec), theirs
  for reference, part in {
    "tf.image.decode_and_crop_jpeg": _decode_part,
    "tf.io.decode_image, slice": _part_of_decoded,
  }.items():
    yield (
      f"inception_crop(224), {BOXES} boxes",
      f"{reference}, resize",
      _inception_crops,
      lambda data, part=part: _inception_crops_of_tensorflow(data, part),
    )
  yield (
    "value range -1..1",
    "x / 255 * 2 - 1",
    lambda data: np.asarray(normalise(decode(data))) * 127.5,
    lambda data: (tf.cast(_decode(data), tf.float32) / 255 * 2 - 1) * 127.5,
  )


def _ours(spec: str) -> Read:
  operation = preprocess.parse(spec)
  return lambda data: operation(decode(data), None)


def _decode(data: bytes) -> tf.Tensor:
  return tf.io.decode_image(data, channels=3, expand_animations=False)


def _resize(image, height, width, method, antialias=False) -> np.ndarray:
  """Resizes, clips and casts, as in the authors' pp/ops_image.py."""
  size = (height, width)
  resized = tf.image.resize(image, size, method, antialias=antialias)
  return tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8).numpy()


def _resize_small(data: bytes) -> np.ndarray:
  image = _decode(data)
  sides = tf.cast(tf.shape(image)[:2], tf.float32)
  height, width = tf.round(sides * (256 / tf.reduce_min(sides)))
  return _resize(image, int(height), int(width), "area")


def _evaluate(data: bytes) -> tf.Tensor:
  image = _resize_small(data)
  y, x = (image.shape[0] - 224) // 2, (image.shape[1] - 224) // 2
  return tf.image.crop_to_bounding_box(image, y, x, 224, 224)


def _inception_crops(data: bytes) -> np.ndarray:
  crop, image = preprocess.InceptionCrop(224), decode(data)
  return np.stack(
    [crop(image, np.random.default_rng(seed)) for seed in range(BOXES)]
  )


def _inception_crops_of_tensorflow(data: bytes, part) -> np.ndarray:
  """Cuts the same boxes, which are a function of the seed and the size."""
  crop, (height, width) = preprocess.InceptionCrop(224), decode(data).shape[:2]
  crops = []
  for seed in range(BOXES):
    box = crop.sample(height, width, np.random.default_rng(seed))
    crops.append(_resize(part(data, box), 224, 224, "bilinear"))
  return np.stack(crops)


def _decode_part(data: bytes, box: tuple[int, int, int, int]) -> tf.Tensor:
  """Decodes a box, as in the authors' recipe.

  Chroma is stored at half the resolution and interpolated between pixels; at
  the left and right edge of the box its neighbours are not decoded.
  """
  return tf.image.decode_and_crop_jpeg(data, box, channels=3)


def _part_of_decoded(data: bytes, box: tuple[int, int, int, int]) -> tf.Tensor:
  y, x, h, w = box
  return _decode(data)[y : y + h, x : x + w]


def draws(folder: Path) -> str:
  """Random draws, 10,000 of each, against TensorFlow's or a definition.

  Crops against TensorFlow's by the two-sample Kolmogorov-Smirnov test, all else
  against equal frequencies by chi-square. One in 20 fair rows has p < 0.05.
  """
  rows = [*_draw_crops(), *_draw_randaugment(), _draw_cutout(), _draw_flip()]
  return render(("draw", "against", "statistic", "p"), rows)


def _row(name: str, against: str, test) -> tuple[str, ...]:
  return name, against, f"{test.statistic:.4g}", f"{test.pvalue:.3f}"


def _draw_crops() -> Iterator[tuple[str, ...]]:
  for height, width in SIZES:
    crop, rng = preprocess.InceptionCrop(224), np.random.default_rng(0)
    ours = np.array([crop.sample(height, width, rng) for _ in range(DRAWS)])
    theirs = tensorflow_boxes(height, width)
    for name, measure in MEASURES.items():
      yield _row(
        f"inception crop of {height} x {width}: {name}",
        "TensorFlow",
        stats.ks_2samp(measure(ours), measure(theirs)),
      )


def tensorflow_boxes(
  height: int, width: int, area_min: float = 5, draws: int = DRAWS
) -> np.ndarray:
  """Draws crops (y, x, h, w), int [draws, 4], as the authors' ops_image.py.

  Args:
    area_min: least area of a crop, in per cent of the image.
  """

  @tf.function
  def box(i):
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
      [height, width, 3],
      tf.zeros([0, 0, 4], tf.float32),
      seed=[i, 0],
      min_object_covered=0,
      aspect_ratio_range=(0.75, 1.33),
      area_range=(area_min / 100, 1),
      use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)

  return tf.map_fn(box, tf.range(draws)).numpy()


def _draw_randaugment() -> Iterator[tuple[str, ...]]:
  """Runs randaug(2, 15) and records the operations and signs it draws."""
  image = np.zeros((32, 32, 3), np.uint8)
  called, signs = [], collections.defaultdict(list)
  either_sign = randaugment.either_sign

  def record(name, operation):
    def call(image, level, rng):
      called.append(name)
      return operation(image, level, rng)

    return call

  def record_sign(value, rng):
    signed = either_sign(value, rng)
    signs[called[-1]].append(signed == value)
    return signed

  operations = {k: record(k, v) for k, v in randaugment.OPERATIONS.items()}
  augment, rng = preprocess.parse("randaug(2, 15)"), np.random.default_rng(0)
  with (
    mock.patch.dict(randaugment.OPERATIONS, operations),
    mock.patch.object(randaugment, "either_sign", record_sign),
  ):
    for _ in range(DRAWS):
      augment(image, rng)
  names = randaugment.NAMES
  yield _row("RandAugment: operation", "1 in 16", _equal(called, names))
  pairs = [f"{a} {b}" for a in names for b in names]
  drawn = [f"{a} {b}" for a, b in zip(called[::2], called[1::2], strict=True)]
  yield _row("RandAugment: pair", "1 in 256", _equal(drawn, pairs))
  for name, drawn in sorted(signs.items()):
    yield _row(f"{name}: sign", "1 in 2", _equal(drawn, (False, True)))


def _draw_cutout() -> tuple[str, ...]:
  """Counts centres in 14 x 14 fields of 16 x 16 pixels."""
  image, rng = np.zeros((224, 224, 3), np.uint8), np.random.default_rng(0)
  fields = []
  for _ in range(DRAWS):
    # With half a side of 1, the last pixel is the centre.
    result = randaugment.apply("Cutout", image, rng, magnitude=0.25)
    last = result.size // 3 - 1 - np.argmax(result[..., 0].ravel()[::-1])
    fields.append((last // 224 // 16, last % 224 // 16))
  places = [(y, x) for y in range(14) for x in range(14)]
  return _row("Cutout: centre", "1 in 196", _equal(fields, places))


def _draw_flip() -> tuple[str, ...]:
  image = np.zeros((1, 2, 3), np.uint8)
  image[0, 1] = 1
  flip, rng = preprocess.parse("flip"), np.random.default_rng(0)
  flipped = [flip(image, rng)[0, 0, 0] == 1 for _ in range(DRAWS)]
  return _row("flip", "1 in 2", _equal(flipped, (False, True)))


def _equal(drawn, values):
  """Tests equal frequencies of all values by chi-square."""
  counts = collections.Counter(drawn)
  return stats.chisquare([counts[value] for value in values])
