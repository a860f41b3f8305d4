# SPDX-License-Identifier: Apache-2.0
"""Layer norm for GPUs: one Triton kernel forward, one backward.

XLA reads the tokens twice for a layer norm, and four times in the backward
pass. Each program mask handles a few full rows, so that every element is read
once; the backward pass recomputes mean and standard deviation, and adds the
cotangent of the skip connection.

Letters in shape comments: n examples, s tokens, S padded tokens, c channels, C
channels padded to a power of two, r rows of a program.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mixer.models.kernels.common import statistics

# Measured on an H200 (benchmarks/NOTES.md).
_ROWS = 4  # per program
_ROWS_BACK = 2  # per iteration of the backward pass
_PARTS = 8  # programs per example in the backward pass
_OPTIONS = plgpu.CompilerParams(num_warps=4, num_stages=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def layer_norm_residual(
  x: jax.Array,
  scale: jax.Array,
  shift: jax.Array,
  rows: int,
  dtype: jnp.dtype,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Computes a branch's layer norm, and passes its input on.

  Args:
    x: n s c.
    scale, shift: [c] float32.
    rows: S, at least s; the padding is zeros.
    dtype: of the layer norm's output; it is computed in float32.
    interpret: runs on a CPU.

  Returns:
    x itself, and its layer norm [n, S, c]. Both cotangents of x are added in
    float32 and rounded once.
  """
  return x, _norm(x, scale, shift, rows, dtype, interpret)


def _forward(x, scale, shift, rows, dtype, interpret):
  out = layer_norm_residual(x, scale, shift, rows, dtype, interpret)
  return out, (x, scale)


def _backward(rows, dtype, interpret, residuals, cotangents):
  x, scale = residuals
  skip, d_y = cotangents
  n, s, c = x.shape
  channels = pl.next_power_of_2(c)

  def example_spec(rows):
    return pl.BlockSpec((None, rows, channels), lambda i, j: (i, 0, 0))

  part_spec = pl.BlockSpec((None, None, channels), lambda i, j: (i, j, 0))
  sums = jax.ShapeDtypeStruct((n, _PARTS, c), jnp.float32)
  call = pl.pallas_call(
    functools.partial(
      _gradient_kernel, tokens=s, channels=c, part=pl.cdiv(s, _PARTS)
    ),
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), sums, sums],
    grid=(n, _PARTS),
    in_specs=[
      example_spec(s),
      pl.BlockSpec((channels,), lambda i, j: (0,)),
      example_spec(rows),
      example_spec(s),
    ],
    out_specs=[example_spec(s), part_spec, part_spec],
    compiler_params=_OPTIONS,
    interpret=interpret,
    name="layer_norm_gradient",
  )
  d_x, d_scale, d_shift = call(x, scale, d_y, skip)
  return d_x, d_scale.sum(axis=(0, 1)), d_shift.sum(axis=(0, 1))


layer_norm_residual.defvjp(_forward, _backward)


def _norm(x, scale, shift, rows, dtype, interpret):
  n, s, c = x.shape
  channels = pl.next_power_of_2(c)
  block = pl.BlockSpec((None, _ROWS, channels), lambda i, j: (i, j, 0))
  vector = pl.BlockSpec((channels,), lambda i, j: (0,))
  call = pl.pallas_call(
    functools.partial(_norm_kernel, tokens=s, channels=c, rows=rows),
    out_shape=jax.ShapeDtypeStruct((n, rows, c), dtype),
    grid=(n, pl.cdiv(rows, _ROWS)),
    in_specs=[block, vector, vector],
    out_specs=block,
    compiler_params=_OPTIONS,
    interpret=interpret,
    name="layer_norm",
  )
  return call(x, scale, shift)


def _norm_kernel(
  x_ref,  # r C
  scale_ref,  # C
  shift_ref,  # C
  y_ref,  # r C
  *,
  tokens,
  channels,
  rows,
):
  first = pl.program_id(1) * x_ref.shape[0]
  row, channel = _indices(x_ref.shape, first)
  mask = channel < channels
  x = _load(x_ref, mask & (row < tokens))
  mean, deviation = statistics(x, channels)
  channel_mask = _channels(scale_ref.shape[0]) < channels
  scale, shift = (_load(ref, channel_mask) for ref in (scale_ref, shift_ref))
  y = (x - mean) * deviation * scale[None] + shift[None]
  y = jnp.where(row < tokens, y, 0.0).astype(y_ref.dtype)
  plgpu.store(y_ref, y, mask=mask & (row < rows))


def _gradient_kernel(
  x_ref,  # s C
  scale_ref,  # C
  d_y_ref,  # S C
  skip_ref,  # s C
  d_x_ref,  # s C
  d_scale_ref,  # C, this program's part
  d_shift_ref,  # C
  *,
  tokens,
  channels,
  part,
):
  width = scale_ref.shape[0]
  begin = pl.program_id(1) * part
  end = jnp.minimum(begin + part, tokens)
  channel_mask = _channels(width) < channels
  scale = _load(scale_ref, channel_mask)

  def step(k, sums):
    first = begin + k * _ROWS_BACK
    rows = pl.ds(first, _ROWS_BACK)
    row, channel = _indices((_ROWS_BACK, width), first)
    mask = (row < end) & (channel < channels)
    x, d_y, skip = (
      _load(ref.at[rows, :], mask) for ref in (x_ref, d_y_ref, skip_ref)
    )
    mean, deviation = statistics(x, channels)
    normed = (x - mean) * deviation
    d_normed = d_y * scale[None]
    # Project out the directions that layer norm removes: shift and scale.
    mean_part, scale_part = (
      y.sum(axis=1, keepdims=True) / channels
      for y in (d_normed, d_normed * normed)
    )
    d_x = skip + (d_normed - mean_part - normed * scale_part) * deviation
    plgpu.store(d_x_ref.at[rows, :], d_x.astype(d_x_ref.dtype), mask=mask)
    d_scale, d_shift = sums
    return d_scale + (d_y * normed).sum(axis=0), d_shift + d_y.sum(axis=0)

  zeros = jnp.zeros((width,), jnp.float32)
  steps = pl.cdiv(part, _ROWS_BACK)
  d_scale, d_shift = jax.lax.fori_loop(0, steps, step, (zeros, zeros))
  plgpu.store(d_scale_ref, d_scale, mask=channel_mask)
  plgpu.store(d_shift_ref, d_shift, mask=channel_mask)


def _load(ref, mask):
  return plgpu.load(ref, mask=mask, other=0.0).astype(jnp.float32)


def _channels(width):
  return jax.lax.broadcasted_iota(jnp.int32, (width,), 0)


def _indices(shape, first):
  """Returns the row and the channel of each entry of a block."""
  row, channel = (
    jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1)
  )
  return row + first, channel
