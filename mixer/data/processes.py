# SPDX-License-Identifier: Apache-2.0
"""What worker processes share with the system: cores and signals.

Imports the standard library alone, as every worker imports it.
"""

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import threading
from collections.abc import Collection, Iterator


@contextlib.contextmanager
def passed_by(signals: Collection[signal.Signals]) -> Iterator[None]:
  """Lets processes that begin inside not hear of these signals.

  They inherit what is blocked, until they can look after themselves.
  """
  _start_tracker()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
  """Starts Python's helper that removes what processes leave in memory.

  It would start with the first process, and then unblock signals. What workers
  had ready when they were stopped it removes with a warning, which says nothing
  to a user.
  """
  said = os.environ.get("PYTHONWARNINGS")
  quiet = "ignore:resource_tracker"
  os.environ["PYTHONWARNINGS"] = f"{said},{quiet}" if said else quiet
  try:
    multiprocessing.resource_tracker.ensure_running()
  finally:
    del os.environ["PYTHONWARNINGS"]
    if said is not None:
      os.environ["PYTHONWARNINGS"] = said


def end_with_parent() -> None:
  """Makes a worker process end when its parent does, even by a kill."""

  def wait():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def usable_cores() -> int:
  """Cores that this process may use, which a container can limit."""
  return len(os.sched_getaffinity(0))
