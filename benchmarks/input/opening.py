# SPDX-License-Identifier: Apache-2.0
"""Opening a data set of ImageNet's length, up to the first batch.

1,281,167 records of 8 x 8 pixels in 1,024 files; each line is a process of its
own, with the files in the system's cache. `added` is resident memory since the
imports; of TFRecord's, the index is a mapped file, which processes share.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import psutil

from mixer.tools.table import render

EXAMPLES, SHARDS, CLASSES = 1_281_167, 1_024, 1_000
BATCH = 1_024
NAME = "tiny"


def table(folder: Path) -> str:
  """Times both formats; the first opening of TFRecord makes its index."""
  rows = []
  for file_format in ("tfrecord", "array_record"):
    data_dir = write(folder, file_format)
    cache = folder / "opening" / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    for opening in ("first", "later"):
      measured = _in_a_process(data_dir, cache)
      seconds = [f"{measured[key]:.2f}" for key in ("open", "read", "batch")]
      sizes = [f"{measured[key]:.1f}" for key in ("added", "sent")]
      rows.append((f"{file_format}, {opening} opening", *seconds, *sizes))
  head = (
    "",
    "open s",
    f"{BATCH:,} records s",
    f"first batch of {BATCH:,} s",
    "added MB",
    "pickled MB",
  )
  return render(head, rows)


def write(folder: Path, file_format: str) -> Path:
  """Writes the data set with TFDS's own writers; returns its data_dir."""
  import tensorflow_datasets as tfds

  data_dir = folder / "opening" / file_format
  target = data_dir / NAME / "1.0.0"
  if target.exists():
    return data_dir
  unfinished = target.with_name("incomplete")
  shutil.rmtree(unfinished, ignore_errors=True)
  unfinished.mkdir(parents=True)
  bounds = np.linspace(0, EXAMPLES, SHARDS + 1).round().astype(int)
  records = _records()
  kind = tfds.core.FileFormat(file_format)
  adapter = tfds.core.file_adapters.ADAPTER_FOR_FORMAT[kind]
  for shard, (begin, end) in enumerate(itertools.pairwise(bounds.tolist())):
    name = f"{NAME}-train.{file_format}-{shard:05}-of-{SHARDS:05}"
    part = ((i, records[i % len(records)]) for i in range(begin, end))
    adapter.write_examples(unfinished / name, part)
  split = tfds.core.SplitInfo(
    name="train", shard_lengths=np.diff(bounds).tolist(), num_bytes=0
  )
  features = {
    "image": tfds.features.Image(encoding_format="png"),
    "label": tfds.features.ClassLabel(num_classes=CLASSES),
  }
  tfds.folder_dataset.write_metadata(
    data_dir=unfinished,
    features=tfds.features.FeaturesDict(features),
    split_infos=[split],
    version="1.0.0",
    check_data=False,
  )
  unfinished.rename(target)
  return data_dir


def _records() -> list[bytes]:
  from tensorflow_datasets.proto import tf_example_pb2

  rng = np.random.default_rng(0)
  records = []
  for label in range(CLASSES):
    example = tf_example_pb2.Example()
    feature = example.features.feature
    image = np.full((8, 8, 3), rng.integers(256, size=3), np.uint8)
    data = cv2.imencode(".png", image)[1].tobytes()
    feature["image"].bytes_list.value.append(data)
    feature["label"].int64_list.value.append(label)
    records.append(example.SerializeToString())
  return records


def _in_a_process(data_dir: Path, cache: Path) -> dict[str, float]:
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.input.opening", str(data_dir)],
    env=os.environ | {"MIXER_CACHE_DIR": str(cache)},
    stdout=subprocess.PIPE,
    check=True,
  )
  return json.loads(done.stdout)


def _measure(data_dir: str) -> dict[str, float]:
  """Seconds from the call of open_source on, and MB."""
  import cloudpickle
  from tensorflow_datasets.proto import tf_example_pb2  # noqa: F401

  from mixer.data import preprocess
  from mixer.data.input_pipeline import train_batches
  from mixer.data.sources import open_source

  resident = psutil.Process().memory_info().rss
  began = time.perf_counter()
  source = open_source(NAME, "train", data_dir)
  opened = time.perf_counter()
  ids = np.random.default_rng(0).permutation(len(source))[:BATCH]
  read_began = time.perf_counter()
  source.read(ids)
  read = time.perf_counter()
  batches = train_batches(
    source, preprocess.parse("resize(8)"), batch=BATCH, seed=0
  )
  next(batches)
  batch = time.perf_counter()
  added = psutil.Process().memory_info().rss - resident
  batches.close()
  return {
    "open": opened - began,
    "read": read - read_began,
    "batch": batch - read,
    "added": added / 1e6,
    "sent": len(cloudpickle.dumps(source)) / 1e6,
  }


if __name__ == "__main__":
  from absl import flags

  flags.FLAGS.mark_as_parsed()
  print(json.dumps(_measure(sys.argv[1])))
