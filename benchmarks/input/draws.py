# SPDX-License-Identifier: Apache-2.0
"""Random draws, 10,000 of each, beside TensorFlow's or what was meant.

Crops against TensorFlow's by the two-sample Kolmogorov-Smirnov test, all else
against equal frequencies by chi-square. Of twenty fair rows, one has p < 0.05.
"""

import collections
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from scipy import stats

from mixer.data import preprocess, randaugment
from mixer.tools.table import render

DRAWS = 10_000
SIZES = ((375, 500), (500, 333))

MEASURES = {
  "area": lambda box: box[:, 2] * box[:, 3],
  "ratio": lambda box: box[:, 3] / box[:, 2],
  "height": lambda box: box[:, 2],
  "width": lambda box: box[:, 3],
  "y": lambda box: box[:, 0],
  "x": lambda box: box[:, 1],
}


def table(folder: Path) -> str:
  """Draws and tests; `folder` is not needed."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  rows = [*_inception_crops(), *_randaug(), _cutout(), _flip()]
  return render(("draw", "against", "statistic", "p"), rows)


def _row(name: str, against: str, test) -> tuple[str, ...]:
  return name, against, f"{test.statistic:.4g}", f"{test.pvalue:.3f}"


def _inception_crops() -> Iterator[tuple[str, ...]]:
  for height, width in SIZES:
    crop, rng = preprocess.InceptionCrop(224), np.random.default_rng(0)
    ours = np.array([crop.sample(height, width, rng) for _ in range(DRAWS)])
    theirs = _tensorflow_boxes(height, width)
    for name, measure in MEASURES.items():
      yield _row(
        f"inception crop of {height} x {width}: {name}",
        "TensorFlow",
        stats.ks_2samp(measure(ours), measure(theirs)),
      )


def _tensorflow_boxes(height: int, width: int) -> np.ndarray:
  """Draws (y, x, h, w) with the arguments of the authors' pp/ops_image.py."""
  import tensorflow as tf

  @tf.function
  def box(i):
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
      [height, width, 3],
      tf.zeros([0, 0, 4], tf.float32),
      seed=[i, 0],
      min_object_covered=0,
      aspect_ratio_range=(0.75, 1.33),
      area_range=(0.05, 1),
      use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)

  return tf.map_fn(box, tf.range(DRAWS)).numpy()


def _randaug() -> Iterator[tuple[str, ...]]:
  """Runs randaug(2, 15) and watches what it calls."""
  image = np.zeros((32, 32, 3), np.uint8)
  called, signs = [], collections.defaultdict(list)
  either_sign = randaugment.either_sign

  def watched(name, operation):
    def call(image, level, rng):
      called.append(name)
      return operation(image, level, rng)

    return call

  def watched_sign(value, rng):
    signed = either_sign(value, rng)
    signs[called[-1]].append(signed == value)
    return signed

  operations = {k: watched(k, v) for k, v in randaugment.OPERATIONS.items()}
  augment, rng = preprocess.parse("randaug(2, 15)"), np.random.default_rng(0)
  with (
    mock.patch.dict(randaugment.OPERATIONS, operations),
    mock.patch.object(randaugment, "either_sign", watched_sign),
  ):
    for _ in range(DRAWS):
      augment(image, rng)
  yield _row(
    "RandAugment: operation", "1 in 16", _equal(called, randaugment.NAMES)
  )
  pairs = [f"{a} {b}" for a in randaugment.NAMES for b in randaugment.NAMES]
  drawn = [f"{a} {b}" for a, b in zip(called[::2], called[1::2], strict=True)]
  yield _row("RandAugment: pair", "1 in 256", _equal(drawn, pairs))
  for name, drawn in sorted(signs.items()):
    yield _row(f"{name}: sign", "1 in 2", _equal(drawn, (False, True)))


def _cutout() -> tuple[str, ...]:
  """The centres, in 14 x 14 fields of 16 x 16 pixels."""
  image, rng = np.zeros((224, 224, 3), np.uint8), np.random.default_rng(0)
  fields = []
  for _ in range(DRAWS):
    # Of half a side of 1: the last pixel is the centre that was drawn.
    result = randaugment.apply("Cutout", image, rng, magnitude=0.25)
    last = result.size // 3 - 1 - np.argmax(result[..., 0].ravel()[::-1])
    fields.append((last // 224 // 16, last % 224 // 16))
  places = [(y, x) for y in range(14) for x in range(14)]
  return _row("Cutout: centre", "1 in 196", _equal(fields, places))


def _flip() -> tuple[str, ...]:
  image = np.zeros((1, 2, 3), np.uint8)
  image[0, 1] = 1
  flip, rng = preprocess.parse("flip"), np.random.default_rng(0)
  flipped = [flip(image, rng)[0, 0, 0] == 1 for _ in range(DRAWS)]
  return _row("flip", "1 in 2", _equal(flipped, (False, True)))


def _equal(drawn, values):
  """The chi-square test of equal frequencies of all values."""
  counts = collections.Counter(drawn)
  return stats.chisquare([counts[value] for value in values])
