# SPDX-License-Identifier: Apache-2.0
"""Layers that all models share: mixed precision, GELU, patch embedding.

In bfloat16, matrix products and convolutions take bfloat16 factors. Biases,
norms, activations and sums are computed in float32.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.ad_checkpoint import checkpoint_name

from mixer.choices import MODEL_FIELDS

# Checkpoint names, which the remat policies in blocks.py refer to.
HIDDEN = "hidden"  # product before the GELU in a block's second branch
PRODUCT = "product"  # product with a derivative of its own

_CUBIC = 0.044715
_SLOPE = 2 * math.sqrt(2 / math.pi)


def cast_products(inputs, kernel, bias, *, dtype, inexact=True):
  """Casts the factors of a Flax layer's product to `dtype`, but not its bias.

  Adds biases in float32: in bfloat16 the gradient of a bias, a sum over all
  tokens, was seen to come out a third too small.
  """
  inputs, kernel = promote_dtype(inputs, kernel, dtype=dtype, inexact=inexact)
  return inputs, kernel, bias


def dense(
  features: int,
  dtype: jnp.dtype | None,
  *,
  saved_as: str | None = None,
  **options,
) -> nn.Dense:
  """Returns a dense layer whose product is computed in `dtype`.

  Args:
    features: width of the output.
    dtype: of the product's factors; None for float32.
    saved_as: checkpoint name of the product.
    **options: of flax's Dense.
  """

  def named_dot(*arguments, **keywords):
    y = jax.lax.dot_general(*arguments, **keywords)
    return checkpoint_name(y, saved_as) if saved_as else y

  return nn.Dense(
    features,
    dtype=dtype,
    promote_dtype=cast_products,
    dot_general=named_dot,
    **options,
  )


def apply_mask(x: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Multiplies by a drop mask; None keeps everything."""
  return x if mask is None else x * mask


def share_over(module: type[nn.Module], axis: int) -> type[nn.Module]:
  """Lifts a module over one axis of its inputs, with shared parameters."""
  return nn.vmap(
    module,
    in_axes=axis,
    out_axes=axis,
    variable_axes={"params": None},
    split_rngs={"params": False},
  )


def gpu_barrier(x: jax.Array) -> jax.Array:
  """Makes a GPU store an array and its cotangent with this dtype and layout.

  Otherwise XLA folds the bfloat16 round trip away and moves float32, or
  transposes the array first. TPUs would lose by it (benchmarks/NOTES.md).
  """
  barrier = jax.lax.optimization_barrier
  return jax.lax.platform_dependent(
    x, cuda=barrier, rocm=barrier, default=lambda x: x
  )


def patch_embedding(
  hidden: int,
  patch: int,
  dtype: jnp.dtype | None,
  name: str,
  *,
  as_product: bool = False,
) -> nn.Conv:
  """Returns the projection of each patch: n h w c to n h/P w/P hidden.

  Args:
    hidden: features of a token.
    patch: side P in pixels.
    dtype: of the product's factors; None for float32.
    name: of its parameters.
    as_product: computes a matrix product of patches. GPU convolutions take ten
      times as long.
  """
  return nn.Conv(
    hidden,
    kernel_size=(patch, patch),
    strides=(patch, patch),
    padding="VALID",
    dtype=dtype,
    promote_dtype=cast_products,
    conv_general_dilated=_multiply_patches if as_product else None,
    name=name,
  )


def _multiply_patches(images, kernel, strides, *_, **__):
  """Convolves without overlap: n h w c to n h/P w/P d, by one product."""
  n, height, width, c = images.shape
  p, _ = strides
  patches = images.reshape(n, height // p, p, width // p, p, c)
  patches = patches.transpose(0, 1, 3, 2, 4, 5)  # n h/P w/P P P c
  patches = patches.reshape(*patches.shape[:3], p * p * c)
  return patches @ kernel.reshape(p * p * c, -1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def gelu(x: jax.Array, form: str) -> jax.Array:
  """Applies GELU element by element.

  Args:
    x: floating-point, any shape.
    form: "tanh", the approximation in the authors' code, or "exact".
  """
  assert form in MODEL_FIELDS["gelu"]
  return jax.nn.gelu(x, approximate=form == "tanh")


@gelu.defjvp
def _gelu_jvp(form, primals, tangents):
  # The derivative uses other functions than the value. XLA would share a common
  # one, and, because it is expensive, keep it in float32 from the forward to
  # the backward pass: a quarter of a B/16 step's traffic on a GPU
  # (benchmarks/NOTES.md).
  (x,), (tangent,) = primals, tangents
  if form == "tanh":
    _, slope = gelu_gate_and_grad(x)
  else:
    gate = 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    slope = gate + x * density
  return gelu(x, form), tangent * slope


def gelu_gate_and_grad(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the gate g of the tanh form, GELU(x) = x g, and the derivative.

  The gate is a sigmoid: g = sigmoid(gelu_gate_logit(x)).
  """
  gate = jax.nn.sigmoid(gelu_gate_logit(x))
  return gate, gelu_grad(x, gate)


def gelu_gate_logit(x: jax.Array) -> jax.Array:
  """Returns the logit of the tanh form's gate."""
  return _SLOPE * x * (1 + _CUBIC * (x * x))


def gelu_grad(x: jax.Array, gate: jax.Array) -> jax.Array:
  """Returns the derivative of the tanh form, given its gate."""
  density = gate * (1 - gate) * _SLOPE * (1 + 3 * _CUBIC * (x * x))
  return gate + x * density
