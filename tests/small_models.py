# SPDX-License-Identifier: Apache-2.0
"""Small models of each family, and their logits by the authors' code."""

import functools
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn

from mixer import weights
from mixer.models import create

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


def assert_same(one: dict, other: dict) -> None:
  """Fails unless two trees of arrays are equal to the bit."""
  jax.tree.map(np.testing.assert_array_equal, one, other)


def count_saved(model: nn.Module, params: dict, images) -> int:
  """Returns how many numbers the forward pass saves for the backward pass."""

  def backward(params):
    return jax.vjp(lambda p: model.apply({"params": p}, images)[0], params)[1]

  return sum(x.size for x in jax.tree.leaves(jax.eval_shape(backward, params)))
