# SPDX-License-Identifier: Apache-2.0
"""How fast a run trains, and how long it still needs."""

import contextlib
import time
from collections.abc import Callable, Iterator


class Clock:
  """Measures between two logged steps, without waiting for any device.

  Steps are dispatched ahead of the devices, so the figures are right only if
  the loop bounds by how much: wait for the metrics of a step two back before
  dispatching the next.
  """

  def __init__(
    self,
    *,
    step: int,
    total_steps: int,
    batch: int,
    devices: int,
    now: Callable[[], float] = time.perf_counter,
  ):
    """Starts the clock.

    Args:
      step: number of updates applied so far.
      total_steps: at which the run ends.
      batch: images per step, over all devices of all hosts.
      devices: number of devices of all hosts.
      now: time in seconds, from any origin.
    """
    self._total_steps = total_steps
    self._batch = batch
    self._devices = devices
    self._now = now
    self._paused = False
    self._interval_start = now()
    self._step = step
    self._pauses = self._waits = 0.0
    self._steady = None

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Keeps evaluation, saving or compilation out of the rates."""
    if self._paused:
      yield
      return
    self._paused, start = True, self._now()
    try:
      yield
    finally:
      self._pauses += self._now() - start
      self._paused = False

  @contextlib.contextmanager
  def waiting_for_data(self) -> Iterator[None]:
    """Counts as `data_wait`, unless the clock is paused."""
    start = self._now()
    try:
      yield
    finally:
      if not self._paused:
        self._waits += self._now() - start

  def measure(self, step: int) -> dict[str, float]:
    """What happened since the last call, or the start, for the log's row.

    Returns:
      images_per_second (global), images_per_second_per_device, and data_wait,
      the share of the time spent waiting for a batch (0 to 1). Empty if no
      step or no time has passed.
    """
    now = self._now()
    seconds = now - self._interval_start - self._pauses
    steps, waits = step - self._step, self._waits
    self._interval_start, self._step = now, step
    self._pauses = self._waits = 0.0
    # The first interval may hold the compilation: it says little about the
    # time that is left.
    self._steady = self._steady or (now, step)
    if steps <= 0 or seconds <= 0:
      return {}
    rate = steps * self._batch / seconds
    return {
      "images_per_second": rate,
      "images_per_second_per_device": rate / self._devices,
      "data_wait": min(1.0, waits / seconds),
    }

  def remaining(self, step: int) -> float | None:
    """Seconds until total_steps, pauses included; None if not yet known.

    At the pace since the first call of `measure`.
    """
    if self._steady is None or step <= self._steady[1]:
      return None
    since, first_step = self._steady
    pace = (self._now() - since) / (step - first_step)
    return pace * (self._total_steps - step)
