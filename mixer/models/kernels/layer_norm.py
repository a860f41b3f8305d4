# SPDX-License-Identifier: Apache-2.0
"""Layer norm of a branch as one GPU kernel each way, by Triton.

XLA reads the tokens twice for a layer norm, and four times going back. A
program has some rows, all their channels with them, so that it reads each once;
going back it takes mean and deviation again from what it has read, and adds
what the skip connection brings.

Letters in shape comments: n examples, s tokens, S rows of the result, c
channels; C is c in whole powers of two, r a program's rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mixer.models.kernels.common import statistics

# By measurement on an H200 (benchmarks/NOTES.md).
_ROWS = 4  # of a program
_ROWS_BACK = 2  # that it goes back over at once
_PARTS = 8  # programs of an example that go back
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
  """What a branch begins with, and what it is added to.

  Args:
    x: n s c.
    scale, shift: [c] float32.
    rows: S, at least s; those beyond are zeros.
    dtype: of the layer norm's result; it is computed in float32.
    interpret: runs on a CPU.

  Returns:
    x itself, and its layer norm [n, S, c]. Both cotangents of x are added up in
    float32, and rounded once.
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

  def of_example(rows):
    return pl.BlockSpec((None, rows, channels), lambda i, j: (i, 0, 0))

  of_part = pl.BlockSpec((None, None, channels), lambda i, j: (i, j, 0))
  sums = jax.ShapeDtypeStruct((n, _PARTS, c), jnp.float32)
  call = pl.pallas_call(
    functools.partial(
      _gradient_kernel, tokens=s, channels=c, part=pl.cdiv(s, _PARTS)
    ),
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), sums, sums],
    grid=(n, _PARTS),
    in_specs=[
      of_example(s),
      pl.BlockSpec((channels,), lambda i, j: (0,)),
      of_example(rows),
      of_example(s),
    ],
    out_specs=[of_example(s), of_part, of_part],
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
  row, channel = _places(x_ref.shape, first)
  here = channel < channels
  x = _load(x_ref, here & (row < tokens))
  mean, deviation = statistics(x, channels)
  of_channels = _channels(scale_ref.shape[0]) < channels
  scale, shift = (_load(ref, of_channels) for ref in (scale_ref, shift_ref))
  y = (x - mean) * deviation * scale[None] + shift[None]
  y = jnp.where(row < tokens, y, 0.0).astype(y_ref.dtype)
  plgpu.store(y_ref, y, mask=here & (row < rows))


def _gradient_kernel(
  x_ref,  # s C
  scale_ref,  # C
  d_y_ref,  # S C
  skip_ref,  # s C
  d_x_ref,  # s C
  d_scale_ref,  # C, of this program alone
  d_shift_ref,  # C
  *,
  tokens,
  channels,
  part,
):
  width = scale_ref.shape[0]
  begin = pl.program_id(1) * part
  end = jnp.minimum(begin + part, tokens)
  of_channels = _channels(width) < channels
  scale = _load(scale_ref, of_channels)

  def step(k, sums):
    first = begin + k * _ROWS_BACK
    rows = pl.ds(first, _ROWS_BACK)
    row, channel = _places((_ROWS_BACK, width), first)
    here = (row < end) & (channel < channels)
    x, d_y, skip = (
      _load(ref.at[rows, :], here) for ref in (x_ref, d_y_ref, skip_ref)
    )
    mean, deviation = statistics(x, channels)
    normed = (x - mean) * deviation
    d_normed = d_y * scale[None]
    # What a shift, or a scale, of the whole row would change is taken away.
    shifting, scaling = (
      y.sum(axis=1, keepdims=True) / channels
      for y in (d_normed, d_normed * normed)
    )
    d_x = skip + (d_normed - shifting - normed * scaling) * deviation
    plgpu.store(d_x_ref.at[rows, :], d_x.astype(d_x_ref.dtype), mask=here)
    d_scale, d_shift = sums
    return d_scale + (d_y * normed).sum(axis=0), d_shift + d_y.sum(axis=0)

  zeros = jnp.zeros((width,), jnp.float32)
  steps = pl.cdiv(part, _ROWS_BACK)
  d_scale, d_shift = jax.lax.fori_loop(0, steps, step, (zeros, zeros))
  plgpu.store(d_scale_ref, d_scale, mask=of_channels)
  plgpu.store(d_shift_ref, d_shift, mask=of_channels)


def _load(ref, mask):
  return plgpu.load(ref, mask=mask, other=0.0).astype(jnp.float32)


def _channels(width):
  return jax.lax.broadcasted_iota(jnp.int32, (width,), 0)


def _places(shape, first):
  """Which row and which channel each entry of a block is."""
  row, channel = (
    jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1)
  )
  return row + first, channel
