# SPDX-License-Identifier: Apache-2.0
"""What worker processes share with the system: cores, signals, memory.

Imports the standard library alone, as every worker imports it.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import threading
from collections.abc import Collection, Iterator

# From malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


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


@functools.cache
def keep_freed_memory() -> None:
  """Tells glibc to use freed memory again instead of giving it back.

  Images and batches come and go by megabytes. By default each of them would be
  pages that the system takes back and clears anew, a tenth of all the time.
  """
  with contextlib.suppress(AttributeError):  # another C library
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 64 << 20)


def usable_cores() -> int:
  """Cores that this process may use, which a container can limit."""
  return len(os.sched_getaffinity(0))
