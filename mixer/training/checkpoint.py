# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: written in the background, verified when read.

`WORKDIR/checkpoints/STEP/` holds one checkpoint in Orbax's format. A folder
named by a plain number is a checkpoint. One with a suffix is not: half-written,
`STEP.deleted` (on its way out) or `STEP.damaged` (left for whoever wants to
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
import sys
import zlib
from concurrent import futures

import jax
import numpy as np
from absl import logging

from mixer.errors import UserError


class Checkpoints:
  """The checkpoints in a folder: the newest few, the best and milestones.

  Only `save` ever changes the folder, so that an evaluation may read beside
  the training that writes. With several hosts every one calls `save`, of which
  the first writes, and each reads for itself.
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
      keep: how many of the newest checkpoints stay, at least 1.
      keep_every_steps: checkpoints at multiples of it stay for ever.
      best: "max" or "min"; the checkpoint with the best metric stays, too.

    Raises:
      ValueError: if an option makes no sense.
    """
    if keep < 1:
      raise ValueError(f"keep={keep}: the newest checkpoint has to stay.")
    if best not in ("max", "min"):
      raise ValueError(f'best="{best}": say "max" or "min".')
    self._folder = pathlib.Path(folder).absolute()
    self._keep = keep
    self._keep_every_steps = keep_every_steps
    self._sign = 1 if best == "max" else -1
    self._damaged = set()  # steps that `restore` could not read
    self._writer = futures.ThreadPoolExecutor(1, "checkpoints")
    self._pending = None

  @property
  def steps(self) -> list[int]:
    """The steps of all checkpoints not known as damaged, oldest first."""
    folders = [path for path in self._folder.glob("*") if path.is_dir()]
    steps = {int(path.name) for path in folders if path.name.isdecimal()}
    return sorted(steps - self._damaged)

  @property
  def best_step(self) -> int | None:
    """The step with the best metric, the newest of equals; None without any."""
    return self._best()[1]

  def is_best(self, metric: float) -> bool:
    """Whether a checkpoint with this metric would be better than all here."""
    ranking, _ = self._best()
    return ranking is None or self._sign * metric > ranking

  def _best(self) -> tuple[float | None, int | None]:
    """The highest signed metric and its step."""
    ranked = []
    for step in self.steps:
      try:
        metric = _read_record(self._folder / str(step))["metric"]
      except _DamageError:
        continue  # `restore` is the place to say so
      if metric is not None and not math.isnan(metric):
        ranked.append((self._sign * metric, step))
    return max(ranked, default=(None, None))

  def save(self, step: int, tree: object, metric: float | None = None) -> None:
    """Waits for the save before this one, then starts this one and returns.

    A step that has a sound checkpoint keeps it, since the same step of a run
    has the same state.

    Args:
      step: the number of updates applied.
      tree: a pytree of NumPy arrays, not to be changed before `wait` returns.
      metric: decides which checkpoint is the best; this one cannot without.

    Raises:
      UserError: if the save before this one did not get onto the disk.
    """
    self.wait()
    if jax.process_index() == 0 and step not in self.steps:
      metric = None if metric is None else float(metric)
      # Orbax gives NumPy's scalars back as numbers of Python.
      arrays = jax.tree.map(np.asarray, _name_leaves(tree))
      self._pending = self._writer.submit(self._save, step, arrays, metric)

  def wait(self) -> None:
    """Returns when what `save` started is on the disk.

    Raises:
      UserError: if it did not get there.
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
    """Reads the checkpoint of a step, or the newest that is sound.

    Damaged ones are passed over with a warning; the next `save` renames them.

    Args:
      template: a pytree of arrays or of jax.ShapeDtypeStructs.
      step: which one to read, the newest by default.

    Returns:
      The step and a tree like the template, of NumPy arrays; None if there is
      no checkpoint at all.

    Raises:
      UserError: if the checkpoint belongs to another model, there is none of
        that step, or not one is sound. (To start a run anew because all of its
        checkpoints are damaged is for its owner to decide.)
    """
    self.wait()
    reasons = []
    # Listed anew each time: while this process was reading, a training may
    # have deleted the oldest checkpoints and written others.
    while steps := [s for s in self.steps if step in (None, s)]:
      path = self._folder / str(steps[-1])
      try:
        return steps[-1], _read(path, template)
      except _DamageError as damage:
        self._damaged.add(steps[-1])
        if path.exists():
          reasons.append(f"Checkpoint {path} is damaged: {damage}.")
          logging.warning("%s", reasons[-1])
    if step is not None:
      present = ", ".join(map(str, self.steps)) or "none"
      reasons.append(
        f"No sound checkpoint of step {step} in {self._folder}; there are: "
        f"{present}. Choose one of these, or none to get the newest."
      )
    elif reasons:
      reasons.append("None is left. Move the folder away to start anew.")
    if reasons:
      raise UserError(" ".join(reasons))
    return None

  def _save(
    self, step: int, arrays: dict[str, np.ndarray], metric: float | None
  ) -> None:
    """Writes one checkpoint, then deletes what need not stay."""
    try:
      self._sweep()
      for damaged in list(self._damaged):
        _rename(self._folder / str(damaged), ".damaged")
        self._damaged.remove(damaged)
      _write(self._folder / str(step), arrays, metric)
      for outlived in set(self.steps) - self._choose_what_stays():
        _rename(self._folder / str(outlived), ".deleted")
    except Exception as error:
      if (reason := _find_system_error(error)) is None:
        raise
      advice = "Free some space and start the same command again."
      if steps := self.steps:
        advice = f"The checkpoint of step {steps[-1]} is whole; f{advice[1:]}"
      raise UserError(
        f"Could not save step {step} in {self._folder}: {reason}. {advice}"
      ) from error
    finally:
      self._sweep()

  def _choose_what_stays(self) -> set[int]:
    steps = self.steps
    milestones = {
      s
      for s in steps
      if self._keep_every_steps and not s % self._keep_every_steps
    }
    return milestones | {*steps[-self._keep :], self.best_step}

  def _sweep(self) -> None:
    """Removes what is half-written or half-deleted, here or by a killed run."""
    for pattern in ("*.orbax-checkpoint-tmp*", "*.deleted"):
      for path in self._folder.glob(pattern):
        shutil.rmtree(path, ignore_errors=True)  # if not now, then next time


class _DamageError(Exception):
  """What is wrong with a checkpoint, as the end of a sentence."""


def _write(
  path: pathlib.Path, arrays: dict[str, np.ndarray], metric: float | None
) -> None:
  """Commits arrays and their record in one go."""
  record = {
    "metric": metric,
    "arrays": {name: _describe(array) for name, array in arrays.items()},
  }
  seal = {"record": record, "checksum": _checksum_record(record)}
  _import_orbax().save(path, arrays, custom_metadata=seal)


def _read(path: pathlib.Path, template: object) -> object:
  """Returns a tree like the template; raises _DamageError or UserError."""
  record = _read_record(path)["arrays"]
  _check_model(path, record, template)
  try:
    arrays = _import_orbax().restore(path)
    wrong = [n for n in record if _describe(arrays[n]) != record[n]]
  except Exception as error:  # whatever Orbax makes of broken files
    reason = str(error).partition("\n")[0][:200]
    raise _DamageError(f"{type(error).__name__}: {reason}") from error
  if wrong:
    raise _DamageError(f"the checksum of {wrong[0]} does not match")
  return jax.tree.unflatten(
    jax.tree.structure(template), [arrays[n] for n in _name_leaves(template)]
  )


def _read_record(path: pathlib.Path) -> dict:
  """Returns what `_write` recorded; raises _DamageError if that is broken."""
  try:
    # Read as the JSON it is, because Orbax's own way looks at every array.
    seal = json.loads((path / "_CHECKPOINT_METADATA").read_text())
    seal = seal["custom_metadata"]
    if seal["checksum"] == _checksum_record(seal["record"]):
      return seal["record"]
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise _DamageError("its record cannot be read") from error
  raise _DamageError("its record is broken")


def _check_model(path: pathlib.Path, record: dict, template: object) -> None:
  """Raises a UserError if the names, shapes or types are not the same."""
  there = {n: f"{d}{s}" for n, (d, s, _) in record.items()}
  here = {
    name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    for name, leaf in _name_leaves(template).items()
  }
  differing = [
    f"{name} is {there.get(name, 'absent')} there, {here.get(name, 'absent')} "
    "here"
    for name in here | there
    if here.get(name) != there.get(name)
  ]
  if differing:
    more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
    raise UserError(
      f"Checkpoint {path} belongs to another model, or to another optimizer: "
      f"{'; '.join(differing[:5])}{more}. Use the config that it was trained "
      "with and the version of this code, or another --workdir."
    )


def _name_leaves(tree: object) -> dict[str, object]:
  """Returns the leaves by names such as `params/stem/kernel`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  named = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }
  if len(named) < len(leaves):
    raise ValueError("Two leaves of the tree have the same name.")
  return named


