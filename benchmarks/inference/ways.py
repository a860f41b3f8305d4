# SPDX-License-Identifier: Apache-2.0
"""Ways from a file to what its model says of images.

Each is a function of a file and a dtype. It returns another, from uint8 images
[n, h, w, c] on the host to arrays, which `to_host` waits for.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn
from jax import export as jax_export

from benchmarks.throughput.programs import CLASSES, draw_params
from mixer import weights
from mixer.models import create, flops
from mixer.models.infer import infer_model
from mixer.tools.export import write_program
from mixer.tools.inference import bind_to_devices
from mixer.training.sharding import prefetch_to_device
from mixer.training.step import normalise

TOPK = 5  # as `predict` has it

Call = Callable[[np.ndarray], object]


def write_weights(
  folder: Path, model: str, image_size: tuple[int, int]
) -> Path:
  """Writes random weights; returns their file."""
  made = create(model, num_classes=CLASSES)
  file = folder / "weights.npz"
  weights.save(file, draw_params(flops.abstract_params(made, image_size)))
  return file


def write_exported(file: Path, dtype: str) -> Path:
  """Writes the program of weights beside them; returns its file."""
  program = file.with_suffix(".stablehlo")
  write_program(weights.read(file), program, dtype=dtype)
  # Whoever opens it has not compiled it before.
  jax.clear_caches()
  return program


def predict(file: Path, dtype: str) -> Call:
  """Computes like `predict`, which dispatches a batch a little earlier."""
  model, params = _read(file, dtype)
  devices = jax.local_devices()[:1]
  judge = bind_to_devices(model, params, devices, loss="softmax", topk=TOPK)

  def call(pixels: np.ndarray) -> tuple[jax.Array, jax.Array]:
    [batch] = prefetch_to_device(({"image": x} for x in [pixels]), devices)
    return judge(batch)

  return call


def exported(file: Path, dtype: str) -> Call:
  """Calls a program as `export` says; the dtype is in the file."""
  del dtype
  return jax_export.deserialize(file.read_bytes()).call


def jitted(file: Path, dtype: str) -> Call:
  """The forward pass and nothing around it."""
  model, params = _read(file, dtype)

  def apply(params: dict, pixels: jax.Array) -> jax.Array:
    images = normalise(pixels)
    return model.apply({"params": params}, images, train=False)[0]

  return functools.partial(jax.jit(apply), jax.device_put(params))


WAYS = {"predict": predict, "exported": exported, "jitted": jitted}
NAMES = tuple(WAYS)


def to_host(results: object) -> object:
  """Waits for arrays, and copies them where they are not on the host."""
  return jax.tree.map(np.asarray, results)


def _read(file: Path, dtype: str) -> tuple[nn.Module, dict]:
  checkpoint = weights.read(file)
  model = infer_model(checkpoint.params, gelu=checkpoint.gelu, dtype=dtype)
  return model, checkpoint.params
