# SPDX-License-Identifier: Apache-2.0
"""A thread that does jobs in order and brings its failure back."""

import queue
import threading
from collections.abc import Callable

from mixer.errors import UserError


class Background:
  """Runs jobs one after the other in a thread of its own.

  The first failure ends the work: later jobs are dropped, and every further
  call of `submit` or `wait` raises that failure in the caller's thread.
  """

  def __init__(self, name: str, *, path: str):
    """Starts no thread yet; the first job does.

    Args:
      name: of the thread, as debuggers show it.
      path: what the jobs write to, for the message of a failure.
    """
    self._path = path
    self._jobs = queue.SimpleQueue()
    self._failure = None
    # A daemon, because a job may wait for an array that never comes (another
    # host died): the process must still be able to end.
    self._thread = threading.Thread(target=self._run, name=name, daemon=True)

  def submit(self, job: Callable, *arguments: object) -> None:
    """Queues job(*arguments) and returns at once."""
    self._raise_failure()
    if self._thread.ident is None:
      self._thread.start()
    self._jobs.put((job, arguments))

  def wait(self) -> None:
    """Returns when every job submitted so far is done."""
    if self._thread.is_alive():
      done = threading.Event()
      self._jobs.put(done)
      done.wait()
    self._raise_failure()

  def stop(self) -> None:
    """Finishes the jobs submitted so far and ends the thread."""
    if self._thread.is_alive():
      self._jobs.put(None)
      self._thread.join()
    self._raise_failure()

  def _run(self) -> None:
    while (item := self._jobs.get()) is not None:
      if isinstance(item, threading.Event):
        item.set()
      elif self._failure is None:
        job, arguments = item
        try:
          job(*arguments)
        except Exception as error:
          self._failure = error

  def _raise_failure(self) -> None:
    if isinstance(self._failure, OSError):
      raise UserError(
        f"Cannot write {self._path}: {self._failure.strerror}. Make room "
        "there or choose another --workdir, then start the same command "
        "again: it goes on from the last checkpoint."
      ) from self._failure
    if self._failure is not None:
      raise self._failure
