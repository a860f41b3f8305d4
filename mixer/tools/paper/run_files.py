# SPDX-License-Identifier: Apache-2.0
"""Reads the log, the provenance and the cost of a run from its folder."""

import collections
import contextlib
import math
import os
from collections.abc import Iterator, Sequence

from etils import epath

from mixer.errors import UserError
from mixer.storage import storage_errors, storage_path
from mixer.training.metrics import Number, read_rows
from mixer.training.run_dir import read_json, wrap_read_errors
from mixer.weights import RUN_FILE

_SECONDS_PER_DAY = 86_400.0


@contextlib.contextmanager
def open_folder(workdir: str | os.PathLike) -> Iterator[epath.Path]:
  """Yields a folder on a disk or in a bucket, to read it.

  Raises:
    UserError: there is none, or its bucket refuses.
    RetryableError: its bucket cannot be reached.
  """
  with storage_errors(workdir):
    folder = storage_path(workdir)
    if not folder.is_dir():
      raise UserError(
        f"There is no folder {folder}: name one that train.py or python -m "
        "mixer sweep was given as --workdir."
      )
    yield folder


def read_starts(file: epath.Path, required: Sequence[str] = ()) -> list[dict]:
  """Reads the starts in provenance.json, the first one first.

  Args:
    file: a missing one has no starts.
    required: keys that each start must have.

  Raises:
    UserError: it is damaged.
  """
  if not file.is_file():
    return []
  starts = read_json(file).get("starts")
  with wrap_read_errors(file):
    for start in starts:
      if not isinstance(start, dict):
        raise ValueError(f"a start is {start!r}")
      if lacking := [key for key in required if key not in start]:
        raise ValueError(f"a start lacks {', '.join(lacking)}")
    return list(starts)


def read_log(folder: epath.Path) -> list[dict[str, Number]]:
  """Reads the rows of metrics.jsonl.

  Raises:
    UserError: it is damaged, or missing although the run is done.
  """
  rows = read_rows(folder)
  if not rows and (folder / RUN_FILE).is_file():
    raise UserError(f"{folder / 'metrics.jsonl'} is missing: bring it back.")
  return rows


def device_days(
  rows: Sequence[dict], starts: Sequence[dict], batch: int
) -> dict[str, float]:
  """Sums devices x days over all updates, by kind of device.

  The run's clock excludes evaluation, saving and compilation.

  Args:
    rows: of metrics.jsonl.
    starts: of provenance.json; a run may continue on other devices.
    batch: images per update.

  Returns:
    Kind of device -> device-days. One TPUv3 core is one device.
  """
  days = collections.Counter()
  for step, seconds in update_seconds(rows, batch):
    start = max(
      (each for each in starts if each.get("from_step", 0) < step),
      key=lambda each: each.get("from_step", 0),
      default={},
    )
    kind = start.get("device_kind", "unknown device")
    days[kind] += start.get("devices", 1) * seconds / _SECONDS_PER_DAY
  return dict(days)


def update_seconds(
  rows: Sequence[dict], batch: int
) -> Iterator[tuple[int, float]]:
  """Yields steps, and the seconds of the updates since the one before.

  A row's images per second are those of the updates since the row before. Rows
  without them, of an evaluation or soon after a start, are passed over.
  """
  before = 0
  for row in rows:
    rate = row.get("images_per_second")
    if rate and math.isfinite(rate):
      yield row["step"], (row["step"] - before) * batch / rate
      before = row["step"]
