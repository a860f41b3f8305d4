# SPDX-License-Identifier: Apache-2.0
"""Worker threads or processes that run ahead of the training loop, by Grain.

grain, which imports JAX, is imported when workers start: other worker processes
import this module for its signal handling.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import threading
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Literal

from absl import flags

from mixer.errors import UserError
from mixer.jax_setup import tune_malloc

if TYPE_CHECKING:
  import grain

Kind = Literal["thread", "process"]
BATCHES_AHEAD = 2  # computed before the caller asks for them


@dataclasses.dataclass(frozen=True)
class Workers:
  """Number and kind of workers.

  Attributes:
    number: of workers; 0 means one per core that this process may use.
    kind: "thread" or "process". Threads share one interpreter, whose lock
      decoding and most ops release; processes take a few seconds to start.
  """

  number: int = 0
  kind: Kind = "thread"

  def run(self, dataset: grain.MapDataset, per_batch: int) -> Iterator:
    """Yields the elements in order; its close() ends the workers.

    Args:
      dataset: each element depends only on its index; picklable by cloudpickle
        if workers are processes.
      per_batch: elements in a batch.
    """
    import grain

    tune_malloc()
    number = self.number or usable_cores()
    ahead = max(BATCHES_AHEAD * per_batch, number)
    if self.kind == "thread":
      return iter(dataset.to_iter_dataset(grain.ReadOptions(number, ahead)))
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain asks for flags of its own
    options = grain.MultiprocessingOptions(number, -(-ahead // number))
    elements = dataset.to_iter_dataset(grain.ReadOptions(0, 0))
    return _in_processes(iter(elements.mp_prefetch(options, _begin_worker)))


DEFAULT_WORKERS = Workers()

# A terminal or a scheduler sends them to every process of a job.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _in_processes(elements: grain.DatasetIterator) -> Iterator:
  """Starts worker processes and yields their elements."""
  with contextlib.closing(elements):
    try:
      # Processes start with the first element.
      with block_signals(STOP_SIGNALS):
        first = list(itertools.islice(elements, 1))
      yield from first
      yield from elements
    except RuntimeError as error:
      if "terminated unexpectedly" not in str(error):
        raise
      raise UserError(
        f"A worker process was killed: {error} Code -7 means that /dev/shm"
        " is full (docker run --shm-size=8g), -9 that memory is: give more, or"
        " set config.data.worker_kind = 'thread' or fewer config.data.workers."
      ) from error


def _begin_worker(worker: int, workers: int) -> None:
  """Ignores stop signals in a worker process, which ends with its parent."""
  tune_malloc()
  # The parent ends its workers, after it has saved a checkpoint.
  for number in STOP_SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  die_with_parent()


@contextlib.contextmanager
def block_signals(signals: Collection[signal.Signals]) -> Iterator[None]:
  """Blocks signals in child processes started inside the context.

  Children inherit the mask, until they set their own handlers.
  """
  _start_tracker()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
  """Starts Python's resource tracker, without its warnings.

  It would start with the first process and unblock the signals. It warns about
  shared memory of workers that were stopped, which a user can do nothing about.
  """
  filters = os.environ.get("PYTHONWARNINGS")
  quiet = "ignore:resource_tracker"
  os.environ["PYTHONWARNINGS"] = f"{filters},{quiet}" if filters else quiet
  try:
    multiprocessing.resource_tracker.ensure_running()
  finally:
    del os.environ["PYTHONWARNINGS"]
    if filters is not None:
      os.environ["PYTHONWARNINGS"] = filters


def die_with_parent() -> None:
  """Ends this worker process when its parent ends, even by SIGKILL."""

  def wait():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def usable_cores() -> int:
  """Returns the number of cores that this process may use."""
  return len(os.sched_getaffinity(0))
