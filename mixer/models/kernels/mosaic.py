# SPDX-License-Identifier: Apache-2.0
"""Mosaic GPU kernels, for Hopper and newer: the same passes as `triton`'s.

The columns of a tile are spread over all 128 threads of a program. Sums over
rows stay within a thread, and sums over columns go through shared memory, all
rows of a tile at once. Tiles divide their arrays, so that nothing is masked:
the last axis must be a multiple of 128. Under jit, the same kernel of all
blocks is lowered once.

Letters in shape comments: n examples, s tokens, S padded tokens, c channels, d
hidden units.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mixer.models.kernels import gelu_gate, statistics
from mixer.models.layers import gelu_grad

if jax.__version_info__ < (0, 11):
  raise ImportError("Kernels of Mosaic GPU need jax 0.11 or newer.")

THREADS = 128
_TILE = 4096  # elements at most, 32 for each thread
_PARTS = 8  # programs per example in the layer norm's backward pass
_STEPS = 8  # tiles per program in the GELU's backward pass


@functools.partial(jax.jit, static_argnames=("rows", "dtype", "interpret"))
def layer_norm(x, scale, shift, rows, dtype, interpret=False):
  """Computes `triton.layer_norm`."""
  n, s, c = x.shape
  side = _divisor(math.gcd(s, rows), _TILE // c)
  tile = side, c

  def layer_norm(x_ref, scale_ref, shift_ref, y_ref):
    i, j = _indices(2)
    at = i, pl.ds(j * side, side)

    @pl.when(j < s // side)
    def _normalize():
      x = _load(x_ref.at[at])
      mean, deviation = (
        _expand(y, 0, tile) for y in statistics(x, keepdims=False)
      )
      scale, shift = (
        _expand(_load(ref), 1, tile) for ref in (scale_ref, shift_ref)
      )
      _store(y_ref.at[at], (x - mean) * deviation * scale + shift)

    @pl.when(j >= s // side)
    def _pad():
      _store(y_ref.at[at], jnp.zeros(tile))

  out = jax.ShapeDtypeStruct((n, rows, c), dtype)
  return _call(layer_norm, out, (n, rows // side), interpret)(x, scale, shift)


@functools.partial(jax.jit, static_argnames="interpret")
def layer_norm_gradient(x, scale, d_y, skip, interpret=False):
  """Computes `triton.layer_norm_gradient`."""
  n, s, c = x.shape
  side = _divisor(s, _TILE // c)
  parts = _divisor(s // side, _PARTS)
  steps = s // side // parts
  tile = side, c
  # Mosaic finds no layout for a sum over one row.
  over_rows = (lambda y: y.sum(axis=0)) if side > 1 else (lambda y: y)

  def layer_norm_gradient(
    x_ref, scale_ref, d_y_ref, skip_ref, d_x_ref, d_scale_ref, d_shift_ref
  ):
    i, j = _indices(2)
    scale = _expand(_load(scale_ref), 1, tile)

    def step(k, sums):
      at = i, pl.ds((j * steps + k) * side, side)
      x, d_y, skip = (_load(ref.at[at]) for ref in (x_ref, d_y_ref, skip_ref))
      mean, deviation = (
        _expand(y, 0, tile) for y in statistics(x, keepdims=False)
      )
      normed = (x - mean) * deviation
      d_normed = d_y * scale
      # Project out the directions that layer norm removes: shift and scale.
      mean_part, scale_part = (
        _expand(y.sum(axis=1) / c, 0, tile)
        for y in (d_normed, d_normed * normed)
      )
      d_x = (d_normed - mean_part - normed * scale_part) * deviation
      _store(d_x_ref.at[at], skip + d_x)
      d_scale, d_shift = sums
      return d_scale + over_rows(d_y * normed), d_shift + over_rows(d_y)

    zeros = over_rows(jnp.zeros(tile))
    sums = jax.lax.fori_loop(0, steps, step, (zeros, zeros))
    for ref, total in zip((d_scale_ref, d_shift_ref), sums, strict=True):
      _store(ref.at[i, j if side > 1 else pl.ds(j, 1)], total)

  sums = jax.ShapeDtypeStruct((n, parts, c), jnp.float32)
  out = [jax.ShapeDtypeStruct(x.shape, x.dtype), sums, sums]
  call = _call(layer_norm_gradient, out, (n, parts), interpret)
  d_x, d_scale, d_shift = call(x, scale, d_y, skip)
  return d_x, d_scale.sum(axis=(0, 1)), d_shift.sum(axis=(0, 1))


@functools.partial(jax.jit, static_argnames=("axis", "interpret"))
def bias_gelu(x, bias, axis, interpret=False):
  """Computes `triton.bias_gelu`."""
  n, *sides = x.shape
  tile = _gelu_tile(sides)

  def bias_gelu(x_ref, bias_ref, out_ref):
    i, *at = _indices(3)
    at = [pl.ds(a * side, side) for a, side in zip(at, tile, strict=True)]
    bias = _load(bias_ref.at[at[axis - 1]])
    x = _load(x_ref.at[i, *at]) + _expand(bias, axis - 1, tile)
    _store(out_ref.at[i, *at], x * gelu_gate(x))

  grid = n, sides[0] // tile[0], sides[1] // tile[1]
  out = jax.ShapeDtypeStruct(x.shape, x.dtype)
  return _call(bias_gelu, out, grid, interpret)(x, bias)


@functools.partial(jax.jit, static_argnames=("axis", "interpret"))
def bias_gelu_gradient(x, bias, cotangent, axis, interpret=False):
  """Computes `triton.bias_gelu_gradient`."""
  n, *sides = x.shape
  tile = _gelu_tile(sides)
  along, across = axis - 1, 2 - axis  # axes of the bias, and of its sums
  blocks = sides[across] // tile[across]
  steps = _divisor(blocks, _STEPS)

  def bias_gelu_gradient(x_ref, bias_ref, cotangent_ref, d_x_ref, d_bias_ref):
    i, j, part = _indices(3)
    own = pl.ds(j * tile[along], tile[along])
    bias = _expand(_load(bias_ref.at[own]), along, tile)

    def step(k, total):
      other = pl.ds((part * steps + k) * tile[across], tile[across])
      at = (i, own, other) if along == 0 else (i, other, own)
      x = _load(x_ref.at[at]) + bias
      d_x = _load(cotangent_ref.at[at]) * gelu_grad(x, gelu_gate(x))
      _store(d_x_ref.at[at], d_x)
      return total + d_x

    total = jax.lax.fori_loop(0, steps, step, _cast(jnp.zeros(tile)))
    _store(d_bias_ref.at[i, part, own], total.sum(axis=across))

  grid = n, sides[along] // tile[along], blocks // steps
  out = [
    jax.ShapeDtypeStruct(x.shape, x.dtype),
    jax.ShapeDtypeStruct((n, grid[2], len(bias)), jnp.float32),
  ]
  call = _call(bias_gelu_gradient, out, grid, interpret)
  d_x, d_bias = call(x, bias, cotangent)
  return d_x, d_bias.sum(axis=(0, 1))


def _call(kernel, out, grid, interpret):
  """Returns a function that runs a kernel for all programs of a grid."""
  return plgpu.kernel(
    kernel,
    out_type=out,
    grid=grid,
    grid_names=_AXES[: len(grid)],
    compiler_params=plgpu.CompilerParams(
      approx_math=True,
      unsafe_no_auto_barriers=True,  # no kernel reads memory that it writes
    ),
    interpret=plgpu.InterpretGPUParams() if interpret else None,
  )


_AXES = "i", "j", "k"


def _indices(count):
  return [jax.lax.axis_index(name) for name in _AXES[:count]]


def _divisor(number, most):
  """Returns the largest divisor that is not above `most`."""
  return max(k for k in range(1, max(most, 1) + 1) if number % k == 0)


def _vector(columns):
  """Returns the number of adjacent columns of a thread."""
  if columns % THREADS:
    raise ValueError(
      f"Kernels of Mosaic GPU need widths in multiples of {THREADS}, not "
      f"{columns}: take kernels='plain'."
    )
  return math.gcd(columns // THREADS, 8)


def _gelu_tile(sides):
  columns = THREADS * _vector(sides[1])
  return _divisor(sides[0], _TILE // columns), columns


def _cast(tile):
  """Spreads the columns of a tile over all threads."""
  vector = _vector(tile.shape[1])
  parts = (1, THREADS * vector), (32 * vector,), (vector,)
  layout = plgpu.Layout.TILED(
    plgpu.Tiling(parts), warp_dims=(-3,), lane_dims=(-2,), vector_dim=-1
  )
  return plgpu.layout_cast(tile, layout)


def _load(ref):
  """Loads a tile, or a vector, in float32."""
  value = plgpu.load(ref, optimized=False)
  value = _cast(value) if value.ndim == 2 else value
  return value.astype(jnp.float32)


def _store(ref, value):
  value = value.astype(ref.dtype)
  if hasattr(plgpu, "store"):
    plgpu.store(ref, value, optimized=False)
  else:  # jax 0.11
    ref[...] = value


def _expand(vector, axis, tile):
  """Repeats a vector along the other axis of a tile."""
  return jax.lax.broadcast_in_dim(vector, tile, (axis,))
