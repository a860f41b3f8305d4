# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: written in the background, verified when read.

`WORKDIR/checkpoints/STEP/` holds one checkpoint in Orbax's format, in a local
folder or in a bucket (gs://). Commits are atomic: Orbax renames a local folder
when it is complete, and writes `commit_success.txt` last in a bucket. Folders
with a suffix are no checkpoints: half-written, `STEP.deleted` (being removed)
or `STEP.damaged` (quarantined, for inspection). `metrics.json` maps steps to
the metric that decides which checkpoint is the best; it is written apart,
because a step is saved before it is evaluated.

Orbax restores flipped bytes of an array without an error. So each checkpoint
carries the CRC-32 of every array in its metadata.

Orbax's managers are not used. They list a folder only when opened, and create
it, which suits no reader next to a running training; and they know no
quarantine. The v1 API was tried, on a disk and in a bucket: it would do, but
its methods are still being renamed, and old checkpoints would need a second
reader.
"""

import contextlib
import errno
import functools
import json
import logging as python_logging
import math
import os
import re
import sys
import zlib
from concurrent import futures

import jax
import numpy as np
from absl import logging
from etils import epath

from mixer.errors import UserError
from mixer.storage import atomic_write, explain, is_in_bucket, storage_path
from mixer.training.optimizer import current_name, is_unfrozen

_COMMITTED = "commit_success.txt"
_METRICS = "metrics.json"


class Checkpoints:
  """The checkpoints in a folder: the newest few, the best and milestones.

  Only `save`, `record_metric` and `set_aside` change the folder, so that an
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
      self._folder.mkdir(parents=True, exist_ok=True)
      metrics = self._read_metrics() | {step: float(metric)}
      with atomic_write(self._folder / _METRICS) as temporary:
        temporary.write_text(json.dumps(metrics))

  def _read_metrics(self) -> dict[int, float]:
    """Returns metrics by step; older checkpoints contain their own."""
    with contextlib.suppress(FileNotFoundError):
      content = json.loads((self._folder / _METRICS).read_text())
      return {int(step): metric for step, metric in content.items()}
    metrics = {}
    for step in self.steps:
      try:
        metric = _read_record(self._folder / str(step)).get("metric")
      except _DamageError:
        continue  # `restore` reports it
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
      arrays = jax.tree.map(np.asarray, _name_leaves(tree))
      self._pending = self._writer.submit(self._save, step, arrays)

  def set_aside(self, step: int, folder: epath.Path) -> None:
    """Moves checkpoints after a step, with their metrics, to a new folder."""
    metrics = self._read_metrics()
    folder.mkdir()
    for place, is_later in (folder, True), (self._folder, False):
      part = {s: x for s, x in metrics.items() if (s > step) == is_later}
      with atomic_write(place / _METRICS) as temporary:
        temporary.write_text(json.dumps(part))
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
      _write(self._folder / str(step), arrays)
      self._delete_expired()
    except Exception as error:
      reason = _find_system_error(error)
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


class _DamageError(Exception):
  """The damage of a checkpoint, as the end of a sentence."""


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


def _write(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
  """Commits arrays together with their checksums."""
  record = {"arrays": {name: _describe(x) for name, x in arrays.items()}}
  seal = {"record": record, "checksum": _checksum_record(record)}
  _import_orbax().save(path, arrays, custom_metadata=seal)


def _read(path: epath.Path, template: object) -> object:
  """Returns a tree like the template; raises _DamageError or UserError."""
  record = _read_record(path)["arrays"]
  restored_names = _match_names(path, record, template)
  try:
    arrays = _import_orbax().restore(path)
    damaged = [n for n in record if _describe(arrays[n]) != record[n]]
  except Exception as error:  # any error that Orbax raises for broken files
    raise _to_damage(error, path) from error
  if damaged:
    raise _DamageError(f"the checksum of {damaged[0]} does not match")
  leaves = [
    arrays[restored_names[name]]
    if name in restored_names
    else np.zeros(leaf.shape, leaf.dtype)
    for name, leaf in _name_leaves(template).items()
  ]
  return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _read_record(path: epath.Path) -> dict:
  """Returns the record from `_write`; raises _DamageError if it is broken."""
  try:
    # Read as the JSON it is, because Orbax's own reader looks at every array.
    seal = json.loads((path / "_CHECKPOINT_METADATA").read_text())
    seal = seal["custom_metadata"]
    if seal["checksum"] == _checksum_record(seal["record"]):
      return seal["record"]
  except Exception as error:
    raise _to_damage(error, path) from error
  raise _DamageError("the checksum of its record does not match")


def _to_damage(error: Exception, path: epath.Path) -> Exception:
  """Returns a _DamageError, or the user's message if storage has failed."""
  if (known := explain(error, path)) is not None:
    return known
  reason = _find_system_error(error)
  if reason not in (None, os.strerror(errno.ENOENT)):
    return UserError(
      f"Cannot read checkpoint {path}: {reason}. Mend that and start the same "
      "command again."
    )
  reason = str(error).partition("\n")[0][:200]
  return _DamageError(f"{type(error).__name__}: {reason}")


def _match_names(
  path: epath.Path, record: dict, template: object
) -> dict[str, str]:
  """Returns the checkpoint's name for each leaf of the template.

  Moments may be missing, and then start at zero: those of parameters that were
  frozen and now train. Those of parameters that are now frozen are dropped.

  Raises:
    UserError: other names, shapes or types differ.
  """
  saved_names = {current_name(name): name for name in record}
  saved = {
    name: f"{record[old][0]}{record[old][1]}"
    for name, old in saved_names.items()
  }
  expected = {
    name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    for name, leaf in _name_leaves(template).items()
  }
  differing = [
    f"{name} is {saved.get(name, 'absent')} there, "
    f"{expected.get(name, 'absent')} here"
    for name in expected | saved
    if expected.get(name) != saved.get(name)
    and not (name in expected and is_unfrozen(name, saved))
    and not (name in saved and is_unfrozen(name, expected))
  ]
  if differing:
    more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
    raise UserError(
      f"Checkpoint {path} belongs to another model, or to another optimizer: "
      f"{'; '.join(differing[:5])}{more}. Use the config that it was trained "
      "with and the version of this code, or another --workdir."
    )
  return {n: old for n, old in saved_names.items() if n in expected}


def _name_leaves(tree: object) -> dict[str, object]:
  """Returns the leaves by names such as `params/stem/kernel`."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _describe(array: np.ndarray) -> list:
  """Returns [type, shape, checksum], equal only for equal arrays."""
  contents = np.ravel(array).view(np.uint8)
  return [array.dtype.name, list(array.shape), zlib.crc32(contents)]


def _checksum_record(record: dict) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())


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


def _find_system_error(error: Exception) -> str | None:
  """Returns the error of the operating system; None if it has none."""
  # TensorStore raises a ValueError and hides the number in its text.
  hidden = re.search(r"os_error_code='(\d+)'", str(error))
  number = int(hidden[1]) if hidden else getattr(error, "errno", None)
  return os.strerror(number) if number else None


@functools.cache
def _import_orbax():
  """Returns Orbax's synchronous checkpointer, on first use.

  Every process writes and reads by itself, without Orbax's barriers: they are
  collectives, which must not meet those of the training in another thread. The
  import takes a while and is not needed before there is something to read.
  Compression would save 8 % of the space of weights, at six times the work.
  """
  import orbax.checkpoint as ocp

  _silence_orbax()
  process = jax.process_index()
  one_process = ocp.options.MultiprocessingOptions(
    primary_host=process, active_processes={process}
  )
  handler = ocp.PyTreeCheckpointHandler(
    use_compression=False, multiprocessing_options=one_process
  )
  return ocp.Checkpointer(handler, multiprocessing_options=one_process)


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
