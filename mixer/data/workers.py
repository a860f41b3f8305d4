# SPDX-License-Identifier: Apache-2.0
"""Threads or processes that work ahead of the loop, by Grain."""

import contextlib
import dataclasses
import itertools
import signal
from collections.abc import Iterator
from typing import Literal

import grain
from absl import flags

from mixer.data.processes import (
  end_with_parent,
  passed_by,
  usable_cores,
)
from mixer.errors import UserError
from mixer.malloc import tune_malloc

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


ONE_A_CORE = Workers()

# A terminal sends the one, a scheduler the other, to every process of a job.
STOPS = (signal.SIGINT, signal.SIGTERM)


def _in_processes(elements: grain.DatasetIterator) -> Iterator:
  """Starts worker processes and yields what they make."""
  with contextlib.closing(elements):
    try:
      # Processes start with the first element.
      with passed_by(STOPS):
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
  end_with_parent()
