# SPDX-License-Identifier: Apache-2.0
"""Throughput of the input pipeline, tf.data's and Pillow's."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import tensorflow as tf
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from benchmarks.harness import turns
from benchmarks.input import photos
from mixer.data import preprocess
from mixer.data.input_pipeline import train_batches
from mixer.data.pp_parser import Compose
from mixer.data.sources import open_source
from mixer.data.workers import Workers, usable_cores
from mixer.jax_setup import tune_malloc
from mixer.tools.paper.protocols import load_recipe
from mixer.tools.table import render

EXAMPLES = 2_000
BATCH = 256
SECONDS = 6.0  # of a measurement
ROUNDS = 5
CROP = "inception_crop(224) | flip"
RANDAUG = f"{CROP} | randaug(2, 15)"
MODERN = load_recipe("configs/modern_i1k.py").data.ops


def ours(
  data_dir: str, spec: str, kind: str = "thread"
) -> Iterator[dict[str, np.ndarray]]:
  source = open_source(photos.NAME, "train", data_dir)
  workers = Workers(usable_cores(), kind)
  return train_batches(
    source, preprocess.parse(spec), batch=BATCH, seed=0, workers=workers
  )


def tf_data(data_dir: str) -> Iterator:
  """Makes batches like the authors' pipeline, with as many threads as ours."""
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
  """Makes batches with our loader and Pillow's operations of RandAugment."""
  source = open_source(photos.NAME, "train", data_dir)
  ops = Compose((*preprocess.parse(CROP).ops, pillow_randaug))
  return train_batches(
    source, ops, batch=BATCH, seed=0, workers=Workers(usable_cores())
  )


GREY = (128, 128, 128)