def _describe(array: np.ndarray) -> list:
  """Returns [type, shape, checksum], equal for equal arrays alone."""
  contents = np.ravel(array).view(np.uint8)
  return [array.dtype.name, list(array.shape), zlib.crc32(contents)]


def _checksum_record(record: dict) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _rename(path: pathlib.Path, suffix: str) -> None:
  """Makes a checkpoint no checkpoint, replacing one so named before."""
  target = path.with_name(path.name + suffix)
  shutil.rmtree(target, ignore_errors=True)
  if path.exists():
    path.rename(target)


def _find_system_error(error: Exception) -> str | None:
  """Returns what the operating system refused, None if it is not to blame."""
  # TensorStore raises a ValueError and hides the number in its text.
  hidden = re.search(r"os_error_code='(\d+)'", str(error))
  number = int(hidden[1]) if hidden else getattr(error, "errno", None)
  return os.strerror(number) if number else None


@functools.cache
def _import_orbax():
  """Returns Orbax's synchronous checkpointer, on first use.

  The import takes a while and is not needed before there is something to
  write or read. Every process works alone: Orbax's own barriers are
  collectives, which must not meet those of the training in another thread.
  Compression would save 8 % of the space of weights, at six times the work.
  """
  import orbax.checkpoint as ocp

  _silence_orbax()
  process = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=process, active_processes={process}
  )
  handler = ocp.PyTreeCheckpointHandler(
    use_compression=False, multiprocessing_options=alone
  )
  return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _silence_orbax() -> None:
  """Keeps tracebacks off the terminal; what failed is raised all the same."""
  python_logging.getLogger("absl").addFilter(
    lambda record: "/orbax/" not in record.pathname
  )
  # At the first array that fails, Orbax closes its event loop. Each of the
  # others then complains, through asyncio or through TensorStore.
  python_logging.getLogger("asyncio").addFilter(
    lambda record: not re.search("/orbax/|tensorstore", record.getMessage())
  )
  hook = sys.unraisablehook
  sys.unraisablehook = lambda unraisable: (
    str(unraisable.exc_value) == "Event loop is closed" or hook(unraisable)
  )
