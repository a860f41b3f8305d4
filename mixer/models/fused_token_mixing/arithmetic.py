# SPDX-License-Identifier: Apache-2.0
"""What the kernels of all devices compute with.

Letters in shape comments: n examples, s tokens, c channels, d hidden units.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_EPSILON = 1e-6  # of Flax's layer norm


class Weights(NamedTuple):
  """The parameters that token mixing has in a block, or their gradients."""

  scale: jax.Array  # c
  shift: jax.Array  # c
  kernel_in: jax.Array  # s d
  bias_in: jax.Array  # d
  kernel_out: jax.Array  # d s
  bias_out: jax.Array  # s


def weights_of(params: dict) -> Weights:
  """Picks them from a block's parameters, whose names are the published."""
  norm, mlp = params["LayerNorm_0"], params["token_mixing"]
  first, second = mlp["Dense_0"], mlp["Dense_1"]
  return Weights(
    norm["scale"],
    norm["bias"],
    first["kernel"],
    first["bias"],
    second["kernel"],
    second["bias"],
  )


def statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean, and one over the deviation, of each token: ... s 1, as Flax has them.

  Args:
    x: ... s c.
  """
  x = x.astype(jnp.float32)
  mean = x.mean(axis=-1, keepdims=True)
  square = (x * x).mean(axis=-1, keepdims=True)
  variance = jnp.maximum(square - mean * mean, 0.0)
  return mean, jax.lax.rsqrt(variance + _EPSILON)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
  """a times b, in float32."""
  return jnp.dot(a, b, preferred_element_type=jnp.float32)
