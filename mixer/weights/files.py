# SPDX-License-Identifier: Apache-2.0
"""Reading and writing parameters: Google's .npz layout."""

import os
import zipfile
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mixer.errors import UserError
from mixer.weights.checkpoint import Checkpoint

RUN_FILE = "weights.npz"  # in a run's folder, written when the run is done


def load(path: str | os.PathLike) -> dict:
  """Loads parameters.

  Args:
    path: an .npz file whose arrays have names such as "stem/kernel", or the
      folder of a run that is done.

  Returns:
    Nested dict of float32 NumPy arrays, as `model.apply({"params": ...})`
    takes it.

  Raises:
    UserError: there is nothing there, or it is not such a file.
  """
  path = Path(path)
  if path.is_dir():
    if not (path / RUN_FILE).exists():
      raise UserError(
        f"{path} holds no {RUN_FILE}, which a run writes when it is done: let "
        "it finish (the same command goes on), or name an .npz file."
      )
    path = path / RUN_FILE
  if not path.exists():
    raise UserError(
      f"There are no weights at {path}: give an .npz file or a run's folder."
    )
  try:
    with np.load(path, allow_pickle=False) as arrays:
      flat = {name: arrays[name].astype(np.float32) for name in arrays.files}
  except (
    AttributeError,
    EOFError,
    OSError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
  ) as error:
    raise UserError(
      f"{path} is not an .npz file of arrays of numbers, or it is damaged: "
      "fetch it again."
    ) from error
  broken = [
    name for name, array in flat.items() if not np.isfinite(array).all()
  ]
  if broken:
    raise UserError(
      f"{path} has values that are not finite, in {broken[0]}: take weights of "
      "an earlier step."
    )
  return unflatten_dict(flat, sep="/")


def save(path: str | os.PathLike, params: dict):
  """Writes parameters as .npz, whole or not at all.

  Args:
    path: the file, ending in .npz.
    params: nested dict of arrays.
  """
  path = Path(path)
  if path.suffix != ".npz":
    raise UserError(f"{path} must end in .npz, the layout that is written.")
  flat = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
  aside = path.with_name(f"{path.stem}.partial.npz")
  np.savez(aside, **flat)
  aside.replace(path)


def read(init: str) -> Checkpoint:
  """Interim: replaced by the one that knows provenance."""
  return Checkpoint(load(init), "tanh", None, None, init)
