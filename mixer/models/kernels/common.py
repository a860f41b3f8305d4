# SPDX-License-Identifier: Apache-2.0
"""What the kernels of all devices compute with.

Letters in shape comments: n examples, s tokens, c channels, d hidden units.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_EPSILON = 1e-6  # of Flax's layer norm
# By the name of the MLP; published names.
_NORMS = {"token_mixing": "LayerNorm_0", "channel_mixing": "LayerNorm_1"}


class Weights(NamedTuple):
  """The parameters that a block's mixing has, or their gradients.

  Of the token mixing f, the features that are mixed, are s, of the channel
  mixing c.
  """

  scale: jax.Array  # c
  shift: jax.Array  # c
  kernel_in: jax.Array  # f d
  bias_in: jax.Array  # d
  kernel_out: jax.Array  # d f
  bias_out: jax.Array  # f


def weights_of(params: dict, mixing: str) -> Weights:
  """Picks them from a block's parameters.

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
  """Mean, and one over the deviation, of each token: ... s 1, as Flax has them.

  Args:
    x: ... s c.
    channels: that there are, if zeros stand in the place of others.
  """
  x = x.astype(jnp.float32)
  channels = channels or x.shape[-1]
  mean, square = (y.sum(axis=-1, keepdims=True) / channels for y in (x, x * x))
  variance = jnp.maximum(square - mean * mean, 0.0)
  return mean, jax.lax.rsqrt(variance + _EPSILON)
