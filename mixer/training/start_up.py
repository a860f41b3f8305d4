# SPDX-License-Identifier: Apache-2.0
"""What passes between a command and its first update."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator


class StartUp:
  """Seconds by phase, from the start of the process on."""

  def __init__(
    self,
    began: float | None = None,
    now: Callable[[], float] = time.monotonic,
  ):
    """Counts what has passed as the imports.

    Args:
      began: when the process did, by `now`; None: as the system says.
      now: time in seconds, from any origin.
    """
    self._now = now
    self._began = _process_start() if began is None else began
    self._seconds = {"imports": now() - self._began}

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Adds what passes inside to a phase."""
    start = self._now()
    yield
    passed = self._now() - start
    self._seconds[name] = self._seconds.get(name, 0.0) + passed

  def __str__(self) -> str:
    parts = ", ".join(f"{k} {v:.1f}" for k, v in self._seconds.items())
    return f"first update after {self._now() - self._began:.1f} s: {parts}"


def _process_start() -> float:
  """When this process was started, by time.monotonic."""
  try:
    with open("/proc/self/stat") as file:
      # Names may have spaces and brackets; what counts is behind the last one.
      ticks = int(file.read().rpartition(")")[2].split()[19])
    started = ticks / os.sysconf("SC_CLK_TCK")
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    return time.monotonic() - age
  except (OSError, AttributeError):  # no Linux
    return time.monotonic()
