# SPDX-License-Identifier: Apache-2.0
"""Parameters and layer-norm statistics for the kernels of all devices.

Letters in shape comments: n examples, s tokens, c channels, d hidden units.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_EPSILON = 1e-6  # of Flax's layer norm
# Published names, by the name of the MLP.
_NORMS = {"token_mixing": "LayerNorm_0", "channel_mixing": "LayerNorm_1"}


class Weights(NamedTuple):
  """Parameters of one branch of a block, or their gradients.

  f is the mixed axis: s in token mixing, c in channel mixing.
  """

  gamma: jax.Array  # c
  beta: jax.Array  # c
  w1: jax.Array  # f d
  b1: jax.Array  # d
  w2: jax.Array  # d f
  b2: jax.Array  # f


def mixing_weights(params: dict, mixing: str) -> Weights:
  """Selects a branch's weights.

  Args:
    params: of the block.
    mixing: "token_mixing" or "channel_mixing".
  """
  norm, mlp = params[_NORMS[mixing]], params[mixing]
  first, second = mlp["Dense_0"], mlp["Dense_1"]
  return Weights(
    norm["scale"],
    norm["bias"],
    first["kernel"],
    first["bias"],
    second["kernel"],
    second["bias"],
  )


def statistics(
  x: jax.Array, channels: int | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns each token's mean and reciprocal standard deviation, as Flax does.

  Args:
    x: ... s c.
    channels: number of channels that are not padding (zeros); None for all.

  Returns:
    Two float32 arrays, ... s 1.
  """
  x = x.astype(jnp.float32)
  channels = channels or x.shape[-1]
  mean, square = (y.sum(axis=-1, keepdims=True) / channels for y in (x, x * x))
  variance = jnp.maximum(square - mean * mean, 0.0)
  return mean, jax.lax.rsqrt(variance + _EPSILON)
