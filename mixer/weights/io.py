# SPDX-License-Identifier: Apache-2.0
"""Reads and writes files: Google's .npz, timm's .safetensors and .pth.

Google trained with the tanh form of GELU; timm computes the exact one with the
same weights. The two differ by up to 4.7e-4 for one number. Logits differed by
2e-4 for a Mixer-B/16 with random weights and for a small trained one, whose
logits had standard deviations of 0.35 and 0.43. Files record the form unless
their layout implies it.
"""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # safetensors needs it too, for bfloat16 in NumPy
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save as save_bytes

from mixer.errors import UserError
from mixer.models.infer import infer
from mixer.storage import (
  atomic_write,
  check_output,
  is_in_bucket,
  local_copy,
  storage_path,
)
from mixer.weights import convert
from mixer.weights.convert import Arrays

SUFFIXES = (".npz", ".safetensors")  # read and written
PICKLES = (".pth", ".pt", ".bin")  # read if PyTorch is installed
_GELU = "gelu"
# Beginnings of files that `save` writes.
_OURS = rb'PK\x03\x04.{26}\w+/[\w/]+\.npy|.{8}\{"__metadata__":\{[^}]*"gelu":'


def read_file(path: Path) -> tuple[dict, str | None]:
  """Reads parameters in any of the layouts.

  Returns:
    Nested dict of float32 arrays under the published names, and the form of
    GELU that the file records, "tanh" or "exact", or None.

  Raises:
    UserError: the file has another format, is damaged, or holds more than
      finite numbers.
  """
  readers: dict[str, Callable[..., tuple[Arrays, str | None]]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    **dict.fromkeys(PICKLES, _read_pickle),
  }
  if path.suffix not in readers:
    raise UserError(
      f"The layout of {path} is not known: its name must end in "
      f"{', '.join(readers)}; name a run by its folder."
    )
  with local_copy(path) as file:
    arrays, gelu = readers[path.suffix](path, file)
  try:
    if path.suffix == ".npz":
      arrays = convert.to_published(arrays)
    else:
      arrays = convert.from_timm(arrays)
  except UserError as error:
    raise UserError(f"{path} holds other arrays. {error}") from error
  arrays = {k: np.ascontiguousarray(v, np.float32) for k, v in arrays.items()}
  for name, array in arrays.items():
    if not np.isfinite(array).all():
      raise UserError(
        f"{path} has values that are not finite, in {name}: take weights of "
        "an earlier step."
      )
  return unflatten_dict(arrays, sep="/"), gelu


def _read_npz(path: Path, local: Path) -> tuple[Arrays, str | None]:
  try:
    with np.load(local, allow_pickle=False) as file:
      arrays = {name: _to_float32(file[name]) for name in file.files}
    with zipfile.ZipFile(local) as file:
      comment = file.comment.decode(errors="replace")
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
      "delete it and fetch it again."
    ) from error
  gelu = comment.removeprefix(f"{_GELU}=")
  return arrays, None if gelu == comment else gelu


def _read_safetensors(path: Path, local: Path) -> tuple[Arrays, str | None]:
  try:
    with safetensors.safe_open(local, framework="np") as file:
      gelu = (file.metadata() or {}).get(_GELU)
      return {name: file.get_tensor(name) for name in file.keys()}, gelu
  except (OSError, TypeError, safetensors.SafetensorError) as error:
    raise UserError(
      f"{path} is not a .safetensors file of numbers, or it is damaged "
      f"({error}): delete it and fetch it again."
    ) from error


