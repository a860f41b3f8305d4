# SPDX-License-Identifier: Apache-2.0
"""The most images that a device can take at once, from few compilations."""

import dataclasses
from collections.abc import Callable

from mixer.tools.preflight.compiler import DoesNotFit

STARTS = 32, 8, 1  # images at once of the first compilation, twice the second
TRIES = 4


@dataclasses.dataclass(frozen=True)
class Line:
  """peak = fixed + per_image * images, in bytes per device.

  Few images hide behind the gradients, which are there after them; many make
  the compiler recompute: the line is for finding what to try.
  """

  fixed: float
  per_image: float

  def largest(self, limit: float) -> int:
    """The most images whose peak is within the limit; 0 if none are."""
    return max(0, int((limit - self.fixed) // self.per_image))


@dataclasses.dataclass(frozen=True)
class Suggestion:
  """What to set.

  at_once: the most images of a device's share that fit at once and divide it;
    0 if not even one does.
  accumulation: the micro-batches that this makes.
  whole: the most images that would fit without accumulation, whatever the
    share is.
  peak: bytes that the compiler gives for at_once; None if it is 0.
  line: what was fitted; None if two images are too many.
  """

  at_once: int
  accumulation: int
  whole: int
  peak: int | None
  line: Line | None


def suggest(
  peak_of: Callable[[int, int], int], *, share: int, limit: float
) -> Suggestion:
  """Two compilations, a line through them, and one that confirms.

  Args:
    peak_of: bytes that a device needs for so many images in so many
      micro-batches. Raises DoesNotFit.
    share: images of each device in one update.
    limit: bytes that a device has.
  """
  line = _fit(peak_of)
  whole = line.largest(limit) if line else 0
  most = min(share, whole if line else 1)
  candidates = [n for n in range(most, 0, -1) if share % n == 0]
  for at_once in candidates[:TRIES]:
    try:
      peak = peak_of(share, share // at_once)
    except DoesNotFit:
      continue
    if peak <= limit:
      return Suggestion(at_once, share // at_once, whole, peak, line)
  return Suggestion(0, 0, whole, None, line)


def _fit(peak_of: Callable[[int, int], int]) -> Line | None:
  for images in STARTS:
    try:
      small, large = peak_of(images, 1), peak_of(2 * images, 1)
    except DoesNotFit:
      continue
    per_image = max(1.0, (large - small) / images)
    return Line(small - images * per_image, per_image)
  return None
