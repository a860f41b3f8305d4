# SPDX-License-Identifier: Apache-2.0
"""Updates that the devices are still at, and a look at each when it is done."""

import collections

import jax
import numpy as np

from mixer.errors import UserError
from mixer.training.checkpoint import Checkpoints
from mixer.training.skipped import SkippedUpdates

# Enough to keep the devices busy, few enough to stop soon and to measure rates.
DEPTH = 2


class Diverged(UserError):
  """Loss or gradients have not been finite for too many updates in a row."""


class InFlight:
  """The newest updates; older ones are waited for.

  All hosts look at the same updates after the same number of steps, so that
  what they decide by them they decide alike.
  """

  def __init__(
    self,
    skipped: SkippedUpdates,
    checkpoints: Checkpoints,
    *,
    max_skipped: int,
  ):
    """Starts with none.

    Args:
      skipped: where updates without effect are written down.
      checkpoints: of the run.
      max_skipped: how many updates without effect in a row are too many.
    """
    self._skipped = skipped
    self._checkpoints = checkpoints
    self._max_skipped = max_skipped
    self._updates = collections.deque()

  def add(self, step: int, metrics: dict[str, jax.Array]):
    """Adds update number `step`; waits for the one DEPTH before it.

    Raises:
      Diverged: that one was the last of too many without effect.
    """
    self._updates.append((step, metrics))
    if len(self._updates) > DEPTH:
      self._look_at(*self._updates.popleft())

  def finish(self):
    """Waits for all; raises Diverged like `add`."""
    while self._updates:
      self._look_at(*self._updates.popleft())

  def _look_at(self, step: int, metrics: dict[str, jax.Array]):
    in_a_row = int(metrics["skipped_in_a_row"])
    if not in_a_row:
      return
    values = {name: value.item() for name, value in metrics.items()}
    del values["skipped_in_a_row"]
    total = values.pop("skipped")
    self._skipped.add(step, values)
    if in_a_row >= self._max_skipped:
      strange = ", ".join(
        f"{k} {v}" for k, v in values.items() if not np.isfinite(v)
      )
      raise Diverged(
        f"The last {in_a_row} updates up to step {step:,} ({total:,} in all) "
        f"had no effect, because they came to {strange}. {self._advice()}"
      )

  def _advice(self) -> str:
    self._checkpoints.wait()
    steps = self._checkpoints.steps
    kept = f"The checkpoint of step {steps[-1]:,} is sound. " if steps else ""
    return (
      f"{kept}Their batches are listed in the run's {self._skipped.path.name}. "
      "Try a lower optimizer.learning_rate, a longer warm-up or "
      "optimizer.clip_norm."
    )
