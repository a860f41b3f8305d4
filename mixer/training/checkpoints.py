# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: written in the background, verified when read.

`WORKDIR/checkpoints/STEP/` holds one checkpoint in Orbax's format. A folder
named by a plain number is a checkpoint. One with a suffix is not: half-written,
`STEP.deleted` (on its way out) or `STEP.damaged` (kept for whoever wants to
look). Folders come and go by renaming, so a process may be killed at any time.

Orbax checks the index of its files but not the arrays in them: it was seen to
restore flipped bytes without a word. So a record with the checksum of every
array is committed together with the arrays.
"""

import functools
import json
import logging as python_logging
import math
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Sequence
from concurrent import futures

import jax
import numpy as np
from absl import logging
from jax import tree_util

from mixer.errors import UserError


class Checkpoints:
  """The checkpoints in a folder: the newest few, the best and milestones.

  Only `save` ever changes the folder, so an evaluation may read beside the
  training that writes. With several hosts, each calls `save` and the first
  one writes; each reads for itself.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    keep: int = 3,
    keep_every_steps: int | None = None,
    best: str = "max",
  ):
    """Neither creates the folder nor imports Orbax.

    Args:
      folder: usually WORKDIR/checkpoints.
      keep: how many of the newest checkpoints to keep, at least 1.
      keep_every_steps: checkpoints at its multiples are kept for ever.
      best: "max" or "min", the metric for which the best checkpoint is kept.

    Raises:
      ValueError: if an option has no meaning.
    """
    if keep < 1:
      raise ValueError(f"keep={keep}: at least the newest must be kept.")
    if best not in ("max", "min"):
      raise ValueError(f'best="{best}" is neither "max" nor "min".')
    self._folder = pathlib.Path(folder).absolute()
    self._keep = keep
    self._keep_every_steps = keep_every_steps
    self._sign = 1 if best == "max" else -1
    self._damaged = set()  # steps that restore() found so, still in place
    self._swept = False
    self._writer = futures.ThreadPoolExecutor(1, "checkpoints")
    self._pending = None

  @property
  def steps(self) -> list[int]:
    """The steps of all checkpoints, oldest first, but those found damaged."""
    names = [p.name for p in self._folder.glob("*") if p.name.isdecimal()]
    return sorted(set(map(int, names)) - self._damaged)

  @property
  def best_step(self) -> int | None:
    """The step with the best metric, the newest of equals; None without any."""
    ranked = []
    for step in self.steps:
      try:
        metric = _read_record(self._folder / str(step))["metric"]
      except DamageError:
        continue
      if metric is not None and not math.isnan(metric):
        ranked.append((self._sign * metric, step))
    return max(ranked)[1] if ranked else None

  def save(
    self, step: int, tree: object, metric: float | None = None
  ) -> None:
    """Starts writing a checkpoint and returns, once the one before is done.

    A step that has a checkpoint is left as it is, since the same step of the
    same run has the same state.

    Args:
      step: the number of updates applied.
      tree: a pytree of NumPy arrays, which must not change until `wait`.
      metric: by which the best checkpoint is found.

    Raises:
      UserError: if the checkpoint before this one could not be written.
      TypeError: if a leaf of the tree is not an array of numbers.
    """
    self.wait()
    if jax.process_index() == 0 and step not in self.steps:
      metric = None if metric is None else float(metric)
      job = (step, _name_arrays(tree), metric)
      self._pending = self._writer.submit(self._write, *job)

  def wait(self) -> None:
    """Returns when what `save` started is on disk.

    Raises:
      UserError: if the disk did not take it.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def close(self) -> None:
    """Waits as `wait` does and ends the thread."""
    try:
      self.wait()
    finally:
      self._writer.shutdown()

  def restore(
    self, template: object, step: int | None = None
  ) -> tuple[int, object] | None:
    """Reads the newest checkpoint that is sound, or the one of a given step.

    Damaged ones are passed over with a warning; the next `save` renames them.

    Args:
      template: a pytree of arrays or jax.ShapeDtypeStructs.
      step: of the checkpoint to read; the newest by default.

    Returns:
      The step and a tree like the template, of NumPy arrays; None where there
      is no checkpoint at all.

    Raises:
      UserError: if the checkpoint belongs to another model, if there is none
        of the given step, or if all are damaged.
    """
    self.wait()
    if step is not None and step not in self.steps:
      raise UserError(
        f"There is no sound checkpoint of step {step} in {self._folder}. "
        f"{_say_steps(self.steps)}"
      )
    reasons = []
    # Listed anew each time: a training in another process may have deleted
    # the one that could not be read, and have written newer ones.
    while steps := self.steps if step is None else [step]:
      path = self._folder / str(steps[-1])
      try:
        return steps[-1], _read(path, template)
      except DamageError as damage:
        if step is not None:
          raise UserError(
            f"The checkpoint {path} is damaged: {damage}. "
            f"{_say_steps([s for s in self.steps if s != step])}"
          ) from damage
        if path.exists():
          self._damaged.add(steps[-1])
          reasons.append(f"The checkpoint {path} is damaged: {damage}.")
          logging.warning("%s Using the one before it.", reasons[-1])
    if reasons:
      raise UserError(
        "\n".join(reasons) + "\nNo sound checkpoint is left. Move the folder "
        "away to start from the beginning."
      )
    return None

  def _write(
    self, step: int, arrays: dict[str, np.ndarray], metric: float | None
  ) -> None:
    """Commits one checkpoint and retires old ones. Runs in the background."""
    try:
      self._tidy()
      _write(self._folder / str(step), arrays, metric)
      self._retire()
    except Exception as error:
      self._sweep()
      if (reason := _operating_system_reason(error)) is None:
        raise
      raise UserError(
        f"Could not save step {step} in {self._folder}: {reason}. "
        + (
          f"The checkpoint of step {self.steps[-1]} is whole; free some space "
          "and start the same command again."
          if self.steps
          else "Free some space and start the same command again."
        )
      ) from error
