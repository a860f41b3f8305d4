# SPDX-License-Identifier: Apache-2.0
"""Manifests: checksums of parameters, the same for every file that holds them.

Hashes are over the published names, shapes and float32 values, so that .npz,
.safetensors, .pth and a run's folder with the same parameters have the same.
"""

import hashlib
import importlib.resources
import json
import os
import re
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mixer.data import preprocess
from mixer.data.decode import decode
from mixer.errors import UserError, format_list
from mixer.models.infer import describe_params
from mixer.models.kernels import plain_model
from mixer.storage import local_copy
from mixer.training.step import normalise
from mixer.weights import zoo
from mixer.weights.load import LoadedWeights, locate, read, read_json

SUFFIX = ".manifest.json"  # behind the name of the file of weights
WRITTEN = rb'\{\s*"manifest": 1,'  # beginning of the files
_PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # scikit-learn ships them
_DTYPES = ("float32", "float16", "bfloat16")  # the finer ones first
# Difference of a logit, relative to the largest, beyond rounding.
_TOLERANCE = 1e-3


def make_manifest(init: str | os.PathLike, samples: int | None = 16) -> dict:
  """Returns the manifest of weights.

  Args:
    init: argument of `weights.read`.
    samples: values of each parameter in it; None for all.

  Returns:
    "origin"; "model"; "gelu"; "outputs", the five largest [class, logit] (of
    features, without a head) for each of scikit-learn's photographs; "sha256"
    over all parameters, as they are and rounded; "parameters", each with
    "shape", "sha256" and "sample", float32 values at equal distances.
  """
  path = locate(init)
  checkpoint = read(path)
  with local_copy(path) as copy, copy.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  published = zoo.REGISTRY.get(os.fspath(init))
  data = checkpoint.config.get("data", {}).get("name")
  starts = read_json(path.parent / "provenance.json").get("starts") or [{}]
  arrays = {
    name: array + np.float32(0)  # a copy's -0 may have become 0
    for name, array in sorted(flatten_dict(checkpoint.params, sep="/").items())
  }
  return {
    "manifest": 1,
    "origin": {
      "name": os.fspath(init),
      "file_sha256": digest,
      "trained": published.recipe if published else data,
      "git_commit": starts[-1].get("git_commit"),
    },
    "model": describe_params(checkpoint.params),
    "gelu": checkpoint.gelu,
    "outputs": _outputs(checkpoint),
    "sha256": {dtype: _digest(arrays, dtype) for dtype in _DTYPES},
    "parameters": {
      name: {
        "shape": list(array.shape),
        "sha256": _digest({name: array}),
        "sample": _sample(array, samples),
      }
      for name, array in arrays.items()
    },
  }


def _digest(arrays: dict[str, np.ndarray], dtype: str = "float32") -> str:
  digest = hashlib.sha256()
  with np.errstate(over="ignore"):  # in float16
    for name, array in arrays.items():
      digest.update(f"{name} {list(array.shape)}\n".encode())
      digest.update(array.astype(dtype).tobytes())
  return digest.hexdigest()


def _sample(array: np.ndarray, number: int | None) -> np.ndarray | list[float]:
  if number is None:
    return array.ravel()
  chosen = np.linspace(0, array.size - 1, min(number, array.size)).astype(int)
  return [float(str(x)) for x in array.ravel()[chosen]]  # the shortest digits


def _outputs(checkpoint: LoadedWeights) -> dict[str, list]:
  """Returns pairs of class and logit, the largest of each photograph."""
  model = plain_model(checkpoint.create_model())
  resize = preprocess.parse(f"resize({checkpoint.image_size or (224, 224)})")
  folder = importlib.resources.files("sklearn.datasets.images")
  files = [(folder / name).read_bytes() for name in _PHOTOGRAPHS]
  images = np.stack([resize(decode(file), None) for file in files])
  images = normalise(images[..., : model.image_channels])
  with jax.default_matmul_precision("highest"):
    apply = jax.jit(lambda params: model.apply({"params": params}, images)[0])
    logits = np.asarray(apply(checkpoint.params))
  classes = np.argsort(-logits)[:, :5]
  return {
    name: [[int(i), float(f"{row[i]:.6g}")] for i in top]
    for name, row, top in zip(_PHOTOGRAPHS, logits, classes, strict=True)
  }


def to_json(manifest: dict) -> str:
  """Returns the text of a manifest's file, a list on a line."""
  text = json.dumps(manifest, indent=1, ensure_ascii=False)
  return re.sub(r"\[[^][{}]*\]", lambda match: " ".join(match[0].split()), text)


def read_manifest(file: str) -> dict:
  """Reads a manifest; UserError if there is none that can be read."""
  try:
    manifest = json.loads(Path(file).expanduser().read_text())
    if manifest["manifest"] == 1:
      return manifest
  except (OSError, KeyError, TypeError, ValueError):
    pass
  raise UserError(
    f"{file} is not a manifest, or missing: make one with python -m mixer "
    "weights manifest WEIGHTS."
  )


def compare(manifest: dict, reference: dict) -> list[str]:
  """Returns a line for each difference; none if all is the same."""
  lines = _compare_parameters(manifest, reference)
  if manifest["gelu"] != (gelu := reference["gelu"]):
    same = "" if lines else "The parameters are the same. "
    lines.append(
      f"{same}This copy has the {manifest['gelu']} form of GELU, and the "
      f"reference the {gelu} one: --config.model.gelu={gelu}."
    )
  here, there = (
    np.array([each["outputs"][name] for name in _PHOTOGRAPHS])[..., 1]
    for each in (manifest, reference)
  )
  # With other parameters outputs differ anyway.
  apart, most = np.abs(here - there).max(), np.abs(there).max()
  if not lines and not apart <= _TOLERANCE * most:
    lines.append(
      f"The same parameters have other outputs, {here} instead of {there}: "
      "this device, or this release of jax, computes something else."
    )
  return lines


def _compare_parameters(manifest: dict, reference: dict) -> list[str]:
  same = [x for x in _DTYPES if manifest["sha256"][x] == reference["sha256"][x]]
  if "float32" in same:
    return []
  here, there = manifest["parameters"], reference["parameters"]
  both = here.keys() & there
  lines = [
    f"  {name}: {_difference(here[name], there[name])}"
    for name in sorted(both)
    if here[name]["sha256"] != there[name]["sha256"]
  ]
  lines.insert(0, f"{len(lines)} of {len(both)} parameters differ.")
  missing, additional = sorted(there.keys() - here), sorted(here.keys() - there)
  for names, words in (missing, "missing"), (additional, "additional"):
    if names:
      lines.append(f"{len(names)} {words}: {format_list(names)}.")
  if same:
    lines.append(
      f"Once both are rounded to {same[0]} they are equal: a copy in half "
      "precision, or a change as small."
    )
  return lines


def _difference(here: dict, there: dict) -> str:
  if here["shape"] != there["shape"]:
    return f"shape {here['shape']} instead of {there['shape']}"
  gaps = np.abs(np.float32(here["sample"]) - np.float32(there["sample"]))
  sampled = "" if gaps.size == np.prod(here["shape"]) else "sampled "
  differing = np.count_nonzero(gaps)
  if not differing:
    return "none of the sampled values; --manifest=WEIGHTS compares all"
  share = f"{differing:,} of {gaps.size:,} {sampled}values"
  return f"up to {gaps.max():.3g}, {share}"
