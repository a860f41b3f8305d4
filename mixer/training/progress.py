# SPDX-License-Identifier: Apache-2.0
"""Progress of a run: a line on the terminal, and rates: throughput and MFU."""

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import TextIO

import jax

from mixer.chips import peak_flops

ERASE_LINE = "\r\x1b[K"
# Redrawing a live line more often only costs time.
LIVE_SECONDS, PLAIN_SECONDS = 0.1, 10.0


class ProgressLine:
  """One live line on a terminal; elsewhere a plain line now and then.

  Safe to call from several threads.
  """

  def __init__(
    self,
    total_steps: int,
    stream: TextIO,
    now: Callable[[], float] = time.monotonic,
  ):
    """Shows nothing yet.

    Args:
      total_steps: number of updates at the end of the run.
      stream: a terminal or a file.
      now: time in seconds, from any origin.
    """
    self._total_steps = total_steps
    self._stream = stream
    self._is_live = stream.isatty()
    self._now = now
    self._start = now()
    self._first_shown = None
    self._drawn_at = float("-inf")
    self._line = ""
    self._is_drawn = True
    self._lock = threading.Lock()

  def show(self, step: int, values: Mapping[str, float]) -> None:
    """Updates the line; draws it unless it was drawn a moment ago.

    Args:
      step: number of updates applied.
      values: the row of that step.
    """
    now = self._now()
    parts = [
      format_seconds(now - self._start),
      f"step {step}/{self._total_steps} ({step / self._total_steps:.0%})",
    ]
    if "train/loss" in values:
      parts.append(f"loss {values['train/loss']:.4g}")
    if "images_per_second" in values:
      parts.append(f"{values['images_per_second']:,.0f} images/s")
    # Up to the first call the time holds compilation, which does not recur.
    self._first_shown = self._first_shown or (now, step)
    since, first_step = self._first_shown
    if step > first_step:
      pace = (now - since) / (step - first_step)
      remaining = pace * (self._total_steps - step)
      parts.append(f"{format_seconds(remaining)} left")
    with self._lock:
      self._line = " · ".join(parts)
      self._is_drawn = False
      every = LIVE_SECONDS if self._is_live else PLAIN_SECONDS
      if now - self._drawn_at >= every:
        self._drawn_at = now
        self._draw()

  def message(self, text: str) -> None:
    """Prints `text` on lines of its own, above the live line."""
    with self._lock:
      if self._is_live and self._line:
        self._stream.write(ERASE_LINE)
      self._stream.write(text + "\n")
      if self._is_live and self._line:
        self._draw()
      self._stream.flush()

  def close(self) -> None:
    """Leaves the last line standing."""
    with self._lock:
      if not self._is_drawn:
        self._draw()
      if self._is_live and self._line:
        self._stream.write("\n")
      self._stream.flush()

  def _draw(self) -> None:
    if self._is_live:
      # A line that wraps could not be erased.
      width = shutil.get_terminal_size().columns - 1
      self._stream.write(ERASE_LINE + self._line[:width])
    else:
      self._stream.write(self._line + "\n")
    self._stream.flush()
    self._is_drawn = True


def format_seconds(seconds: float) -> str:
  """Returns a text such as 12:34, 1:02:03 or 3d 04:05."""
  minutes, seconds = divmod(max(0, round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f"{days}d {hours:02}:{minutes:02}"
  if hours:
    return f"{hours}:{minutes:02}:{seconds:02}"
  return f"{minutes}:{seconds:02}"


class Rates:
  """Rates between two logged steps, measured without waiting for a device.

  Steps are dispatched ahead of the devices, so the rates are right only if the
  loop bounds by how many: wait for the metrics of a step two back before
  dispatching the next.
  """

  def __init__(
    self, *, step: int, batch: int, devices: int, flops_per_image: float = 0.0
  ):
    """Starts at `step`, with batch and devices of all hosts.

    flops_per_image: of a training step, 2 for a multiply-add, recomputation
      not counted; for `mfu`.
    """
    self._step = step
    self._batch = batch
    self._devices = devices
    self._flops_per_image = flops_per_image
    self._total = self._waits = 0.0

  def read(self, step: int, seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns the rates since the last call, or since the start.

    Args:
      step: number of updates applied.
      seconds: of `Ledger.seconds`; those of other kinds are left out.

    Returns:
      images_per_second (global), images_per_second_per_device, mfu, the share
      (0 to 1) of the devices' peak that the model's own arithmetic needs, and
      data_wait, the share of the time spent waiting for a batch. No mfu where
      the peak is unknown. Empty if no step or no time has passed.
    """
    updates, waits = seconds.get("update", 0.0), seconds.get("batch", 0.0)
    spent, waited = updates + waits - self._total, waits - self._waits
    steps = step - self._step
    self._total, self._waits, self._step = updates + waits, waits, step
    if steps <= 0 or spent <= 0:
      return {}
    rate = steps * self._batch / spent
    rates = {
      "images_per_second": rate,
      "images_per_second_per_device": rate / self._devices,
      "data_wait": waited / spent,
    }
    peak = peak_flops(jax.local_devices()[0].device_kind)
    if peak and self._flops_per_image:
      rates["mfu"] = self._flops_per_image * rate / self._devices / peak
    return rates
