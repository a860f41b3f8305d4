# SPDX-License-Identifier: Apache-2.0
"""Reads and writes files: Google's .npz, timm's .safetensors and .pth.

Google trained with the tanh form of GELU; timm computes the exact one with the
same weights. The two differ by up to 4.7e-4 for one number. Logits differed by
2e-4 for a Mixer-B/16 with random weights and for a small trained one, whose
logits had standard deviations of 0.35 and 0.43. Files record the form unless
their layout implies it.
"""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes  # safetensors needs it too, for bfloat16 in NumPy
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save as save_bytes

from mixer.errors import UserError, format_list, notify
from mixer.storage import atomic_write, local_copy, storage_errors, storage_path
from mixer.weights import convert
from mixer.weights.convert import Arrays

SUFFIXES = (".npz", ".safetensors")  # written
_RECORD = "mixer"  # key of the record in .safetensors
_FLOATS = r"b?float(16|32|64)|B?F(16|32|64)"  # F16 and such in .safetensors
# Larger than BiT-R152x4 for ImageNet-21k (4.2 GiB) and Mixer-H/14 (1.7 GiB).
MAX_BYTES = 6 * 2**30
_MAX_COMMENT = 2**16 - 1  # bytes, of a zip file
_STATES = ("state_dict", "model", "model_state_dict")  # keys in PyTorch's files
# Beginning of the files that `save` writes: .npz has its record at the end.
WRITTEN = (
  rb'PK\x03\x04.*(\{"gelu": |gelu=\w+$)|'
  rb'.{8}\{"__metadata__":\{("format":"pt",)?"(gelu|mixer)":'
)


def read_file(path: Path) -> tuple[dict, dict]:
  """Reads parameters in any of the layouts, told apart by the content.

  Returns:
    Nested dict of float32 arrays under the published names, and the file's
    record: arguments of `save`, and "gelu" also where Google's layout implies
    it.

  Raises:
    UserError: the file has another format, is damaged, larger than any model,
      or holds more than finite numbers.
  """
  with local_copy(path) as file:
    try:
      arrays, record = _read_arrays(file)
      if not arrays:
        raise UserError("There are no arrays in it.")
      if any("/" in name for name in arrays):
        record = {"gelu": "tanh"} | record
        arrays = convert.to_published(arrays)
      else:
        arrays = convert.from_timm(arrays)
      for name, array in arrays.items():
        _check_type(name, array.dtype.name)
        arrays[name] = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(arrays[name]).all():
          raise UserError(
            f"It has values that are not finite, in {name}: take weights of an "
            "earlier step."
          )
      params = unflatten_dict(arrays, sep="/")
    except UserError as error:
      raise UserError(f"{path}: {error}") from error
    except Exception as error:  # of any reader, for any kind of damage
      if reason := getattr(error, "strerror", None):
        raise UserError(f"Cannot read {path}: {reason}.") from error
      raise UserError(
        f"{path} is damaged, or no .npz, .safetensors or PyTorch file of "
        "numbers: move it away, and copy or download it again, or name the "
        "folder of a run."
      ) from error
  return params, record


def _read_arrays(file: Path) -> tuple[Arrays, dict]:
  """Returns the arrays and the record; raises any error for other files."""
  _check_size(file.stat().st_size)
  with file.open("rb") as opened:
    start = opened.read(9)
  if start[8:] == b"{":  # behind the length of this JSON object
    return _read_safetensors(file)
  if start.startswith(b"\x80"):  # PyTorch's former format
    return _read_pickle(file), {}
  with zipfile.ZipFile(file) as members:
    _check_size(sum(each.file_size for each in members.infolist()))
    if any(name.endswith("data.pkl") for name in members.namelist()):
      return _read_pickle(file), {}
    record = _parse_comment(members.comment)
  with np.load(file, allow_pickle=False) as opened:
    arrays = {
      # NumPy saves bfloat16 as raw bytes.
      name: array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array
      for name, array in opened.items()
    }
  return arrays, record


def _check_size(size: int) -> None:
  if size > MAX_BYTES:
    raise UserError(
      f"It holds {size / 2**30:,.1f} GiB, and no model here more than "
      f"{MAX_BYTES / 2**30:g}: take a file of the parameters only."
    )


