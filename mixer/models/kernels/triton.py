# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for GPUs: layer norm, and bias with GELU, each with gradient.

XLA reads the tokens twice for a layer norm, and four times in the backward
pass. Each program here handles a few full rows, so that every element is read
once; the backward pass recomputes mean and standard deviation, and adds the
cotangent of the skip connection.

Hidden units before the GELU are a step's largest arrays. In the backward pass,
XLA writes their cotangent in float32 and reads it again for the gradient of the
bias; this kernel sums it for the bias and writes it once, rounded. GELU is the
tanh form, as a sigmoid of few instructions; otherwise the kernels would be
bound by arithmetic, not by memory.

Letters in shape comments: n examples, s tokens, S padded tokens, c channels, C
channels padded to a power of two, d hidden units, r rows of a program; in the
GELU's kernels, r rows and c columns of a program's tile.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mixer.models.kernels import gelu_gate, statistics
from mixer.models.layers import gelu_grad

# Measured on an H200 (benchmarks/NOTES.md).
# Tiles of the GELU's kernels are by the axis of hidden units.
_TILES = {1: (16, 128), 2: (32, 128)}
_ROWS = 4  # per program of the layer norm
_ROWS_BACK = 2  # per iteration of the backward pass
_PARTS = 8  # programs per example in the backward pass
_OPTIONS = plgpu.CompilerParams(num_warps=4, num_stages=1)


def layer_norm(
  x: jax.Array,
  scale: jax.Array,
  shift: jax.Array,
  rows: int,
  dtype: jnp.dtype,
  interpret: bool = False,
) -> jax.Array:
  """Computes the layer norm of tokens in float32.

  Args:
    x: n s c.
    scale, shift: [c] float32.
    rows: S, at least s; the padding is zeros.
    dtype: of the result.
    interpret: runs on a CPU.

  Returns:
    [n, S, c].
  """
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


def layer_norm_gradient(
  x: jax.Array,
  scale: jax.Array,
  d_y: jax.Array,
  skip: jax.Array,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Computes the gradients of `layer_norm`.

  Args:
    x, scale, interpret: as there.
    d_y: n S c, cotangent of its result.
    skip: n s c, added to the gradient of x before that is rounded.

  Returns:
    Gradients of x, scale and shift; the last two in float32.
  """
  n, s, c = x.shape
  channels = pl.next_power_of_2(c)

  def example_spec(rows):
    return pl.BlockSpec((None, rows, channels), lambda i, j: (i, 0, 0))

  part_spec = pl.BlockSpec((None, None, channels), lambda i, j: (i, j, 0))
  sums = jax.ShapeDtypeStruct((n, _PARTS, c), jnp.float32)
  call = pl.pallas_call(
    functools.partial(
      _norm_gradient_kernel, tokens=s, channels=c, part=pl.cdiv(s, _PARTS)
    ),
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), sums, sums],
    grid=(n, _PARTS),
    in_specs=[
      example_spec(s),
      pl.BlockSpec((channels,), lambda i, j: (0,)),
      example_spec(d_y.shape[1]),
      example_spec(s),
    ],
    out_specs=[example_spec(s), part_spec, part_spec],
    compiler_params=_OPTIONS,
    interpret=interpret,
    name="layer_norm_gradient",
  )
  d_x, d_scale, d_shift = call(x, scale, d_y, skip)
  return d_x, d_scale.sum(axis=(0, 1)), d_shift.sum(axis=(0, 1))


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


def _norm_gradient_kernel(
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
    An array like x.
  """
  call, tile, bias_spec = _call(_gelu_kernel, x, axis, interpret, "bias_gelu")
  return call(
    out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    in_specs=[tile, bias_spec],
    out_specs=tile,
  )(x, bias)


def bias_gelu_gradient(
  x: jax.Array,
  bias: jax.Array,
  cotangent: jax.Array,
  axis: int,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Computes the gradients of `bias_gelu`.

  Returns:
    Gradients of x, like x, and of the bias, summed in float32 before rounding.
  """
  call, tile, bias_spec = _call(
    _gelu_gradient_kernel, x, axis, interpret, "bias_gelu_gradient"
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
        (None, None, size), lambda i, *at: (i, at[2 - axis], at[axis - 1])
      ),
    ],
  )(x, bias, cotangent)
  return d_x, d_bias.sum(axis=(0, 1))


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
  out = (x * gelu_gate(x)).astype(out_ref.dtype)
  plgpu.store(out_ref, out, mask=mask)


def _gelu_gradient_kernel(
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
  d_x = _load(cotangent_ref, mask) * gelu_grad(x, gelu_gate(x))
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
  bias = _load(bias_ref, bias_mask)
  return _load(x_ref, mask) + jnp.expand_dims(bias, 1 - axis)
