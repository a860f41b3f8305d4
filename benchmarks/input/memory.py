# SPDX-License-Identifier: Apache-2.0
"""Memory of a loader over a million examples."""

import itertools
from pathlib import Path

import psutil

from benchmarks.input import photos
from mixer.data import preprocess
from mixer.data.input_pipeline import train_batches
from mixer.data.sources import open_source
from mixer.tools.table import render

EXAMPLES = 2_000
BATCH = 250
TOTAL = 1_000_000
ROWS = 10


def table(folder: Path) -> str:
  """Reads a million examples, as in training; memory at every tenth."""
  data_dir = photos.write(folder, EXAMPLES, "array_record")
  source = open_source(photos.NAME, "train", data_dir)
  batches = train_batches(
    source, preprocess.parse("inception_crop(224) | flip"), batch=BATCH, seed=0
  )
  process = psutil.Process()
  rows = []
  for step, _ in enumerate(itertools.islice(batches, TOTAL // BATCH), 1):
    if step * BATCH == BATCH * 20 or step * BATCH % (TOTAL // ROWS) == 0:
      resident = process.memory_info().rss / 1e6
      rows.append((f"{step * BATCH:,}", f"{resident:,.0f}"))
  batches.close()
  return render(("examples read", "resident MB"), rows)
