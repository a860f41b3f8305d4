# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM (how machines announce a preemption) as a question."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator


class Interrupted(Exception):  # noqa: N818, not an error
  """Leaves what a stop makes pointless."""


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def guard() -> Iterator[Callable[[], bool]]:
  """Yields a function that says whether the run has been asked to stop.

  The second signal of a kind acts as it would have without the guard.
  """
  received = []

  def note(number, frame):
    del frame
    received.append(number)
    # Not print, which the signal may have come in the middle of.
    os.write(2, b"\nStopping: saves first. Again to stop at once.\n")
    signal.signal(number, before[number])

  before = {number: signal.signal(number, note) for number in SIGNALS}
  try:
    yield lambda: bool(received)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
