# SPDX-License-Identifier: Apache-2.0
"""Bias and GELU of hidden units as one GPU kernel each way, by Triton.

Hidden units before the GELU are the largest arrays of a step. Going back, XLA
writes their cotangent in float32, and reads it once more for the bias's
gradient; here it is written once, rounded, and summed up before. The GELU is
the form "tanh" by a sigmoid of few instructions, without which the kernels
would wait for arithmetic and not for memory.

Letters in shape comments: n examples, d hidden units, which are on axis 1 or 2;
a program has a tile of r rows and c columns of an example.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mixer.models.layers import gelu_gate_logit, gelu_grad

# By measurement on an H200 (benchmarks/NOTES.md).
_TILES = {1: (16, 128), 2: (32, 128)}  # by the axis of hidden units
_OPTIONS = plgpu.CompilerParams(num_warps=4, num_stages=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def bias_gelu(
  x: jax.Array, bias: jax.Array, axis: int, interpret: bool = False
) -> jax.Array:
  """GELU(x + bias), computed in float32.

  Args:
    x: [n, d, any] or [n, any, d].
    bias: [d] float32.
    axis: of d.
    interpret: runs on a CPU.

  Returns:
    The shape and dtype of x. The bias's gradient is summed up in float32 from
    what was not rounded yet.
  """
  call, tile, of_bias = _call(_gelu_kernel, x, axis, interpret, "bias_gelu")
  return call(
    out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    in_specs=[tile, of_bias],
    out_specs=tile,
  )(x, bias)


def _forward(x, bias, axis, interpret):
  return bias_gelu(x, bias, axis, interpret), (x, bias)


def _backward(axis, interpret, residuals, cotangent):
  x, bias = residuals
  call, tile, of_bias = _call(
    _gradient_kernel, x, axis, interpret, "bias_gelu_gradient"
  )
  size = _TILES[axis][axis - 1]
  across = pl.cdiv(x.shape[3 - axis], _TILES[axis][2 - axis])
  d_x, d_bias = call(
    out_shape=[
      jax.ShapeDtypeStruct(x.shape, x.dtype),
      jax.ShapeDtypeStruct((x.shape[0], across, len(bias)), jnp.float32),
    ],
    in_specs=[tile, of_bias, tile],
    out_specs=[
      tile,
      pl.BlockSpec(
        (None, None, size),
        lambda i, *at: (i, at[2 - axis], at[axis - 1]),
      ),
    ],
  )(x, bias, cotangent)
  return d_x, d_bias.sum(axis=(0, 1))


bias_gelu.defvjp(_forward, _backward)


def _call(kernel, x, axis, interpret, name):
  """What both kernels are called with: the call, specs of a tile and a bias."""
  _, rows, columns = x.shape
  sides = _TILES[axis]
  call = functools.partial(
    pl.pallas_call,
    functools.partial(kernel, axis=axis - 1, rows=rows, columns=columns),
    grid=(x.shape[0], pl.cdiv(rows, sides[0]), pl.cdiv(columns, sides[1])),
    compiler_params=_OPTIONS,
    interpret=interpret,
    name=name,
  )
  tile = pl.BlockSpec((None, *sides), lambda i, j, k: (i, j, k))
  of_bias = pl.BlockSpec((sides[axis - 1],), lambda i, *at: (at[axis - 1],))
  return call, tile, of_bias


def _gelu_kernel(
  x_ref,  # r c
  bias_ref,  # r or c, by `axis`
  out_ref,  # r c
  *,
  axis,
  rows,
  columns,
):
  here, of_bias = _masks(x_ref.shape, axis, rows, columns)
  x = _biased(x_ref, bias_ref, here, of_bias, axis)
  out = (x * _share(x)).astype(out_ref.dtype)
  plgpu.store(out_ref, out, mask=here)


def _gradient_kernel(
  x_ref,  # r c
  bias_ref,  # r or c, by `axis`
  cotangent_ref,  # r c
  d_x_ref,  # r c
  d_bias_ref,  # as the bias, of this program alone
  *,
  axis,
  rows,
  columns,
):
  here, of_bias = _masks(x_ref.shape, axis, rows, columns)
  x = _biased(x_ref, bias_ref, here, of_bias, axis)
  cotangent = plgpu.load(cotangent_ref, mask=here, other=0.0)
  d_x = cotangent.astype(jnp.float32) * gelu_grad(x, _share(x))
  plgpu.store(d_x_ref, d_x.astype(d_x_ref.dtype), mask=here)
  plgpu.store(d_bias_ref, d_x.sum(axis=1 - axis), mask=of_bias)


def _masks(shape, axis, rows, columns):
  """Which entries of a tile, and of its part of the bias, there are."""
  row, column = (
    jax.lax.broadcasted_iota(jnp.int32, shape, k)
    + pl.program_id(1 + k) * shape[k]
    for k in (0, 1)
  )
  side, size = shape[axis], (rows, columns)[axis]
  of_bias = jax.lax.broadcasted_iota(jnp.int32, (side,), 0)
  of_bias += pl.program_id(1 + axis) * side
  return (row < rows) & (column < columns), of_bias < size


def _biased(x_ref, bias_ref, here, of_bias, axis):
  bias = plgpu.load(bias_ref, mask=of_bias, other=0.0)
  x = plgpu.load(x_ref, mask=here, other=0.0).astype(jnp.float32)
  return x + jnp.expand_dims(bias, 1 - axis)


def _share(x):
  """What to multiply x by for its GELU; 0 where the power is infinite."""
  power = -math.log2(math.e) * gelu_gate_logit(x)
  root = jax.lax.rsqrt(1 + jnp.exp2(power))
  return root * root  # a quotient takes more instructions
