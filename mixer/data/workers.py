# SPDX-License-Identifier: Apache-2.0
"""Threads or processes that work ahead of the loop, by Grain."""

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
from mixer.malloc import tune_malloc

if TYPE_CHECKING:
  import grain

Kind = Literal["thread", "process"]


@dataclasses.dataclass(frozen=True)
class Workers:
  """Who computes the elements of a data set, and how far ahead.

  Attributes:
    number: of workers; None means one a core that this process may use, 0 that
      the caller does it all.
    kind: threads share one interpreter, whose lock they release in decoding and
      in most ops; processes do not, and take a few seconds to start.
    ahead: batches that are worked on before the caller asks for them.
  """

  number: int | None = None
  kind: Kind = "thread"
  ahead: int = 2

  def run(self, dataset: grain.MapDataset, per_batch: int) -> Iterator:
    """Yields the elements in order; its close() ends the workers.

    Args:
      dataset: of elements that are functions of their index alone; picklable by
        cloudpickle where workers are processes.
      per_batch: elements in a batch.
    """
    import grain  # imports JAX, which a lean worker process can do without

    tune_malloc()
    number = usable_cores() if self.number is None else self.number
    ahead = max(self.ahead * per_batch, number)
    if not number:
      return iter(dataset.to_iter_dataset(grain.ReadOptions(0, 0)))
    if self.kind == "thread":
      return iter(dataset.to_iter_dataset(grain.ReadOptions(number, ahead)))
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain asks for flags of its own
    options = grain.MultiprocessingOptions(number, -(-ahead // number))
    elements = dataset.to_iter_dataset(grain.ReadOptions(0, 0))
    return _in_processes(iter(elements.mp_prefetch(options, _begin_worker)))


DEFAULT_WORKERS = Workers()

# A terminal sends the one, a scheduler the other, to every process of a job.
STOPS = (signal.SIGINT, signal.SIGTERM)


def _in_processes(elements: grain.DatasetIterator) -> Iterator:
  """Starts worker processes and yields what they make."""
  with contextlib.closing(elements):
    try:
      # Processes start with the first element.
      with block_signals(STOPS):
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
  """Makes a worker process live exactly as long as the one that started it."""
  tune_malloc()
  # The parent decides when to stop: after it has saved.
  for number in STOPS:
    signal.signal(number, signal.SIG_IGN)
  die_with_parent()


@contextlib.contextmanager
def block_signals(signals: Collection[signal.Signals]) -> Iterator[None]:
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


def die_with_parent() -> None:
  """Makes a worker process end when its parent does, even by a kill."""

  def wait():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def usable_cores() -> int:
  """Cores that this process may use, which a container can limit."""
  return len(os.sched_getaffinity(0))
