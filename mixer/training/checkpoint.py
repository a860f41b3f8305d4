# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: written in the background, verified when read.

`WORKDIR/checkpoints/STEP/` holds one (`checkpoint_io`), in a local folder or in
a bucket (gs://). Commits are atomic: Orbax renames a local folder when it is
complete, and writes `commit_success.txt` last in a bucket. Folders with a
suffix are no checkpoints: half-written, `STEP.deleted` (being removed) or
`STEP.damaged` (quarantined, for inspection). `metrics.json` maps steps to the
metric that decides which checkpoint is the best; it is written apart, because a
step is saved before it is evaluated.

Orbax's managers are not used. They list a folder only when opened, and create
it, which suits no reader next to a running training; and they know no
quarantine. The v1 API was tried, on a disk and in a bucket: it would do, but
its methods are still being renamed, and old checkpoints would need a second
reader.
"""

import contextlib
import json
import math
import os
import re
from concurrent import futures

import jax
import numpy as np
from absl import logging
from etils import epath

from mixer.errors import UserError
from mixer.storage import is_in_bucket, storage_path, write_text
from mixer.training import checkpoint_io

_COMMITTED = "commit_success.txt"
_METRICS = "metrics.json"


class Checkpoints:
  """The checkpoints in a folder: the newest few, the best and milestones.

  Only `save`, `record_metric` and `move_after` change the folder, so that an
  evaluation may read while the training writes. With several hosts the first
  one writes, and each reads for itself.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    keep: int = 3,
    keep_every_steps: int | None = None,
    best: str = "max",
  ):
    """Opens a folder; neither creates it nor imports Orbax.

    Args:
      folder: usually WORKDIR/checkpoints, local or gs://.
      keep: number of newest checkpoints to keep, at least 1.
      keep_every_steps: checkpoints at multiples of it are kept for ever.
      best: "max" or "min"; the checkpoint with the best metric is kept, too.

    Raises:
      UserError: the folder is in a storage that Orbax cannot write to.
    """
    assert keep >= 1 and best in ("max", "min")
    self._folder = storage_path(folder)
    self._keep = keep
    self._keep_every_steps = keep_every_steps
    self._sign = 1 if best == "max" else -1
    self._damaged = set()  # steps that `restore` could not read
    self._writer = futures.ThreadPoolExecutor(1, "checkpoints")
    self._pending = None
    self._has_failed = False  # the save before the pending one

  @property
  def steps(self) -> list[int]:
    """Steps of all checkpoints not known to be damaged, oldest first."""
    steps = {
      int(path.name)
      for path in _list(self._folder)
      if path.name.isdecimal() and _is_committed(path)
    }
    return sorted(steps - self._damaged)

  @property
  def best_step(self) -> int | None:
    """Step with the best metric, the newest of equals; None without any."""
    return self._best()[1]

  def is_best(self, metric: float) -> bool:
    """Returns True if no checkpoint has a metric as good as this one."""
    best, _ = self._best()
    return best is None or self._sign * metric > best

  def _best(self) -> tuple[float | None, int | None]:
    """Returns the highest signed metric and its step."""
    metrics = self._read_metrics()
    signed = [
      (self._sign * metrics[step], step)
      for step in self.steps
      if step in metrics
    ]
    return max(signed, default=(None, None))

  def record_metric(self, step: int, metric: float) -> None:
    """Records the metric of a step, saved or being saved; ignores NaN.

    The next `save` deletes checkpoints that are no longer the best.

    Raises:
      UserError: the record cannot be written.
    """
    if jax.process_index() == 0 and not math.isnan(metric):
      metrics = self._read_metrics() | {step: float(metric)}
      _write_metrics(self._folder, metrics)

  def _read_metrics(self) -> dict[int, float]:
    """Returns metrics by step; older checkpoints contain their own."""
    with contextlib.suppress(FileNotFoundError):
      content = json.loads((self._folder / _METRICS).read_text())
      return {int(step): metric for step, metric in content.items()}
    metrics = {}
    for step in self.steps:
      try:
        record = checkpoint_io.read_record(self._folder / str(step))
      except checkpoint_io.DamageError:
        continue  # `restore` reports it
      metric = record.get("metric")
      if metric is not None and not math.isnan(metric):
        metrics[step] = metric
    return metrics

  def save(self, step: int, tree: object) -> None:
    """Waits for the previous save, then starts this one and returns.

    A step that has a sound checkpoint keeps it, since the same step of a run
    has the same state. If the previous save has failed in a bucket, this one is
    tried instead.

    Args:
      step: number of updates applied.
      tree: pytree of NumPy arrays, not to be changed before `wait` returns.

    Raises:
      UserError: the previous save could not be written.
    """
    try:
      self.wait()
      self._has_failed = False
    except Exception as error:
      if self._has_failed or not is_in_bucket(self._folder):
        raise
      self._has_failed = True
      logging.warning("A checkpoint was not saved, the next one is: %s", error)
    if jax.process_index() == 0 and step not in self.steps:
      # Orbax restores NumPy scalars as Python numbers.
      arrays = jax.tree.map(np.asarray, checkpoint_io.name_leaves(tree))
      self._pending = self._writer.submit(self._save, step, arrays)

  def move_after(self, step: int, folder: epath.Path) -> None:
    """Moves the checkpoints after a step, and copies all metrics."""
    metrics = self._read_metrics()
    _write_metrics(folder, metrics)
    _write_metrics(
      self._folder, {s: x for s, x in metrics.items() if s <= step}
    )
    for later in [s for s in reversed(self.steps) if s > step]:
      (self._folder / str(later)).rename(folder / str(later))

  def wait(self) -> None:
    """Waits until the save in progress is committed.

    Raises:
      UserError: it could not be written.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def close(self) -> None:
    """Waits like `wait`, then ends the thread."""
    try:
      self.wait()
    finally:
      self._writer.shutdown()

  def restore(
    self, template: object, step: int | None = None
  ) -> tuple[int, object] | None:
    """Reads the checkpoint of a step, by default the newest sound one.

    Damaged ones are skipped with a warning; the next `save` quarantines them.

    Args:
      template: pytree of arrays or of jax.ShapeDtypeStructs.
      step: the step to read.

    Returns:
      The step and a tree like the template, of NumPy arrays; None if there is
      no checkpoint at all.

    Raises:
      UserError: the checkpoint belongs to another model, the step has none, or
        none is sound. (The owner of a run decides about starting again from
        step 0 when all of its checkpoints are damaged.)
    """
    self.wait()
    reasons = []
    # Listed again each time: meanwhile a training may have deleted the oldest
    # checkpoints and written others.
    while steps := [s for s in self.steps if step in (None, s)]:
      path = self._folder / str(steps[-1])
      try:
        return steps[-1], checkpoint_io.read(path, template)
      except checkpoint_io.DamageError as damage:
        self._damaged.add(steps[-1])
        if path.exists():
          reasons.append(f"Checkpoint {path} is damaged: {damage}.")
          logging.warning("%s", reasons[-1])
    if step is not None:
      present = ", ".join(map(str, self.steps)) or "none"
      reasons.append(
        f"No sound checkpoint of step {step} in {self._folder}; there are: "
        f"{present}. Name one of these, or leave the flag out for the newest."
      )
    elif reasons:
      reasons.append(f"None is left. Move {self._folder} away to start again.")
    if reasons:
      raise UserError(" ".join(reasons))
    return None

  def _save(self, step: int, arrays: dict[str, np.ndarray]) -> None:
    """Writes one checkpoint, then deletes those no longer to be kept."""
    try:
      self._remove_leftovers()
      for damaged in list(self._damaged):
        _rename(self._folder / str(damaged), ".damaged")
        self._damaged.remove(damaged)
      checkpoint_io.write(self._folder / str(step), arrays)
      self._delete_expired()
    except Exception as error:
      reason = checkpoint_io.find_system_error(error)
      if reason is None or is_in_bucket(self._folder):
        raise
      advice = "Free some space and start the same command again."
      if steps := self.steps:
        advice = f"The checkpoint of step {steps[-1]} is whole; f{advice[1:]}"
      raise UserError(
        f"Could not save step {step} in {self._folder}: {reason}. {advice}"
      ) from error
    finally:
      with contextlib.suppress(Exception):  # the next save tries again
        self._remove_leftovers()

  def _delete_expired(self) -> None:
    """Keeps the newest checkpoints, the best one and all milestones."""
    steps, every = self.steps, self._keep_every_steps
    milestones = {s for s in steps if every and s % every == 0}
    keep = milestones | {*steps[-self._keep :], self.best_step}
    for expired in set(steps) - keep:
      try:
        _delete(self._folder / str(expired))
      except Exception as error:  # the next save tries again
        logging.warning("Cannot delete checkpoint %d: %s", expired, error)

  def _remove_leftovers(self) -> None:
    """Removes half-written and half-deleted checkpoints of killed runs, too."""
    for path in _list(self._folder):
      is_leftover = path.name.isdecimal() and not _is_committed(path)
      if is_leftover or re.search(
        r"\.orbax-checkpoint-tmp|\.deleted$", path.name
      ):
        _remove_tree(path)


def _write_metrics(folder: epath.Path, metrics: dict[int, float]) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  write_text(folder / _METRICS, json.dumps(metrics))


def _list(folder: epath.Path) -> list[epath.Path]:
  """Lists a folder, and an absent one as empty.

  `is_dir` would also return False when a bucket or a file server cannot be
  reached, and the run would start again.
  """
  try:
    return list(folder.iterdir())
  except (FileNotFoundError, NotADirectoryError):
    return []


def _is_committed(path: epath.Path) -> bool:
  return not is_in_bucket(path) or (path / _COMMITTED).exists()


def _rename(path: epath.Path, suffix: str) -> epath.Path:
  """Renames a checkpoint, replacing an earlier one of that name."""
  target = path.with_name(path.name + suffix)
  _remove_tree(target)
  if path.exists():
    path.rename(target)
  return target


def _delete(path: epath.Path) -> None:
  """Deletes a checkpoint; it stops being one before its files are deleted."""
  if is_in_bucket(path):
    (path / _COMMITTED).unlink(missing_ok=True)
  else:
    path = _rename(path, ".deleted")
  _remove_tree(path)


def _remove_tree(path: epath.Path) -> None:
  """Removes a folder if it exists; on an error, the next save tries again."""
  with contextlib.suppress(Exception):
    path.rmtree()
