# SPDX-License-Identifier: Apache-2.0
"""Where a run stands, for the person who watches the terminal."""

import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

ERASE_LINE = "\r\x1b[K"


class Progress:
  """One live line on a terminal; elsewhere a plain line now and then.

  Safe to call from several threads.
  """

  def __init__(
    self,
    total_steps: int,
    *,
    stream: TextIO | None = None,
    enabled: bool = True,
    every_seconds: float = 10.0,
    now: Callable[[], float] = time.monotonic,
  ):
    """Shows nothing yet.

    Args:
      total_steps: at which the run ends.
      stream: standard error if None.
      enabled: False in all processes but one; then nothing is shown.
      every_seconds: between two plain lines, at least.
      now: time in seconds, from any origin.
    """
    self._total_steps = total_steps
    self._stream = stream or sys.stderr
    self._is_live = self._stream.isatty()
    self._enabled = enabled
    # Redrawing a live line more often only costs time.
    self._every_seconds = 0.1 if self._is_live else every_seconds
    self._now = now
    self._start = now()
    self._shown_at = None
    self._line = ""
    self._is_line_shown = True
    self._lock = threading.Lock()

  def show(
    self,
    step: int,
    *,
    loss: float | None = None,
    images_per_second: float | None = None,
    remaining: float | None = None,
  ) -> None:
    """Shows how far the run is; too soon after the last time, later.

    Args:
      step: number of updates applied.
      loss: a number that is already there: to fetch it would stop the run.
      images_per_second: of all devices.
      remaining: estimated seconds to the end.
    """
    if not self._enabled:
      return
    now = self._now()
    parts = [
      format_seconds(now - self._start),
      f"step {step}/{self._total_steps} ({step / self._total_steps:.0%})",
    ]
    if loss is not None:
      parts.append(f"loss {loss:.4g}")
    if images_per_second is not None:
      parts.append(f"{images_per_second:,.0f} images/s")
    if remaining is not None:
      parts.append(f"{format_seconds(remaining)} left")
    with self._lock:
      self._line = " · ".join(parts)
      self._is_line_shown = False
      is_due = (
        self._shown_at is None or now - self._shown_at >= self._every_seconds
      )
      if is_due:
        self._shown_at = now
        self._draw()

  def message(self, text: str) -> None:
    """Prints `text` on lines of its own, above the live line."""
    if not self._enabled:
      return
    with self._lock:
      if self._is_live and self._line:
        self._stream.write(ERASE_LINE)
      self._stream.write(text + "\n")
      if self._is_live:
        self._draw()
      self._stream.flush()

  def close(self) -> None:
    """Leaves the last line standing."""
    with self._lock:
      if not self._enabled or not self._line:
        return
      if not self._is_line_shown:
        self._draw()
      if self._is_live:
        self._stream.write("\n")
      self._stream.flush()
      self._enabled = False

  def _draw(self) -> None:
    if not self._line:
      return
    if self._is_live:
      # A line that wraps could not be erased.
      width = shutil.get_terminal_size().columns - 1
      self._stream.write(ERASE_LINE + self._line[:width])
    else:
      self._stream.write(self._line + "\n")
    self._stream.flush()
    self._is_line_shown = True


def format_seconds(seconds: float) -> str:
  """12:34, 1:02:03 or 3d 04:05."""
  seconds = max(0, round(seconds))
  minutes, seconds = divmod(seconds, 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f"{days}d {hours:02}:{minutes:02}"
  if hours:
    return f"{hours}:{minutes:02}:{seconds:02}"
  return f"{minutes}:{seconds:02}"
