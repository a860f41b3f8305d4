# SPDX-License-Identifier: Apache-2.0
"""Images a second from records on disk, beside tf.data and Pillow.

The pipeline to keep pace with is the one of this lineage: TFRecord, parse,
decode and crop in one operation, resize, flip, batch, prefetch.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.input import photos
from mixer.data import preprocess
from mixer.data.input_pipeline import train_batches
from mixer.data.sources import open_source
from mixer.data.workers import Workers, usable_cores
from mixer.tools.table import render

EXAMPLES = 2_000
BATCH = 256
SECONDS = 6.0  # of one measurement
ROUNDS = 5
CROP = "inception_crop(224) | flip"
RANDAUG = f"{CROP} | randaug(2, 15)"


def ours(
  data_dir: str, spec: str, kind: str = "thread"
) -> Iterator[dict[str, np.ndarray]]:
  source = open_source(photos.NAME, "train", data_dir)
  workers = Workers(usable_cores(), kind)
  return train_batches(
    source, preprocess.parse(spec), batch=BATCH, seed=0, workers=workers
  )


def tf_data(data_dir: str) -> Iterator:
  """What the authors' pipeline does up to the batch, on as many threads."""
  import tensorflow as tf

  workers = usable_cores()
  features = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "label": tf.io.FixedLenFeature([], tf.int64),
  }

  def load(record):
    example = tf.io.parse_single_example(record, features)
    shape = tf.image.extract_jpeg_shape(example["image"])
    begin, size, _ = tf.image.sample_distorted_bounding_box(
      shape,
      tf.zeros([0, 0, 4], tf.float32),
      area_range=(0.05, 1.0),
      aspect_ratio_range=(0.75, 1.33),
      min_object_covered=0,
      use_image_if_no_bounding_boxes=True,
    )
    box = tf.stack([begin[0], begin[1], size[0], size[1]])
    image = tf.io.decode_and_crop_jpeg(example["image"], box, channels=3)
    image = tf.image.resize(image, (224, 224))
    image = tf.image.random_flip_left_right(tf.cast(image, tf.uint8))
    return {"image": image, "label": example["label"]}

  folder = Path(data_dir) / photos.NAME / photos.VERSION
  files = sorted(map(str, folder.glob("*.tfrecord-*")))
  data = tf.data.TFRecordDataset(files).repeat().shuffle(EXAMPLES // 4)
  data = data.map(load, num_parallel_calls=workers).batch(BATCH).prefetch(2)
  options = tf.data.Options()
  options.threading.private_threadpool_size = workers
  return data.with_options(options).as_numpy_iterator()


def pillow(data_dir: str) -> Iterator[dict[str, np.ndarray]]:
  """The same loader with RandAugment's sixteen operations by Pillow."""
  source = open_source(photos.NAME, "train", data_dir)
  before = preprocess.parse(CROP)

  def load(image, rng):
    return pillow_randaug(before(image, rng), rng)

  return train_batches(
    source, load, batch=BATCH, seed=0, workers=Workers(usable_cores())
  )


def pillow_randaug(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """RandAugment(2, 15) as timm and torchvision have it, on Pillow's images."""
  from PIL import Image

  picture = Image.fromarray(image)
  for _ in range(2):
    picture = _PILLOW_OPS[rng.integers(len(_PILLOW_OPS))](picture, rng)
  return np.asarray(picture)


def _affine(matrix, image, rng):
  from PIL import Image

  sign = 1 if rng.integers(2) else -1
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    matrix(sign),
    Image.Resampling.NEAREST,
    fillcolor=(128, 128, 128),
  )


def _enhance(name, image, rng):
  from PIL import ImageEnhance

  return getattr(ImageEnhance, name)(image).enhance(2.8)


def _ops(name, argument, image, rng):
  from PIL import ImageOps

  return getattr(ImageOps, name)(image, *argument)


def _rotate(image, rng):
  return image.rotate(45 if rng.integers(2) else -45, fillcolor=(128, 128, 128))


def _cutout(image, rng):
  from PIL import ImageDraw

  y, x = rng.integers(image.height), rng.integers(image.width)
  image = image.copy()
  box = (x - 60, y - 60, x + 60, y + 60)
  ImageDraw.Draw(image).rectangle(box, fill=(128, 128, 128))
  return image


def _solarize_add(image, rng):
  return image.point(
    [min(i + 165, 255) if i < 128 else i for i in range(256)] * 3
  )


_PILLOW_OPS = (
  functools.partial(_ops, "autocontrast", ()),
  functools.partial(_ops, "equalize", ()),
  functools.partial(_ops, "invert", ()),
  _rotate,
  functools.partial(_ops, "posterize", (6,)),
  functools.partial(_ops, "solarize", (128,)),
  functools.partial(_enhance, "Color"),
  functools.partial(_enhance, "Contrast"),
  functools.partial(_enhance, "Brightness"),
  functools.partial(_enhance, "Sharpness"),
  functools.partial(_affine, lambda sign: (1, sign * 0.45, 0, 0, 1, 0)),
  functools.partial(_affine, lambda sign: (1, 0, 0, sign * 0.45, 1, 0)),
  functools.partial(_affine, lambda sign: (1, 0, sign * 150, 0, 1, 0)),
  functools.partial(_affine, lambda sign: (1, 0, 0, 0, 1, sign * 150)),
  _cutout,
  _solarize_add,
)


def images_per_second(batches: Iterator) -> float:
  """The rate over some seconds, once the pipeline is full."""
  for _ in range(4):
    next(batches)
  begin, images = time.perf_counter(), 0
  while time.perf_counter() - begin < SECONDS:
    images += len(next(batches)["image"])
  return images / (time.perf_counter() - begin)


def table(folder: Path) -> str:
  """Measures all pipelines in turn, several times; medians and ratios."""
  array_record = photos.write(folder, EXAMPLES, "array_record")
  tfrecord = photos.write(folder, EXAMPLES, "tfrecord")
  pipelines = {
    "crop, flip: tf.data, TFRecord": lambda: tf_data(tfrecord),
    "crop, flip: ours, TFRecord, threads": lambda: ours(tfrecord, CROP),
    "crop, flip: ours, ArrayRecord, threads": lambda: ours(array_record, CROP),
    "crop, flip: ours, TFRecord, processes": lambda: ours(
      tfrecord, CROP, "process"
    ),
    "and RandAugment(2, 15): Pillow's ops": lambda: pillow(array_record),
    "and RandAugment(2, 15): ours": lambda: ours(array_record, RANDAUG),
  }
  rates = {name: [] for name in pipelines}
  for _ in range(ROUNDS):
    # In turn, so that a slow minute of the machine meets them all.
    for name, start in pipelines.items():
      batches = start()
      rates[name].append(images_per_second(batches))
      getattr(batches, "close", lambda: None)()
  medians = {name: statistics.median(values) for name, values in rates.items()}
  references = itertools.chain(
    [next(iter(medians.values()))] * 4, [list(medians.values())[4]] * 2
  )
  rows = [
    (
      name,
      f"{median:,.0f}",
      f"{min(rates[name]):,.0f}",
      f"{max(rates[name]):,.0f}",
      f"{median / reference:.2f}",
    )
    for (name, median), reference in zip(
      medians.items(), references, strict=True
    )
  ]
  return render(("images/s", "median", "least", "most", "ratio"), rows)
