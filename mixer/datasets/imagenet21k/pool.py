# SPDX-License-Identifier: Apache-2.0
"""Worker processes that leave with the process that started them."""

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from mixer.data.workers import block_signals, die_with_parent
from mixer.errors import UserError

Task, Result = TypeVar("Task"), TypeVar("Result")


def run(
  function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
  """Yields function(task) for every task, in the order in which they end."""
  # Forking would copy the threads' locks of whatever library is at work.
  with concurrent.futures.ProcessPoolExecutor(
    workers, multiprocessing.get_context("spawn"), initializer=_begin_worker
  ) as pool:
    # The workers begin here: Ctrl-C, which reaches every process of a terminal,
    # must not find one half begun.
    with block_signals({signal.SIGINT}):
      futures = [pool.submit(function, task) for task in tasks]
    try:
      for future in concurrent.futures.as_completed(futures):
        yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
      # Ctrl-C may reach a worker first, and this process in a moment.
      time.sleep(0.5)
      raise UserError(
        "A worker process was killed, perhaps for want of memory: run the same"
        " command again, with fewer --workers. What is finished is kept."
      ) from error
    finally:
      pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker() -> None:
  # Without a word: the parent speaks for all.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
  die_with_parent()
