# SPDX-License-Identifier: Apache-2.0
"""GELU, in both forms that published weights were trained with."""

import functools
import math

import jax
import jax.numpy as jnp

FORMS = ("tanh", "exact")
_CUBIC = 0.044715
_ROOT = 2 * math.sqrt(2 / math.pi)


def check_gelu(form: str):
  """Raises ValueError with the forms that there are."""
  if form not in FORMS:
    raise ValueError(f"gelu={form!r} is none of {', '.join(FORMS)}.")


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def gelu(x: jax.Array, form: str) -> jax.Array:
  """Maps any shape to itself.

  Args:
    x: floating.
    form: "tanh", the approximation that the authors' code computes, or "exact".
  """
  return jax.nn.gelu(x, approximate=form == "tanh")


@gelu.defjvp
def _gelu_jvp(form, primals, tangents):
  # The derivative is written with other functions than the value. XLA would
  # compute the same one once, and because it takes long keep it in float32 from
  # the forward to the backward pass: a quarter of what a step of B/16 moved on
  # a GPU (benchmarks/NOTES.md).
  (x,), (tangent,) = primals, tangents
  if form == "tanh":
    _, slope = share_and_slope(x)
  else:
    share = 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    slope = share + x * density
  return gelu(x, form), tangent * slope


def share_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The form "tanh", written with a sigmoid.

  Returns:
    What to multiply x by for its GELU, and the derivative.
  """
  share = jax.nn.sigmoid(argument_of_share(x))
  return share, slope_of_share(x, share)


def argument_of_share(x: jax.Array) -> jax.Array:
  """What the share is the sigmoid of."""
  return _ROOT * x * (1 + _CUBIC * (x * x))


def slope_of_share(x: jax.Array, share: jax.Array) -> jax.Array:
  """The derivative of GELU, form "tanh", from what x is multiplied by."""
  density = share * (1 - share) * _ROOT * (1 + 3 * _CUBIC * (x * x))
  return share + x * density
