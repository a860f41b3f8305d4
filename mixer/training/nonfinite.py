# SPDX-License-Identifier: Apache-2.0
"""Dispatched updates, and the watch for loss and gradients that are not finite.

Steps are dispatched ahead of the devices. An update that is not finite has no
effect (`step.apply_gradients`); it is written to WORKDIR/skipped.jsonl, and too
many in a row, a streak, end the run. Nothing is saved within a streak, because
parameters that have diverged give no finite loss for any batch.
"""

import collections
import json

import jax
import numpy as np
from etils import epath

from mixer.data.shuffle import IndexShuffler
from mixer.errors import UserError
from mixer.storage import write_text
from mixer.training.checkpoint import Checkpoints
from mixer.training.metrics import read_rows

# Enough to keep the devices busy, few enough to stop soon and to measure rates.
DISPATCH_AHEAD = 2


class DivergedError(UserError):
  """Loss or gradients have not been finite for too many updates in a row."""


class PendingUpdates:
  """The newest updates, whose metrics have not been looked at yet.

  All hosts look at the same updates after the same number of steps, so that
  they decide alike. Each skipped update is one JSON object in skipped.jsonl:
  "step", counted from 1; "loss" and "gradient_norm", of which at least one is
  not finite; "update_norm", "parameter_norm"; "positions", the first and the
  last of its batch in the global order; "examples", their numbers in the
  training split.
  """

  def __init__(
    self,
    folder: epath.Path,
    *,
    from_step: int,
    order: IndexShuffler,
    checkpoints: Checkpoints,
    max_skipped: int,
    enabled: bool = True,
  ):
    """Drops the rows of skipped.jsonl after the step that the run resumes at.

    Args:
      folder: the run's; the file is made at the first skipped update.
      from_step: number of updates applied so far.
      order: of the examples.
      checkpoints: of the run, for the message when it diverges.
      max_skipped: skipped updates in a row that end the run.
      enabled: False on all hosts but the first: nothing is written.
    """
    self._path = folder / "skipped.jsonl"
    self._order = order
    self._checkpoints = checkpoints
    self._max_skipped = max_skipped
    self._enabled = enabled
    self._pending = collections.deque()
    self._in_a_row = 0
    rows = read_rows(folder, self._path.name) if enabled else []
    self._rows = [row for row in rows if row["step"] <= from_step]
    if rows:
      self._write()

  def push(self, step: int, metrics: dict[str, jax.Array]):
    """Adds update number `step`; waits for the one DISPATCH_AHEAD before it.

    Raises:
      DivergedError: that one was the last of too many skipped updates.
    """
    self._pending.append((step, metrics))
    if len(self._pending) > DISPATCH_AHEAD:
      self._check(*self._pending.popleft())

  def streak(self) -> int:
    """Waits for all updates; returns how many of the latest were skipped.

    Raises:
      DivergedError: like `push`.
    """
    while self._pending:
      self._check(*self._pending.popleft())
    return self._in_a_row

  def _check(self, step: int, metrics: dict[str, jax.Array]):
    self._in_a_row = in_a_row = int(metrics["skipped_in_a_row"])
    if not in_a_row:
      return
    values = {name: value.item() for name, value in metrics.items()}
    del values["skipped_in_a_row"]
    total = values.pop("skipped")
    if self._enabled:
      self._record(step, values)
    if in_a_row >= self._max_skipped:
      listed = ", ".join(
        f"{name} {x}" for name, x in values.items() if not np.isfinite(x)
      )
      raise DivergedError(
        f"The last {in_a_row} updates up to step {step:,} ({total:,} in all) "
        f"had no effect, because they came to {listed}: the run's skipped.jsonl"
        f" lists their batches. {self._advice(step - in_a_row)}"
      )

  def _record(self, step: int, values: dict[str, float]):
    first, end = (self._order.batch * n for n in (step - 1, step))
    self._rows.append(
      {"step": step}
      | values
      | {
        "positions": [first, end - 1],
        "examples": self._order(np.arange(first, end)).tolist(),
      }
    )
    self._write()

  def _write(self):
    write_text(
      self._path, "".join(f"{json.dumps(row)}\n" for row in self._rows)
    )

  def _advice(self, sound_step: int) -> str:
    self._checkpoints.wait()
    back = "Start again in another --workdir"
    if steps := [s for s in self._checkpoints.steps if s <= sound_step]:
      back = (
        f"Go back to step {steps[-1]}, the newest checkpoint from before them "
        f"(--from_step={steps[-1]} --accept_changes), or to an earlier one if "
        "the loss had risen by then"
      )
    return (
      f"{back}, with a lower --config.optimizer.learning_rate, a longer "
      "warm-up or --config.optimizer.clip_norm=1."
    )
