# SPDX-License-Identifier: Apache-2.0
"""A Mixer block's branches as a GPU is fastest at them.

Their products are the GPU library's, which no kernel of ours came near on an
H200; what is between them is one kernel each (`layer_norm`, `bias_gelu`). Token
mixing's products are batched over examples, so that nothing is turned: as one
product over all examples they would need tokens last, and for each a pass over
memory. The library wants what is contracted in multiples of 8, which 196 tokens
are not; the layer norm's kernel fills them up as it writes.

Letters in shape comments: n examples, s tokens, S in whole multiples of 8, c
channels, d hidden units.
"""

import jax
import jax.numpy as jnp

from mixer.models.kernels.bias_gelu import bias_gelu
from mixer.models.kernels.common import Weights
from mixer.models.kernels.layer_norm import norm_and_skip
from mixer.models.residual import hidden_channels, product

_MULTIPLE = 8


def mix_tokens(
  x: jax.Array,
  weights: Weights,
  dtype: jnp.dtype | None,
  *,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """The token mixing of a block, without its skip connection.

  Args:
    x: n s c.
    weights: of token mixing.
    dtype: of the products, and of x and its cotangent between branches; None
      for float32.
    interpret: runs the kernels on a CPU.

  Returns:
    x and what is to be added to it, both float32 [n, s, c].
  """
  dtype = dtype or jnp.float32
  s = x.shape[1]
  more = -s % _MULTIPLE
  x, y = norm_and_skip(
    x.astype(dtype), weights.scale, weights.shift, s + more, dtype, interpret
  )
  kernel_in = jnp.pad(weights.kernel_in, ((0, more), (0, 0))).astype(dtype)
  kernel_out = jnp.pad(weights.kernel_out, ((0, 0), (0, more))).astype(dtype)
  y = product(_multiply(y, kernel_in))
  y = bias_gelu(y, weights.bias_in, 1, interpret)
  y = product(_multiply(y, kernel_out))
  y = y[:, :s] + weights.bias_out[:, None]
  return x.astype(jnp.float32), y


def mix_channels(
  x: jax.Array,
  weights: Weights,
  dtype: jnp.dtype | None,
  *,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """The same for the channel mixing, see `mix_tokens`."""
  dtype = dtype or jnp.float32
  x, y = norm_and_skip(
    x.astype(dtype), weights.scale, weights.shift, x.shape[1], dtype, interpret
  )
  y = y.reshape(1, -1, y.shape[-1])  # one example of all tokens
  y = hidden_channels(y @ weights.kernel_in.astype(dtype))
  y = bias_gelu(y, weights.bias_in, 2, interpret)
  y = y @ weights.kernel_out.astype(dtype) + weights.bias_out
  return x.astype(jnp.float32), y.reshape(x.shape)


@jax.custom_vjp
def _multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Maps n s c to n d c by a kernel [s, d]."""
  kernels = jnp.broadcast_to(kernel.T, (x.shape[0], *kernel.T.shape))
  return jax.lax.batch_matmul(kernels, x)


def _multiply_forward(x, kernel):
  return _multiply(x, kernel), (x, kernel)


def _multiply_backward(residuals, cotangent):
  x, kernel = residuals
  of_examples = jnp.einsum(
    "nsc,ndc->nsd", x, cotangent, preferred_element_type=jnp.float32
  )
  d_kernel = of_examples.sum(axis=0).astype(kernel.dtype)
  return _multiply(cotangent, kernel.T), d_kernel


_multiply.defvjp(_multiply_forward, _multiply_backward)
