# SPDX-License-Identifier: Apache-2.0
"""Reads the log and the provenance of a run's folder, for pages about it."""

import contextlib
import os
from collections.abc import Iterator, Sequence

from etils import epath

from mixer.errors import UserError
from mixer.storage import storage_errors, storage_path
from mixer.training.metrics import Number, read_rows
from mixer.training.run_dir import read_json, wrap_read_errors
from mixer.weights import RUN_FILE


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
    file: without it there are none.
    required: keys that each must have.

  Raises:
    UserError: it is damaged.
  """
  if not file.is_file():
    return []
  starts = read_json(file).get("starts")
  with wrap_read_errors(file):
    if not isinstance(starts, list):
      raise ValueError("its starts are no list")
    for start in starts:
      check_start(start, required)
  return starts


def check_start(start: dict, required: Sequence[str] = ()):
  """Raises ValueError or KeyError if a provenance entry is malformed."""
  if not isinstance(start, dict):
    raise ValueError(f"a start is {start!r}")
  for key, kind in _START_TYPES.items():
    if key not in start and key not in required:
      continue
    value, least = start[key], _START_MINIMA.get(key)
    is_wrong = not isinstance(value, kind) or value == ""
    if is_wrong or (least is not None and value < least):
      raise ValueError(f"{key} = {value!r}")


_START_TYPES = {
  "date": str,
  "command": list,
  "git_commit": str | None,
  "git_changes": bool,
  "python": str,
  "packages": dict,
  "device_kind": str,
  "devices": int,
  "hosts": int,
  "from_step": int,
}
_START_MINIMA = {"devices": 1, "hosts": 1, "from_step": 0}


def read_log(folder: epath.Path) -> list[dict[str, Number]]:
  """Reads the rows of metrics.jsonl.

  Raises:
    UserError: it is damaged, or missing although the run is done.
  """
  rows = read_rows(folder)
  if not rows and (folder / RUN_FILE).is_file():
    raise UserError(f"{folder / 'metrics.jsonl'} is missing: bring it back.")
  return rows
