# SPDX-License-Identifier: Apache-2.0
"""Small models of each family, and their logits by the authors' code."""

import functools
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn

from mixer import weights
from mixer.models import create, flops

SIZES = {
  "Mixer": dict(patch=8, hidden=24, blocks=2, tokens_mlp=12, channels_mlp=48),
  "ViT": dict(patch=8, hidden=24, blocks=2, mlp=48, heads=4),
  "BiT": dict(width=0.5, units=(2, 1)),
}


class Golden(NamedTuple):
  """A model, its parameters, 32 px images and their logits of 7 classes."""

  model: nn.Module
  params: dict
  images: np.ndarray
  logits: np.ndarray


@functools.cache
def golden(family: str) -> Golden:
  path = f"tests/goldens/{family.lower()}_tiny"
  arrays = np.load(f"{path}_io.npz")
  return Golden(
    create(family, num_classes=7, **SIZES[family]),
    weights.load(f"{path}.npz"),
    arrays["images"],
    arrays["logits"],
  )


def random_params(model: nn.Module, size: tuple[int, int], scale=1.0) -> dict:
  """Draws all parameters from a normal distribution, so that none is zero."""
  random = np.random.RandomState(0)
  return jax.tree.map(
    lambda x: np.float32(scale * random.standard_normal(x.shape)),
    flops.abstract_params(model, size),
  )


def assert_same(one: dict, other: dict) -> None:
  """Fails unless two trees of arrays are equal to the bit."""

  def check(x, y):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()

  jax.tree.map(check, one, other)


def assert_close(one: dict, other: dict, rtol=1e-5, atol=1e-7) -> None:
  """Fails unless two trees of arrays are nearly equal."""
  close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
  jax.tree.map(close, one, other)


def batch_of(seed: int, n: int = 16, size: int = 16, classes: int = 5) -> dict:
  """Returns a batch of noise for a training step."""
  rng = np.random.RandomState(seed)
  return {
    "image": rng.randint(0, 256, (n, size, size, 3)).astype(np.uint8),
    "label": rng.randint(0, classes, n).astype(np.int32),
    "index": np.arange(n, dtype=np.uint32),
  }


def split(batch: dict, devices: int) -> dict:
  """Divides a batch's rows among devices."""
  return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


def count_saved(model: nn.Module, params: dict, images) -> int:
  """Returns how many numbers the forward pass saves for the backward pass."""

  def backward(params):
    return jax.vjp(lambda p: model.apply({"params": p}, images)[0], params)[1]

  return sum(x.size for x in jax.tree.leaves(jax.eval_shape(backward, params)))
