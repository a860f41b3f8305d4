# SPDX-License-Identifier: Apache-2.0
"""Counts the images that cannot be decoded, where a config lets them pass."""

import collections

from mixer.data.sources import Source

SHOWN = 10


class BadImages:
  """The images that a run has come across, by split."""

  def __init__(self):
    # split -> example id -> how often it was met, in the order of the first
    self._met = collections.defaultdict(collections.Counter)
    self._places: dict[tuple[str, int], str] = {}

  def add(self, source: Source, i: int) -> None:
    """Notes that example `i` could not be decoded."""
    split = f"{source.name}, split {source.split}"
    ids = self._met[split]
    ids[i] += 1
    if (split, i) not in self._places and len(ids) <= SHOWN:
      self._places[split, i] = source.locate(i)

  @property
  def met(self) -> int:
    """How often one was met, in all splits."""
    return sum(ids.total() for ids in self._met.values())

  def report(self) -> str:
    """Says how many were met and which came first; "" if there were none."""
    return "\n".join(
      line
      for split, ids in self._met.items()
      for line in self._lines(split, ids)
    )

  def _lines(self, split: str, ids: collections.Counter) -> list[str]:
    lines = [
      f"{len(ids):,} image{'s' * (len(ids) > 1)} of {split}, could not be"
      f" decoded, met {ids.total():,} times. Training takes the next of the"
      " order in their place, evaluation leaves them out:"
    ]
    lines += [
      f"  example {i} ({self._places[split, i]})" for i in list(ids)[:SHOWN]
    ]
    if len(ids) > SHOWN:
      lines.append(f"  and {len(ids) - SHOWN:,} more")
    return lines
