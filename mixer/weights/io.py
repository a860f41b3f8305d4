# SPDX-License-Identifier: Apache-2.0
"""One file of parameters: Google's .npz, timm's .safetensors and .pth.

Google's weights were trained with the tanh form of GELU; timm computes the
exact one with the same weights. For one number the two differ by up to 4.7e-4;
in logits 2e-4 was seen, of a Mixer-B/16 with random weights and of a small
trained one, whose logits had standard deviations of 0.35 and 0.43. Files say
which form it is where their layout does not.
"""

import dataclasses
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # safetensors, too, needs NumPy to know bfloat16
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save as save_bytes

from mixer.atomic_write import atomic_write
from mixer.errors import UserError
from mixer.models.infer import infer
from mixer.storage import is_in_bucket, local_copy, storage_path
from mixer.weights import convert
from mixer.weights.convert import Arrays

SUFFIXES = (".npz", ".safetensors")  # that are written
PICKLES = (".pth", ".pt", ".bin")  # that are read if torch is there
_GELU = "gelu"


@dataclasses.dataclass(frozen=True)
class Content:
  """Contents of a file of weights.

  params: nested dict of float32 arrays, under the published names.
  gelu: the form that the file says the model has, None if it does not say.
  """

  params: dict = dataclasses.field(repr=False)
  gelu: str | None


def read_file(path: Path) -> Content:
  """Reads parameters in any of the layouts.

  Raises:
    UserError: it is no such file, damaged, or not of numbers alone.
  """
  readers: dict[str, Callable[..., tuple[Arrays, str | None]]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    **dict.fromkeys(PICKLES, _read_pickle),
  }
  if path.suffix not in readers:
    raise UserError(
      f"{path} does not tell its layout: its name must end in "
      f"{', '.join(readers)}, and a run is named by its folder."
    )
  with local_copy(path) as file:
    arrays, gelu = readers[path.suffix](path, file)
  try:
    if path.suffix == ".npz":
      arrays = convert.to_published(arrays)
    else:
      arrays = convert.from_timm(arrays)
  except UserError as error:
    raise UserError(f"{path} holds something else. {error}") from error
  arrays = {k: np.ascontiguousarray(v, np.float32) for k, v in arrays.items()}
  for name, array in arrays.items():
    if not np.isfinite(array).all():
      raise UserError(
        f"{path} has values that are not finite, in {name}: take weights of "
        "an earlier step."
      )
  return Content(unflatten_dict(arrays, sep="/"), gelu)


def _read_npz(path: Path, local: Path) -> tuple[Arrays, str | None]:
  try:
    with np.load(local, allow_pickle=False) as file:
      arrays = {name: _number(file[name]) for name in file.files}
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
  said = comment.removeprefix(f"{_GELU}=")
  return arrays, None if said == comment else said


def _read_safetensors(path: Path, local: Path) -> tuple[Arrays, str | None]:
  try:
    with safetensors.safe_open(local, framework="np") as file:
      said = (file.metadata() or {}).get(_GELU)
      return {name: file.get_tensor(name) for name in file.keys()}, said
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
      f"{path} is a file of PyTorch's, which PyTorch alone reads: pip install "
      "torch, or take the .safetensors file of the same weights."
    ) from error
  try:
    content = torch.load(local, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    raise UserError(
      f"{path} holds more than numbers, or it is damaged. Such a file can run "
      "any code when it is opened, so it is not: take the .safetensors file of "
      "the same weights, or have the one who made it save its state_dict() "
      f"alone. ({_reason(error)})"
    ) from error
  except (EOFError, KeyError, OSError, RuntimeError, ValueError) as error:
    raise UserError(
      f"{path} is not a file of PyTorch's, or it is damaged: "
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
      "'model': save the model's state_dict() alone."
    )
  arrays = {
    # A model on several devices was wrapped when it was saved.
    name.removeprefix("module."): tensor.float().numpy()
    for name, tensor in content.items()
  }
  return arrays, None


def _number(array: np.ndarray) -> np.ndarray:
  if array.dtype == "V2":  # what NumPy makes of a bfloat16 that it saves
    array = array.view(ml_dtypes.bfloat16)
  return array.astype(np.float32, copy=False)


def _reason(error: Exception) -> str:
  """The line of PyTorch's long message that names the refused type."""
  lines = str(error).splitlines()
  return next((x.strip() for x in lines if "GLOBAL" in x), lines[0])


def save(path: str | os.PathLike, params: dict, *, gelu: str = "tanh") -> None:
  """Writes parameters, whole or not at all.

  Args:
    path: the file, ending in .npz (Google's layout) or .safetensors (timm's).
    params: nested dict of arrays.
    gelu: the form that they were trained with; "exact" stands in the comment
      of an .npz file, either form in the metadata of .safetensors.

  Raises:
    UserError: another ending, a model that timm's layout is not for, or a place
      where nothing can be written.
  """
  path = storage_path(path) if is_in_bucket(path) else Path(path)
  if path.suffix not in SUFFIXES:
    raise UserError(
      f"{path} must end in {' or '.join(SUFFIXES)}, the layouts that are "
      "written."
    )
  if not is_in_bucket(path) and not path.parent.is_dir():
    raise UserError(f"There is no folder {path.parent}: make it first.")
  arrays = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
  try:
    with atomic_write(path) as aside:
      _write(aside, arrays, gelu)
  except OSError as error:
    if is_in_bucket(path):
      raise
    raise UserError(f"Cannot write {path}: {error.strerror}.") from error


def _write(path: Path, arrays: Arrays, gelu: str) -> None:
  if path.suffix == ".npz":
    np.savez(path, **arrays)
    if gelu != "tanh":  # np.load and its like pass over a comment
      with zipfile.ZipFile(path, "a") as file:
        file.comment = f"{_GELU}={gelu}".encode()
    return
  arrays = convert.to_timm(arrays)
  # It is written from memory as it lies, whatever the strides.
  arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
  # Not save_file, which lets nobody else read it.
  path.write_bytes(save_bytes(arrays, {"format": "pt", _GELU: gelu}))


def gelu_note(path: str | os.PathLike, params: dict, gelu: str) -> str:
  """Says what other programs compute with the weights in a file.

  Args:
    path, params: as `save` was given.
    gelu: the form that they were trained with.

  Returns:
    A sentence; "" where the model has no GELU, or is not known.
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
