# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM (how machines announce a preemption) as a question."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator


class Interrupted(Exception):  # noqa: N818, not an error
  """Leaves what a stop makes pointless."""


SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Whoever sends a signal to all processes of a group, as systemd does, may reach
# one twice: of that nobody is asked to hurry.
SAME_REQUEST = 1.0  # seconds


@contextlib.contextmanager
def guard() -> Iterator[Callable[[], bool]]:
  """Yields a function that says whether the run has been asked to stop.

  A later signal of a kind acts as it would have without the guard.
  """
  received = {}

  def note(number, frame):
    del frame
    if number not in received:
      received[number] = time.monotonic()
      # Not print, which the signal may have come in the middle of.
      os.write(2, b"\nStopping: saves first. Again to stop at once.\n")
    elif time.monotonic() - received[number] > SAME_REQUEST:
      signal.signal(number, before[number])
      signal.raise_signal(number)

  before = {number: signal.signal(number, note) for number in SIGNALS}
  try:
    yield lambda: bool(received)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