def pillow_randaug(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Applies RandAugment(2, 15) like timm and torchvision, by Pillow."""
  picture = Image.fromarray(image)
  for _ in range(2):
    operation = PILLOW_OPERATIONS[rng.integers(len(PILLOW_OPERATIONS))]
    picture = operation(picture, 1 if rng.integers(2) else -1, rng)
  return np.asarray(picture)


def _affine(image, matrix):
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    matrix,
    Image.Resampling.NEAREST,
    fillcolor=GREY,
  )


def _cutout(image, sign, rng):
  y, x = rng.integers(image.height), rng.integers(image.width)
  image = image.copy()
  box = (x - 60, y - 60, x + 60, y + 60)
  ImageDraw.Draw(image).rectangle(box, fill=GREY)
  return image


SOLARIZE_ADD = [min(i + 165, 255) if i < 128 else i for i in range(256)] * 3

# Functions of an image, a sign and a random generator.
PILLOW_OPERATIONS = (
  lambda image, *_: ImageOps.autocontrast(image),
  lambda image, *_: ImageOps.equalize(image),
  lambda image, *_: ImageOps.invert(image),
  lambda image, sign, _: image.rotate(45 * sign, fillcolor=GREY),
  lambda image, *_: ImageOps.posterize(image, 6),
  lambda image, *_: ImageOps.solarize(image, 128),
  lambda image, *_: ImageEnhance.Color(image).enhance(2.8),
  lambda image, *_: ImageEnhance.Contrast(image).enhance(2.8),
  lambda image, *_: ImageEnhance.Brightness(image).enhance(2.8),
  lambda image, *_: ImageEnhance.Sharpness(image).enhance(2.8),
  lambda image, sign, _: _affine(image, (1, sign * 0.45, 0, 0, 1, 0)),
  lambda image, sign, _: _affine(image, (1, 0, 0, sign * 0.45, 1, 0)),
  lambda image, sign, _: _affine(image, (1, 0, sign * 150, 0, 1, 0)),
  lambda image, sign, _: _affine(image, (1, 0, 0, 0, 1, sign * 150)),
  _cutout,
  lambda image, *_: image.point(SOLARIZE_ADD),
)


def measure(batches: Iterator) -> tuple[float, float]:
  """Returns images a second, and CPU ms an image, over some seconds."""
  for _ in range(4):  # until the pipeline is full
    next(batches)
  begin, busy, images = time.perf_counter(), _cpu_seconds(), 0
  while time.perf_counter() - begin < SECONDS:
    images += len(next(batches)["image"])
  seconds = time.perf_counter() - begin
  return images / seconds, (_cpu_seconds() - busy) / images * 1e3


def _cpu_seconds() -> float:
  """CPU time of this process and its workers, which load hardly changes."""
  process = psutil.Process()
  times = [x.cpu_times() for x in (process, *process.children(recursive=True))]
  return sum(x.user + x.system for x in times)


def scaled(folder: Path) -> str:
  """Crops of JPEGs decoded at a reduced scale: CPU time and other pixels.

  Photographs enlarged or reduced to a longer side, three crops each; absolute
  differences of 255 levels, in the mean and the largest of an image's.
  """
  tune_malloc()
  rows = []
  for side in (1024, 2048, 4096):
    files = []
    for photo in photos.photographs().values():
      factor = side / max(photo.shape[:2])
      kind = cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA
      large = cv2.resize(photo, None, fx=factor, fy=factor, interpolation=kind)
      files.append(photos.encode(large, ".jpg"))
    for name in ("inception_crop", "random_resized_crop"):
      seconds, crops = [], []
      for spec in (f"{name}(224)", f"{name}(224, scaled=True)"):
        ops, begin = preprocess.parse(spec), time.process_time()
        crops.append(
          [
            ops.load(data, 10**8, np.random.default_rng(seed)).astype(int)
            for data in files
            for seed in range(3)
          ]
        )
        seconds.append((time.process_time() - begin) / len(crops[0]))
      apart = [np.abs(a - b).mean() for a, b in zip(*crops, strict=True)]
      values = (*(1e3 * x for x in seconds), np.mean(apart), max(apart))
      rows.append((f"{side:,}", name, *(f"{value:.1f}" for value in values)))
  return render(("side", "op", "ms", "scaled ms", "mean", "largest"), rows)


def throughput(folder: Path) -> str:
  """Images a second from records on disk, next to tf.data and Pillow.

  The reference is this lineage's pipeline: TFRecord, parse, decode and crop in
  one operation, resize, flip, batch, prefetch.
  """
  array_record = photos.write_photos(folder, EXAMPLES, "array_record")
  tfrecord = photos.write_photos(folder, EXAMPLES, "tfrecord")
  # The first pipeline of a group is its reference.
  groups = (
    {
      "crop, flip: tf.data, TFRecord": lambda: tf_data(tfrecord),
      "crop, flip: ours, TFRecord, threads": lambda: ours(tfrecord, CROP),
      "crop, flip: ours, ArrayRecord, threads": lambda: ours(
        array_record, CROP
      ),
      "crop, flip: ours, TFRecord, processes": lambda: ours(
        tfrecord, CROP, "process"
      ),
    },
    {
      "and RandAugment(2, 15): Pillow's ops": lambda: pillow(array_record),
      "and RandAugment(2, 15): ours": lambda: ours(array_record, RANDAUG),
    },
    {
      "pretrain_i1k.py's ops": lambda: ours(array_record, RANDAUG),
      "modern_i1k.py's ops": lambda: ours(array_record, MODERN),
    },
  )
  pipelines = {name: start for group in groups for name, start in group.items()}
  rates = {name: [] for name in pipelines}
  for name in turns([*pipelines], ROUNDS):
    batches = pipelines[name]()
    rates[name].append(measure(batches))
    getattr(batches, "close", lambda: None)()
  rows = []
  for group in groups:
    columns = {name: list(zip(*rates[name], strict=True)) for name in group}
    reference, reference_cpu = map(
      statistics.median, columns[next(iter(group))]
    )
    for name, (speeds, busy) in columns.items():
      median, cpu = statistics.median(speeds), statistics.median(busy)
      counts = (f"{x:,.0f}" for x in (median, min(speeds), max(speeds)))
      ratios = (
        f"{median / reference:.2f}",
        f"{cpu:.3f}",
        f"{reference_cpu / cpu:.2f}",
      )
      rows.append((name, *counts, *ratios))
  head = ("images/s", "median", "least", "most", "ratio", "CPU ms", "ratio")
  return render(head, rows)
