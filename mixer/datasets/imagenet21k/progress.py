# SPDX-License-Identifier: Apache-2.0
"""A line now and then about work that takes hours."""

import time

EVERY_SECONDS = 10


class Line:
  """Says how far `verb` has come: parts, images, images a second, time left."""

  def __init__(self, verb: str, parts: str, total: int, done: int = 0):
    self._verb, self._parts, self._total = verb, parts, total
    self._done = self._before = done
    self._images = 0
    self._begin = self._said = time.monotonic()

  def add(self, images: int) -> None:
    """Counts one more part, and the images in it."""
    self._done += 1
    self._images += images
    now = time.monotonic()
    if now - self._said < EVERY_SECONDS and self._done < self._total:
      return
    self._said = now
    seconds = max(now - self._begin, 1e-3)
    left = self._total - self._done
    left *= seconds / (self._done - self._before) / 60
    print(
      f"{self._verb} {self._done:,} of {self._total:,} {self._parts},"
      f" {self._images / seconds:,.0f} images/s, {left:,.0f} min left",
      flush=True,
    )
