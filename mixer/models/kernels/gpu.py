# SPDX-License-Identifier: Apache-2.0
"""Mixer block for GPUs: library products between fused kernels.

On an H200 no kernel of ours came near the library's products; everything
between them is one kernel each (`layer_norm_residual`, `bias_gelu`). Products
of token mixing are batched over examples, so that nothing is transposed: one
product over all examples needs tokens last, which costs each a pass over
memory. The library needs the contracted axis in multiples of 8, which 196
tokens are not; the layer-norm kernel writes the padding.

Letters in shape comments: n examples, s tokens, S tokens padded to a multiple
of 8, c channels, d hidden units.
"""

import functools
import types

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mixer.models.kernels import Weights, mixing_weights
from mixer.models.layers import HIDDEN, PRODUCT, freeze_shift
from mixer.models.mixer import MixerBlock

try:
  from mixer.models.kernels import triton as passes
except ImportError:  # a jax without Pallas' Triton backend
  from mixer.models.kernels import mosaic as passes

MULTIPLE = 8


class GpuMixerBlock(MixerBlock, kw_only=True):
  """A Mixer block by GPU kernels; for GELU's tanh form, without dropout."""

  patches_as_product = True
  passes = passes

  def mix_tokens(self, x, keys):
    weights = mixing_weights(self.variables["params"], "token_mixing")
    x, y = mix_tokens(x, weights, self.dtype, self.passes)
    return self.add(x, y, keys, branch=0)

  def mix_channels(self, x, keys):
    weights = mixing_weights(self.variables["params"], "channel_mixing")
    x, y = mix_channels(x, weights, self.dtype, self.passes)
    return self.add(x, y, keys, branch=1)


def block_with(kernels: types.ModuleType) -> type[GpuMixerBlock]:
  """Returns the block with another module's kernels."""

  class Block(GpuMixerBlock, kw_only=True):
    passes = kernels

  return Block


def mix_tokens(
  x: jax.Array,
  weights: Weights,
  dtype: jnp.dtype | None,
  passes: types.ModuleType,
) -> tuple[jax.Array, jax.Array]:
  """Computes the token-mixing branch, without its skip connection.

  Args:
    x: n s c.
    weights: of token mixing.
    dtype: of the products' factors, and of x and its cotangent between
      branches; None for float32.
    passes: module of the kernels.

  Returns:
    x and the branch's output, both float32 [n, s, c].
  """
  dtype = dtype or jnp.float32
  s = x.shape[1]
  padding = -s % MULTIPLE
  x, y = layer_norm_residual(
    x.astype(dtype), weights.gamma, weights.beta, s + padding, dtype, passes
  )
  w1 = jnp.pad(weights.w1, ((0, padding), (0, 0))).astype(dtype)
  w2 = jnp.pad(weights.w2, ((0, 0), (0, padding))).astype(dtype)
  y = checkpoint_name(_multiply(y, w1), PRODUCT)
  y = bias_gelu(y, weights.b1, 1, passes)
  y = checkpoint_name(_multiply(y, w2), PRODUCT)
  y = y[:, :s] + freeze_shift(weights.b2, dtype)[:, None]
  return x.astype(jnp.float32), y


def mix_channels(
  x: jax.Array,
  weights: Weights,
  dtype: jnp.dtype | None,
  passes: types.ModuleType,
) -> tuple[jax.Array, jax.Array]:
  """Computes the channel-mixing branch; see `mix_tokens`."""
  dtype = dtype or jnp.float32
  x, y = layer_norm_residual(
    x.astype(dtype), weights.gamma, weights.beta, x.shape[1], dtype, passes
  )
  y = y.reshape(1, -1, y.shape[-1])  # all tokens as one example
  y = checkpoint_name(y @ weights.w1.astype(dtype), HIDDEN)
  y = bias_gelu(y, weights.b1, 2, passes)
  y = y @ weights.w2.astype(dtype) + weights.b2
  return x.astype(jnp.float32), y.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def layer_norm_residual(
  x: jax.Array,
  scale: jax.Array,
  shift: jax.Array,
  rows: int,
  dtype: jnp.dtype,
  passes: types.ModuleType,
) -> tuple[jax.Array, jax.Array]:
  """Computes a branch's layer norm, and passes its input on.

  Returns:
    x itself, and `passes.layer_norm`. Both cotangents of x are added in float32
    and rounded once.
  """
  return x, passes.layer_norm(x, scale, shift, rows, dtype)


def _norm_forward(x, scale, shift, rows, dtype, passes):
  out = layer_norm_residual(x, scale, shift, rows, dtype, passes)
  return out, (x, scale)


def _norm_backward(rows, dtype, passes, residuals, cotangents):
  skip, d_y = cotangents
  return passes.layer_norm_gradient(*residuals, d_y, skip)


layer_norm_residual.defvjp(_norm_forward, _norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def bias_gelu(
  x: jax.Array, bias: jax.Array, axis: int, passes: types.ModuleType
) -> jax.Array:
  """Computes `passes.bias_gelu`, GELU(x + bias)."""
  return passes.bias_gelu(x, bias, axis)


def _gelu_forward(x, bias, axis, passes):
  return bias_gelu(x, bias, axis, passes), (x, bias)


def _gelu_backward(axis, passes, residuals, cotangent):
  return passes.bias_gelu_gradient(*residuals, cotangent, axis)


bias_gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.custom_vjp
def _multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Maps n s c to n d c, with a kernel [s, d]."""
  kernels = jnp.broadcast_to(kernel.T, (x.shape[0], *kernel.T.shape))
  return jax.lax.batch_matmul(kernels, x)


def _multiply_forward(x, kernel):
  return _multiply(x, kernel), (x, kernel)


def _multiply_backward(residuals, cotangent):
  x, kernel = residuals
  per_example = jnp.einsum(
    "nsc,ndc->nsd", x, cotangent, preferred_element_type=jnp.float32
  )
  d_kernel = per_example.sum(axis=0).astype(kernel.dtype)
  return _multiply(cotangent, kernel.T), d_kernel


_multiply.defvjp(_multiply_forward, _multiply_backward)