def _check_type(name: str, dtype: str) -> None:
  if not re.fullmatch(_FLOATS, dtype):
    raise UserError(
      f"{name} holds {dtype} instead of floats of 16, 32 or 64 bits: quantised "
      "weights are not read; take those that they were made from."
    )


def _parse_comment(comment: bytes) -> dict:
  text = comment.decode(errors="replace")
  if text.startswith("gelu="):  # of older files
    return {"gelu": text.removeprefix("gelu=")}
  return json.loads(text) if text.startswith('{"gelu"') else {}


def _read_safetensors(file: Path) -> tuple[Arrays, dict]:
  with safetensors.safe_open(file, framework="np") as opened:
    names = opened.keys()
    for name in names:
      _check_type(name, opened.get_slice(name).get_dtype())
    arrays = {name: opened.get_tensor(name) for name in names}
    metadata = opened.metadata() or {}
  if "gelu" in metadata:  # of older files
    return arrays, {"gelu": metadata["gelu"]}
  return arrays, json.loads(metadata.get(_RECORD, "{}"))


def _read_pickle(file: Path) -> Arrays:
  try:
    import torch
  except ImportError as error:
    raise UserError(
      "Only PyTorch reads this file: pip install torch, or take the "
      ".safetensors file of the same weights."
    ) from error
  try:
    content = torch.load(file, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    raise UserError(
      "It holds more than numbers, or it is damaged. Opening such a file could "
      "run any code, so it was not opened: take the .safetensors file of the "
      "same weights, or ask its author to save only the state_dict(). "
      f"({_reason(error)})"
    ) from error
  while isinstance(content, dict) and (
    key := next((k for k in _STATES if isinstance(content.get(k), dict)), None)
  ):
    if others := [str(other) for other in content if other != key]:
      notify(f"{file.name}: reads {key!r}, and not {format_list(others)}.")
    content = content[key]
  if not isinstance(content, dict) or not all(
    isinstance(value, torch.Tensor) for value in content.values()
  ):
    raise UserError(
      "It holds no dict of tensors, not even under "
      f"{', '.join(map(repr, _STATES))}: save only the model's state_dict()."
    )
  arrays = {}
  for name, tensor in content.items():
    _check_type(name, str(tensor.dtype).removeprefix("torch."))
    arrays[str(name)] = tensor.detach().float().numpy()
  return arrays


def _reason(error: Exception) -> str:
  """Returns the line of PyTorch's long message with the refused type."""
  lines = str(error).splitlines()
  return next((x.strip() for x in lines if "GLOBAL" in x), lines[0])


def save(
  path: str | os.PathLike,
  params: dict,
  *,
  gelu: str = "tanh",
  config: dict | None = None,
  class_names: Sequence[str] | None = None,
) -> None:
  """Writes parameters atomically, with a record of their origin.

  The record is the comment of an .npz file, which other readers ignore, or the
  metadata of .safetensors. A comment that would be too long leaves out the
  names of classes.

  Args:
    path: the file, ending in .npz (Google's layout) or .safetensors (timm's).
    params: nested dict of arrays.
    gelu: the form that they were trained with.
    config: the run's config.json, if they are a run's.
    class_names: in the order of the head's outputs, if known.

  Raises:
    UserError: the path has another ending or cannot be written, or timm has no
      such model.
    RetryableError: the bucket cannot be reached.
  """
  path = storage_path(path)
  if path.suffix not in SUFFIXES:
    raise UserError(
      f"{path} must end in {' or '.join(SUFFIXES)}: other layouts are not "
      "written."
    )
  arrays = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
  record = {"gelu": gelu, "config": config or None, "class_names": class_names}
  with storage_errors(path), atomic_write(path) as temporary:
    _write(temporary, arrays, record)


def _write(path: Path, arrays: Arrays, record: dict) -> None:
  if path.suffix == ".npz":
    np.savez(path, **arrays)
    comment = json.dumps(record).encode()
    if len(comment) > _MAX_COMMENT:
      comment = json.dumps(record | {"class_names": None}).encode()
    with zipfile.ZipFile(path, "a") as file:
      file.comment = comment
    return
  arrays = convert.to_timm(arrays)
  # safetensors writes the memory as it is, ignoring strides.
  arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
  # save_file would make the file unreadable for others.
  path.write_bytes(
    save_bytes(arrays, {"format": "pt", _RECORD: json.dumps(record)})
  )
