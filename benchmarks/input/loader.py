# SPDX-License-Identifier: Apache-2.0
"""The loader: reproducible batches, time to open a data set, memory."""

import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from mixer.data import preprocess
from mixer.data.input_pipeline import train_batches
from mixer.data.sources import open_source
from mixer.data.workers import Workers
from mixer.tools.table import render

EXAMPLES = 2_000  # photographs of `batches` and `memory`
STEPS, BATCH = 1_000, 32  # of `batches`
ONE_THREAD = Workers(1)
SPEC = "inception_crop(64) | flip | randaug(2, 15)"

# Of `opening`.
TINY, TINY_EXAMPLES, TINY_SHARDS, TINY_CLASSES = "tiny", 1_281_167, 1_024, 1_000
TINY_BATCH = 1_024

# Of `memory`.
TOTAL, LARGE_BATCH, ROWS = 1_000_000, 250, 10


def hash_batches(
  folder: Path,
  file_format: str = "array_record",
  workers: Workers = ONE_THREAD,
  hosts: int = 1,
  restarts: tuple[int, ...] = (),
) -> str:
  """Returns the hash of the global batches 0 to STEPS - 1.

  Each of the hosts makes a slice; at `restarts` a new loader continues.
  """
  source = _open_photos(folder, file_format)
  total = hashlib.sha256()
  for begin, end in itertools.pairwise([0, *restarts, STEPS]):
    loaders = [
      train_batches(
        source,
        preprocess.parse(SPEC),
        batch=BATCH,
        seed=0,
        start_step=begin,
        host=host,
        hosts=hosts,
        workers=workers,
      )
      for host in range(hosts)
    ]
    for batch in itertools.islice(_join(loaders), end - begin):
      for key in sorted(batch):
        total.update(batch[key].tobytes())
    for loader in loaders:
      loader.close()
  return total.hexdigest()


def _open_photos(folder: Path, file_format: str):
  from benchmarks.input import photos  # with tensorflow-datasets

  data_dir = photos.write_photos(folder, EXAMPLES, file_format)
  return open_source(photos.NAME, "train", data_dir)


def _join(loaders: list[Iterator]) -> Iterator[dict[str, np.ndarray]]:
  for parts in zip(*loaders, strict=True):
    yield {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}


WAYS = {
  "1 thread": {},
  "4 threads": {"workers": Workers(4)},
  "1 process": {"workers": Workers(1, "process")},
  "4 processes": {"workers": Workers(4, "process")},
  "4 hosts": {"hosts": 4},
  "4 hosts of 2 processes": {"hosts": 4, "workers": Workers(2, "process")},
  "restarted at 500": {"restarts": (500,)},
  "TFRecord": {"file_format": "tfrecord"},
  "TFRecord, restarted twice, 4 threads": {
    "file_format": "tfrecord",
    "workers": Workers(4),
    "restarts": (1, 777),
  },
}


def batches(folder: Path) -> str:
  """Equality of batches from any workers, by a hash of all their bytes."""
  rows = []
  for name, way in WAYS.items():
    digest = hash_batches(folder, **way)[:16]
    first = rows[0][1] if rows else digest
    rows.append((name, digest, "yes" if digest == first else "NO"))
  return render((f"{STEPS:,} batches of {BATCH}", "hash", "equal"), rows)


def opening(folder: Path) -> str:
  """Opening a data set of ImageNet's length, up to the first batch.

  1,281,167 records of 8 x 8 pixels in 1,024 files; each line is a process of
  its own, with the files in the system's cache. `added` is resident memory
  since the imports; TFRecord's index is a mapped file, shared by processes.
  """
  from benchmarks.harness import run_child  # with jax, unwanted in `memory`

  rows = []
  for file_format in ("tfrecord", "array_record"):
    data_dir = folder / "opening" / file_format
    if not (data_dir / TINY).exists():
      _write_tiny(data_dir, file_format)
    cache = folder / "opening" / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    for name in ("first", "later"):  # the first makes TFRecord's index
      [measured] = run_child(
        "benchmarks.input.loader:open_tiny",
        limit=3600,
        data_dir=str(data_dir),
        cache=str(cache),
      )
      seconds = [f"{measured[key]:.2f}" for key in ("open", "read", "batch")]
      sizes = [f"{measured[key]:.1f}" for key in ("added", "sent")]
      rows.append((f"{file_format}, {name} opening", *seconds, *sizes))
  head = (
    "",
    "open s",
    f"{TINY_BATCH:,} records s",
    f"first batch of {TINY_BATCH:,} s",
    "added MB",
    "pickled MB",
  )
  return render(head, rows)


def _write_tiny(data_dir: Path, file_format: str):
  import tensorflow_datasets as tfds

  from benchmarks.input.photos import encode, write_dataset

  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(encoding_format="png"),
      "label": tfds.features.ClassLabel(num_classes=TINY_CLASSES),
    }
  )
  serializer = tfds.core.example_serializer.ExampleSerializer(
    features.get_serialized_info()
  )
  rng = np.random.default_rng(0)
  records = []
  for label in range(TINY_CLASSES):
    image = np.full((8, 8, 3), rng.integers(256, size=3), np.uint8)
    example = {"image": encode(image, ".png"), "label": np.int64(label)}
    records.append(serializer.serialize_example(example))
  bounds = np.linspace(0, TINY_EXAMPLES, TINY_SHARDS + 1).round().astype(int)
  shards = (
    [records[i % TINY_CLASSES] for i in range(begin, end)]
    for begin, end in itertools.pairwise(bounds.tolist())
  )
  write_dataset(data_dir, TINY, file_format, features, shards, TINY_SHARDS)


def open_tiny(data_dir: str, cache: str) -> dict[str, float]:
  """Measures seconds from the call of open_source on, and MB; in a child."""
  import cloudpickle
  from absl import flags
  from tensorflow_datasets.proto import tf_example_pb2  # noqa: F401

  flags.FLAGS.mark_as_parsed()
  os.environ["MIXER_CACHE_DIR"] = cache
  resident = psutil.Process().memory_info().rss
  start = time.perf_counter()
  source = open_source(TINY, "train", data_dir)
  opened = time.perf_counter()
  ids = np.random.default_rng(0).permutation(len(source))[:TINY_BATCH]
  read_start = time.perf_counter()
  source.read(ids)
  read = time.perf_counter()
  loader = train_batches(
    source, preprocess.parse("resize(8)"), batch=TINY_BATCH, seed=0
  )
  next(loader)
  first_batch = time.perf_counter()
  added = psutil.Process().memory_info().rss - resident
  loader.close()
  return {
    "open": opened - start,
    "read": read - read_start,
    "batch": first_batch - read,
    "added": added / 1e6,
    "sent": len(cloudpickle.dumps(source)) / 1e6,
  }


def memory(folder: Path) -> str:
  """Memory of a loader over a million examples."""
  loader = train_batches(
    _open_photos(folder, "array_record"),
    preprocess.parse("inception_crop(224) | flip"),
    batch=LARGE_BATCH,
    seed=0,
  )
  process = psutil.Process()
  rows = []
  for step, _ in enumerate(itertools.islice(loader, TOTAL // LARGE_BATCH), 1):
    if step == 20 or step * LARGE_BATCH % (TOTAL // ROWS) == 0:
      resident = process.memory_info().rss / 1e6
      rows.append((f"{step * LARGE_BATCH:,}", f"{resident:,.0f}"))
  loader.close()
  return render(("examples read", "resident MB"), rows)
