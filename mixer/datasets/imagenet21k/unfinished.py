# SPDX-License-Identifier: Apache-2.0
"""The folder of unfinished work: one process at a time, one plan."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from mixer.datasets.imagenet21k import shards
from mixer.errors import UserError

INDEX = "index.npy"
PLAN = "plan.json"
LOCK = "lock"


@contextlib.contextmanager
def claim(folder: Path, plan: Mapping[str, object]) -> Iterator[None]:
  """Keeps other processes out, and clears away what is not of this plan.

  Args:
    folder: made if it is not there.
    plan: what the work depends on, as JSON has it; the index of the archive
      depends on its `archive` alone.

  Raises:
    UserError: another process is at work in the folder.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / LOCK).open("w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
        f"Another process is at work in {folder}: let it finish, or stop it."
      ) from error
    _clear(folder, plan)
    shards.replace(folder / PLAN, json.dumps(plan))
    yield


def _clear(folder: Path, plan: Mapping[str, object]) -> None:
  for file in folder.glob(f"{shards.INCOMPLETE}*"):
    file.unlink()
  before = folder / PLAN
  if not before.exists():
    return
  before = json.loads(before.read_text())
  changed = [key for key in plan if before.get(key) != plan[key]]
  if not changed:
    return
  print(
    f"Starting over: the {' and the '.join(changed)} changed since the work in"
    f" {folder} began."
  )
  kept = {LOCK} if "archive" in changed else {LOCK, INDEX}
  for file in folder.iterdir():
    if file.name not in kept:
      file.unlink()
