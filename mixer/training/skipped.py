# SPDX-License-Identifier: Apache-2.0
"""Updates that had no effect, and the examples that they were made from."""

import json
from pathlib import Path

import numpy as np

from mixer.atomic_write import atomic_write
from mixer.data.shuffle import IndexShuffler


class SkippedUpdates:
  """Writes WORKDIR/skipped.jsonl, one JSON object for each such update.

  "step": the update's number, from 1 on. "loss", "gradient_norm": one is not
  finite, or neither; "update_norm", "parameter_norm". "positions": the first
  and the last of its batch in the global order. "examples": their numbers in
  the training split.
  """

  def __init__(
    self,
    folder: Path,
    *,
    from_step: int,
    batch: int,
    order: IndexShuffler,
    enabled: bool = True,
  ):
    """Cuts the file back to where the run goes on.

    Args:
      folder: the run's; the file is made at the first skipped update.
      from_step: rows of later steps go.
      batch: examples of an update, over all hosts.
      order: of the examples.
      enabled: False on all hosts but one; then nothing is written.
    """
    self.path = folder / "skipped.jsonl"
    self._enabled = enabled
    self._batch = batch
    self._order = order
    self._rows = []
    if enabled and self.path.exists():
      rows = map(json.loads, self.path.read_text().splitlines())
      self._rows = [row for row in rows if row["step"] <= from_step]
      self._write()

  def add(self, step: int, norms: dict[str, float]):
    """Records an update and what was measured of it."""
    if not self._enabled:
      return
    first = (step - 1) * self._batch
    positions = np.arange(first, first + self._batch)
    self._rows.append(
      {"step": step}
      | norms
      | {
        "positions": [first, first + self._batch - 1],
        "examples": self._order(positions).tolist(),
      }
    )
    self._write()

  def _write(self):
    with atomic_write(self.path) as aside:
      aside.write_text("".join(f"{json.dumps(row)}\n" for row in self._rows))
