# SPDX-License-Identifier: Apache-2.0
"""Throughput of training: images per second, MFU and the wait for data."""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax

from mixer.chips import peak_flops


class Timer:
  """Rates between two logged steps, measured without waiting for a device.

  Steps are dispatched ahead of the devices, so the rates are right only if the
  loop bounds by how many: wait for the metrics of a step two back before
  dispatching the next.
  """

  def __init__(
    self,
    *,
    step: int,
    batch: int,
    devices: int,
    flops_per_image: float = 0.0,
    now: Callable[[], float] = time.perf_counter,
  ):
    """Starts at `step`; MetricWriter explains the other arguments."""
    self._step = step
    self._batch = batch
    self._devices = devices
    self._flops_per_image = flops_per_image
    self._now = now
    self._is_paused = False
    self._interval_start = now()
    self._pauses = self._waits = 0.0

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Excludes evaluation, saving or compilation from the rates."""
    if self._is_paused:
      yield
      return
    self._is_paused, start = True, self._now()
    try:
      yield
    finally:
      self._pauses += self._now() - start
      self._is_paused = False

  @contextlib.contextmanager
  def wait_for_data(self) -> Iterator[None]:
    """Counts as `data_wait`, unless the timer is paused."""
    start = self._now()
    try:
      yield
    finally:
      if not self._is_paused:
        self._waits += self._now() - start

  def rates(self, step: int) -> dict[str, float]:
    """Returns the rates since the last call, or since the start.

    Returns:
      images_per_second (global), images_per_second_per_device, mfu, the share
      (0 to 1) of the devices' peak that the model's own arithmetic needs, and
      data_wait, the share of the time spent waiting for a batch. No mfu where
      the peak is unknown. Empty if no step or no time has passed.
    """
    now = self._now()
    seconds = now - self._interval_start - self._pauses
    steps, waits = step - self._step, self._waits
    self._interval_start, self._step = now, step
    self._pauses = self._waits = 0.0
    if steps <= 0 or seconds <= 0:
      return {}
    rate = steps * self._batch / seconds
    rates = {
      "images_per_second": rate,
      "images_per_second_per_device": rate / self._devices,
      "data_wait": min(1.0, waits / seconds),
    }
    peak = peak_flops(jax.local_devices()[0].device_kind)
    if peak and self._flops_per_image:
      rates["mfu"] = self._flops_per_image * rate / self._devices / peak
    return rates