def _read_pickle(path: Path, local: Path) -> tuple[Arrays, str | None]:
  try:
    import torch
  except ImportError as error:
    raise UserError(
      f"{path} is a PyTorch file, which only PyTorch reads: pip install torch, "
      "or take the .safetensors file of the same weights."
    ) from error
  try:
    content = torch.load(local, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    raise UserError(
      f"{path} holds more than numbers, or it is damaged. Opening such a file "
      "could run any code, so it was not opened: take the .safetensors file of "
      "the same weights, or ask its author to save only the state_dict(). "
      f"({_reason(error)})"
    ) from error
  except (EOFError, KeyError, OSError, RuntimeError, ValueError) as error:
    raise UserError(
      f"{path} is not a PyTorch file, or it is damaged: "
      "delete it and fetch it again."
    ) from error
  for key in ("state_dict", "model"):
    if isinstance(content, dict) and isinstance(content.get(key), dict):
      content = content[key]
  if not isinstance(content, dict) or not all(
    isinstance(value, torch.Tensor) for value in content.values()
  ):
    raise UserError(
      f"{path} holds no dict of tensors, not even under 'state_dict' or "
      "'model': save only the model's state_dict()."
    )
  arrays = {
    # DataParallel adds this prefix.
    name.removeprefix("module."): tensor.float().numpy()
    for name, tensor in content.items()
  }
  return arrays, None


def _to_float32(array: np.ndarray) -> np.ndarray:
  if array.dtype == "V2":  # NumPy saves bfloat16 as raw bytes
    array = array.view(ml_dtypes.bfloat16)
  return array.astype(np.float32, copy=False)


def _reason(error: Exception) -> str:
  """Returns the line of PyTorch's long message with the refused type."""
  lines = str(error).splitlines()
  return next((x.strip() for x in lines if "GLOBAL" in x), lines[0])


def check_target(path: str, flag: str, source: str) -> None:
  """Checks a file for `save`, before the weights are read from `source`.

  Raises:
    UserError: it cannot be written, or is no file of weights, or the source.
  """
  inputs = [source, os.path.join(source, "weights.npz")]
  if path in inputs or not is_in_bucket(path):
    check_output(path, flag, _OURS, suffixes=SUFFIXES, inputs=inputs)


def save(path: str | os.PathLike, params: dict, *, gelu: str = "tanh") -> None:
  """Writes parameters atomically.

  Args:
    path: the file, ending in .npz (Google's layout) or .safetensors (timm's).
    params: nested dict of arrays.
    gelu: the form that they were trained with. The comment of an .npz file
      records "exact", the metadata of .safetensors either.

  Raises:
    UserError: the path has another ending or cannot be written, or timm has no
      such model.
  """
  path = storage_path(path) if is_in_bucket(path) else Path(path)
  if path.suffix not in SUFFIXES:
    raise UserError(
      f"{path} must end in {' or '.join(SUFFIXES)}: other layouts are not "
      "written."
    )
  if not is_in_bucket(path) and not path.parent.is_dir():
    raise UserError(f"There is no folder {path.parent}: make it first.")
  arrays = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
  with atomic_write(path) as temporary:
    _write(temporary, arrays, gelu)


def _write(path: Path, arrays: Arrays, gelu: str) -> None:
  if path.suffix == ".npz":
    np.savez(path, **arrays)
    if gelu != "tanh":  # readers of .npz ignore the comment
      with zipfile.ZipFile(path, "a") as file:
        file.comment = f"{_GELU}={gelu}".encode()
    return
  arrays = convert.to_timm(arrays)
  # safetensors writes the memory as it is, ignoring strides.
  arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
  # save_file would make the file unreadable for others.
  path.write_bytes(save_bytes(arrays, {"format": "pt", _GELU: gelu}))


def gelu_note(path: str | os.PathLike, params: dict, gelu: str) -> str:
  """Returns a sentence about the GELU that other programs use with a file.

  Arguments are those of `save`. Returns "" if the model has no GELU, or is
  unknown.
  """
  if not hasattr(infer(params), "gelu"):
    return ""
  trained = f"They were trained with the {gelu} form of GELU"
  if Path(path).suffix == ".npz":
    others = "the tanh form" if gelu == "exact" else "the same"
    return f"{trained}; other programs that read .npz compute {others}."
  if gelu == "exact":
    return f"{trained}, which timm computes."
  return (
    f"{trained}, and timm computes the exact one, unless told: timm."
    "create_model(NAME, act_layer=functools.partial(torch.nn.GELU, "
    "approximate='tanh')) gives the same logits."
  )
