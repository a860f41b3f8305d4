# SPDX-License-Identifier: Apache-2.0
"""The same batches, whoever makes them, by a hash of all their bytes."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.input import photos
from mixer.data import preprocess
from mixer.data.input_pipeline import train_batches
from mixer.data.sources import open_source
from mixer.data.workers import Workers
from mixer.tools.table import render

EXAMPLES = 2_000
BATCH = 32
STEPS = 1_000
SPEC = "inception_crop(64) | flip | randaug(2, 15)"


@dataclasses.dataclass(frozen=True)
class Way:
  """A way to make the batches.

  Attributes:
    file_format: of the records.
    workers: that decode and augment.
    hosts: that each make a slice.
    restarts: steps at which a new loader goes on.
  """

  file_format: str = "array_record"
  workers: Workers = Workers(1)
  hosts: int = 1
  restarts: tuple[int, ...] = ()

  def digest(self, folder: Path) -> str:
    """Returns the hash of the global batches 0 to STEPS - 1."""
    data_dir = photos.write(folder, EXAMPLES, self.file_format)
    source = open_source(photos.NAME, "train", data_dir)
    total = hashlib.sha256()
    borders = [0, *self.restarts, STEPS]
    for begin, end in itertools.pairwise(borders):
      loaders = [
        train_batches(
          source,
          preprocess.parse(SPEC),
          batch=BATCH,
          seed=0,
          start_step=begin,
          host=host,
          hosts=self.hosts,
          workers=self.workers,
        )
        for host in range(self.hosts)
      ]
      for batch in itertools.islice(_joined(loaders), end - begin):
        for key in sorted(batch):
          total.update(batch[key].tobytes())
      for loader in loaders:
        loader.close()
    return total.hexdigest()


def _joined(loaders: list[Iterator]) -> Iterator[dict[str, np.ndarray]]:
  for parts in zip(*loaders, strict=True):
    yield {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}


WAYS = {
  "1 thread": Way(),
  "4 threads": Way(workers=Workers(4)),
  "1 process": Way(workers=Workers(1, "process")),
  "4 processes": Way(workers=Workers(4, "process")),
  "4 hosts": Way(hosts=4),
  "4 hosts of 2 processes": Way(hosts=4, workers=Workers(2, "process")),
  "restarted at 500": Way(restarts=(500,)),
  "TFRecord": Way(file_format="tfrecord"),
  "TFRecord, restarted twice, 4 threads": Way(
    file_format="tfrecord", workers=Workers(4), restarts=(1, 777)
  ),
}


def table(folder: Path) -> str:
  """Makes the batches in all ways; says whether they are equal."""
  rows = []
  for name, way in WAYS.items():
    digest = way.digest(folder)
    first = rows[0][1] if rows else digest[:16]
    rows.append((name, digest[:16], "yes" if digest[:16] == first else "NO"))
  title = f"{STEPS:,} batches of {BATCH}"
  return render((title, "hash", "equal"), rows)
