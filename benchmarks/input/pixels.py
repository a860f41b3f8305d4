# SPDX-License-Identifier: Apache-2.0
"""Pixels beside those of TensorFlow, whose operations the authors' code calls.

Each operation begins with the same JPEG on both sides; differences are in
levels of 255, over scikit-image's photographs.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from benchmarks.input import photos
from mixer.data import preprocess
from mixer.data.decode import decode
from mixer.tools.table import render

BOXES = 10  # of inception crops, in every photograph

RESIZES = (
  ("bilinear", False),
  ("bicubic", False),
  ("area", False),
  ("bilinear", True),
  ("bicubic", True),
)

# Maps a file to an array, both for us and for TensorFlow.
Read = Callable[[bytes], np.ndarray]


def table(folder: Path) -> str:
  """Compares all operations; `folder` is not needed."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  images = photos.photographs().values()
  files = [_encoded(image, ".jpg") for image in images]
  rows = [_row(*operation, files) for operation in _operations()]
  files = [_encoded(image, ".png") for image in images]
  rows.insert(1, _row("decode PNG", "tf.io.decode_image", *_decoders(), files))
  head = ("operation", "reference", "mean", "bias", "largest")
  return render(head, rows)


def _encoded(image: np.ndarray, suffix: str) -> bytes:
  quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix == ".jpg" else []
  return cv2.imencode(suffix, image[..., ::-1], quality)[1].tobytes()


def _row(
  name: str, reference: str, ours: Read, theirs: Read, files: list[bytes]
) -> tuple[str, ...]:
  """Pools the differences of all files, each pixel counting once."""
  difference = np.concatenate(
    [(ours(data).astype(np.float64) - theirs(data)).ravel() for data in files]
  )
  mean, largest = np.abs(difference).mean(), np.abs(difference).max()
  bias = difference.mean()
  return name, reference, f"{mean:.5f}", f"{bias:+.5f}", f"{largest:.3g}"


def _operations() -> Iterator[tuple[str, str, Read, Read]]:
  yield "decode JPEG", "tf.io.decode_image", *_decoders()
  for size in 224, 448:
    for method, antialias in RESIZES:
      ours = preprocess.parse(f"resize({size}, {method!r}, {antialias})")
      yield (
        f"resize({size}), {method}{', antialias' if antialias else ''}",
        "tf.image.resize",
        lambda data, ours=ours: ours(decode(data), None),
        lambda data, size=size, method=method, antialias=antialias: _resize(
          _decode(data), size, size, method, antialias
        ),
      )
  for spec, theirs in {
    "resize_small(256)": _resize_small,
    "resize_small(256) | central_crop(224)": _evaluate,
  }.items():
    ours = preprocess.parse(spec)
    yield (
      spec.replace(" |", ","),  # a bar would end a cell of the table
      "tf.image.resize, area",
      lambda data, ours=ours: ours(decode(data), None),
      theirs,
    )
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
    _normalised,
    _normalised_by_tensorflow,
  )


def _decoders() -> tuple[Read, Read]:
  return decode, lambda data: _decode(data).numpy()


def _decode(data: bytes):
  import tensorflow as tf

  return tf.io.decode_image(data, channels=3, expand_animations=False)


def _resize(image, height, width, method, antialias=False) -> np.ndarray:
  """tf.image.resize, clipped and cast, as in the authors' pp/ops_image.py."""
  import tensorflow as tf

  size = (height, width)
  resized = tf.image.resize(image, size, method, antialias=antialias)
  return tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8).numpy()


def _resize_small(data: bytes) -> np.ndarray:
  import tensorflow as tf

  image = _decode(data)
  sides = tf.cast(tf.shape(image)[:2], tf.float32)
  height, width = tf.round(sides * (256 / tf.reduce_min(sides)))
  return _resize(image, int(height), int(width), "area")


def _evaluate(data: bytes) -> np.ndarray:
  import tensorflow as tf

  image = _resize_small(data)
  y, x = (image.shape[0] - 224) // 2, (image.shape[1] - 224) // 2
  return tf.image.crop_to_bounding_box(image, y, x, 224, 224).numpy()


def _inception_crops(data: bytes) -> np.ndarray:
  crop, image = preprocess.InceptionCrop(224), decode(data)
  return np.stack(
    [crop(image, np.random.default_rng(seed)) for seed in range(BOXES)]
  )


def _inception_crops_of_tensorflow(data: bytes, part) -> np.ndarray:
  """The same boxes, which are a function of the seed and the size."""
  crop, (height, width) = preprocess.InceptionCrop(224), decode(data).shape[:2]
  crops = []
  for seed in range(BOXES):
    box = crop.sample(height, width, np.random.default_rng(seed))
    crops.append(_resize(part(data, box), 224, 224, "bilinear"))
  return np.stack(crops)


def _decode_part(data: bytes, box: tuple[int, int, int, int]):
  """As the authors' recipe: colours at the left and right edge lack neighbours.

  They are stored at half the resolution and interpolated between pixels, of
  which those outside the box are not decoded.
  """
  import tensorflow as tf

  return tf.image.decode_and_crop_jpeg(data, box, channels=3)


def _part_of_decoded(data: bytes, box: tuple[int, int, int, int]):
  y, x, h, w = box
  return _decode(data)[y : y + h, x : x + w]


def _normalised(data: bytes) -> np.ndarray:
  from mixer.training.step import normalise

  return np.asarray(normalise(decode(data))) * 127.5


def _normalised_by_tensorflow(data: bytes) -> np.ndarray:
  import tensorflow as tf

  return (tf.cast(_decode(data), tf.float32) / 255 * 2 - 1).numpy() * 127.5
