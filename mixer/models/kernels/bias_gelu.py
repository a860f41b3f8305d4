# SPDX-License-Identifier: Apache-2.0
"""Fused bias and GELU for GPUs: one Triton kernel forward, one backward.

Hidden units before the GELU are a step's largest arrays. In the backward pass,
XLA writes their cotangent in float32 and reads it again for the gradient of the
bias; this kernel sums it for the bias and writes it once, rounded. GELU is the
tanh form, as a sigmoid of few instructions; otherwise the kernels would be
bound by arithmetic, not by memory.

Letters in shape comments: n examples, d hidden units, on axis 1 or 2; a program
handles a tile of r rows and c columns of one example.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mixer.models.layers import gelu_gate_logit, gelu_grad

# Measured on an H200 (benchmarks/NOTES.md).
_TILES = {1: (16, 128), 2: (32, 128)}  # by the axis of hidden units
_OPTIONS = plgpu.CompilerParams(num_warps=4, num_stages=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def bias_gelu(
  x: jax.Array, bias: jax.Array, axis: int, interpret: bool = False
) -> jax.Array:
  """Computes GELU(x + bias) in float32.

  Args:
    x: [n, d, any] or [n, any, d].
    bias: [d] float32.
    axis: axis of d.
    interpret: runs on a CPU.

  Returns:
    An array like x. The gradient of the bias is summed in float32, before
    rounding.
  """
  call, tile, bias_spec = _call(_gelu_kernel, x, axis, interpret, "bias_gelu")
  return call(
    out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    in_specs=[tile, bias_spec],
    out_specs=tile,
  )(x, bias)


def _forward(x, bias, axis, interpret):
  return bias_gelu(x, bias, axis, interpret), (x, bias)


def _backward(axis, interpret, residuals, cotangent):
  x, bias = residuals
  call, tile, bias_spec = _call(
    _gradient_kernel, x, axis, interpret, "bias_gelu_gradient"
  )
  size = _TILES[axis][axis - 1]
  across = pl.cdiv(x.shape[3 - axis], _TILES[axis][2 - axis])
  d_x, d_bias = call(
    out_shape=[
      jax.ShapeDtypeStruct(x.shape, x.dtype),
      jax.ShapeDtypeStruct((x.shape[0], across, len(bias)), jnp.float32),
    ],
    in_specs=[tile, bias_spec, tile],
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
  """Returns the common part of both calls, and specs of a tile and a bias."""
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
  bias_spec = pl.BlockSpec((sides[axis - 1],), lambda i, *at: (at[axis - 1],))
  return call, tile, bias_spec


def _gelu_kernel(
  x_ref,  # r c
  bias_ref,  # r or c, by `axis`
  out_ref,  # r c
  *,
  axis,
  rows,
  columns,
):
  mask, bias_mask = _masks(x_ref.shape, axis, rows, columns)
  x = _biased(x_ref, bias_ref, mask, bias_mask, axis)
  out = (x * _gate(x)).astype(out_ref.dtype)
  plgpu.store(out_ref, out, mask=mask)


def _gradient_kernel(
  x_ref,  # r c
  bias_ref,  # r or c, by `axis`
  cotangent_ref,  # r c
  d_x_ref,  # r c
  d_bias_ref,  # as the bias; this program's part
  *,
  axis,
  rows,
  columns,
):
  mask, bias_mask = _masks(x_ref.shape, axis, rows, columns)
  x = _biased(x_ref, bias_ref, mask, bias_mask, axis)
  cotangent = plgpu.load(cotangent_ref, mask=mask, other=0.0)
  d_x = cotangent.astype(jnp.float32) * gelu_grad(x, _gate(x))
  plgpu.store(d_x_ref, d_x.astype(d_x_ref.dtype), mask=mask)
  plgpu.store(d_bias_ref, d_x.sum(axis=1 - axis), mask=bias_mask)


def _masks(shape, axis, rows, columns):
  """Returns masks of the valid entries of a tile, and of its bias."""
  row, column = (
    jax.lax.broadcasted_iota(jnp.int32, shape, k)
    + pl.program_id(1 + k) * shape[k]
    for k in (0, 1)
  )
  side, size = shape[axis], (rows, columns)[axis]
  bias_mask = jax.lax.broadcasted_iota(jnp.int32, (side,), 0)
  bias_mask += pl.program_id(1 + axis) * side
  return (row < rows) & (column < columns), bias_mask < size


def _biased(x_ref, bias_ref, mask, bias_mask, axis):
  bias = plgpu.load(bias_ref, mask=bias_mask, other=0.0)
  x = plgpu.load(x_ref, mask=mask, other=0.0).astype(jnp.float32)
  return x + jnp.expand_dims(bias, 1 - axis)


def _gate(x):
  """Returns the gate of x, GELU(x) = x * gate; 0 wmask the power overflows."""
  power = -math.log2(math.e) * gelu_gate_logit(x)
  root = jax.lax.rsqrt(1 + jnp.exp2(power))
  return root * root  # division takes more instructions
