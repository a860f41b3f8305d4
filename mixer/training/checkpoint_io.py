# SPDX-License-Identifier: Apache-2.0
"""One checkpoint, in Orbax's format, with a checksum of every array.

Orbax restores flipped bytes of an array without an error. So each checkpoint
carries the CRC-32 of every array in its metadata.
"""

import errno
import functools
import json
import logging as python_logging
import os
import re
import sys
import zlib

import jax
import numpy as np
from etils import epath

from mixer.errors import UserError
from mixer.storage import explain
from mixer.training.optimizer import current_name, is_unfrozen


class DamageError(Exception):
  """The damage of a checkpoint, as the end of a sentence."""


def write(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
  """Commits arrays together with their checksums."""
  record = {"arrays": {name: _describe(x) for name, x in arrays.items()}}
  seal = {"record": record, "checksum": _checksum_record(record)}
  _import_orbax().save(path, arrays, custom_metadata=seal)


def read(path: epath.Path, template: object) -> object:
  """Returns a tree like the template; raises DamageError or UserError."""
  record = read_record(path)["arrays"]
  restored_names = _match_names(path, record, template)
  try:
    arrays = _import_orbax().restore(path)
    damaged = [n for n in record if _describe(arrays[n]) != record[n]]
  except Exception as error:  # any error that Orbax raises for broken files
    raise _to_damage(error, path) from error
  if damaged:
    raise DamageError(f"the checksum of {damaged[0]} does not match")
  leaves = [
    arrays[restored_names[name]]
    if name in restored_names
    else np.zeros(leaf.shape, leaf.dtype)
    for name, leaf in name_leaves(template).items()
  ]
  return jax.tree.unflatten(jax.tree.structure(template), leaves)


def read_record(path: epath.Path) -> dict:
  """Returns the record from `write`; raises DamageError if it is broken."""
  try:
    # Read as the JSON it is, because Orbax's own reader looks at every array.
    seal = json.loads((path / "_CHECKPOINT_METADATA").read_text())
    seal = seal["custom_metadata"]
    if seal["checksum"] == _checksum_record(seal["record"]):
      return seal["record"]
  except Exception as error:
    raise _to_damage(error, path) from error
  raise DamageError("the checksum of its record does not match")


def _to_damage(error: Exception, path: epath.Path) -> Exception:
  """Returns a DamageError, or the user's message if storage has failed."""
  if (known := explain(error, path)) is not None:
    return known
  reason = find_system_error(error)
  if reason not in (None, os.strerror(errno.ENOENT)):
    return UserError(
      f"Cannot read checkpoint {path}: {reason}. Mend that and start the same "
      "command again."
    )
  reason = str(error).partition("\n")[0][:200]
  return DamageError(f"{type(error).__name__}: {reason}")


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
    for name, leaf in name_leaves(template).items()
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
      "with (eval.py does, without --config), or another --workdir."
    )
  return {n: old for n, old in saved_names.items() if n in expected}


def name_leaves(tree: object) -> dict[str, object]:
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


def find_system_error(error: Exception) -> str | None:
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
