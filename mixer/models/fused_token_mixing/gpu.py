# SPDX-License-Identifier: Apache-2.0
"""The kernels of GPUs, by Triton.

Their tiles are for the shared memory of an H100, 227 kB an SM, and for at most
1,024 tokens; the compiler refuses them where there is less. An A100 takes 784
tokens in bfloat16 and 196 in float32.

Each program has some channels of an example, all its tokens with them, and
loops over hidden units. Statistics of the layer norm are taken before, because
they need all channels. Going back, the hidden units and their cotangents are
written for the gradients of the kernels, which are sums over all programs: as
XLA's products they need what was summed over to lie side by side, [s, n, c] and
[d, n, c].

Letters in shape comments: n examples, s tokens, c channels, d hidden units; S
and D are s and d in whole tiles, p a tile's channels or hidden units.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mixer.models.fused_token_mixing.arithmetic import (
  Weights,
  product,
  statistics,
)
from mixer.models.gelu import share_and_slope

# Triton's arrays have sides that are powers of two, in products of 16 or more.
_LEAST, _MOST = 16, 128
# Factors of a product that has all tokens on one side: 196 tokens, in bfloat16
# with 64 channels or hidden units, in float32 with 32.
_TILE_BYTES = 2**15
_WARPS = 8


class _Tiles(NamedTuple):
  """What a program works on at once: S tokens, p channels and hidden units."""

  tokens: int
  part: int


def mix(
  x: jax.Array,
  weights: Weights,
  kept: jax.Array,
  *,
  dtype: jnp.dtype,
  interpret: bool = False,
) -> jax.Array:
  """See `fused_token_mixing.mix_tokens`.

  Args:
    x, weights, kept, dtype: as there.
    interpret: runs on a CPU.
  """
  n, s, c = x.shape
  tiles = _tiles(s, dtype)
  padded = _in_whole_tiles(weights, tiles)
  factors = (
    padded.kernel_in.T.astype(dtype),
    padded.bias_in,
    padded.kernel_out.T.astype(dtype),
    padded.bias_out,
  )
  call = pl.pallas_call(
    functools.partial(_mix_kernel, tokens=s, channels=c),
    out_shape=jax.ShapeDtypeStruct(x.shape, dtype),
    grid=(n, pl.cdiv(c, tiles.part)),
    in_specs=[
      *_specs_of_normed(tiles),
      *map(_whole, factors),
    ],
    out_specs=_of_program(tiles),
    compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=2),
    interpret=interpret,
    name="mix_tokens",
  )
  return call(*_normed(x, padded, kept, tiles), *factors)


def gradient(
  x: jax.Array,
  weights: Weights,
  kept: jax.Array,
  cotangent: jax.Array,
  *,
  dtype: jnp.dtype,
  interpret: bool = False,
) -> tuple[jax.Array, Weights]:
  """Gradients of x, as it is, and of the weights, of what `mix` leaves."""
  n, s, c = x.shape
  d = len(weights.bias_in)
  tiles = _tiles(s, dtype)
  padded = _in_whole_tiles(weights, tiles)
  factors = (
    padded.kernel_in.T.astype(dtype),
    padded.bias_in,
    padded.kernel_in.astype(dtype),
    padded.kernel_out.astype(dtype),
  )
  whole_d, parts = len(padded.bias_in), pl.cdiv(c, tiles.part)
  sums = whole_d, tiles.tokens
  call = pl.pallas_call(
    functools.partial(_gradient_kernel, tokens=s, channels=c, hidden=d),
    out_shape=[
      jax.ShapeDtypeStruct((n, s, c), dtype),
      *[jax.ShapeDtypeStruct((s, n, c), dtype)] * 2,
      *[jax.ShapeDtypeStruct((d, n, c), dtype)] * 2,
      *(jax.ShapeDtypeStruct((n, parts, of), jnp.float32) for of in sums),
    ],
    grid=(n, parts),
    in_specs=[
      *_specs_of_normed(tiles),
      *map(_whole, factors),
      _of_program(tiles),
    ],
    out_specs=[
      _of_program(tiles),
      *(
        pl.BlockSpec((rows, None, tiles.part), lambda i, j: (0, i, j))
        for rows in (tiles.tokens, tiles.tokens, whole_d, whole_d)
      ),
      *(pl.BlockSpec((None, None, of), lambda i, j: (i, j, 0)) for of in sums),
    ],
    compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
    interpret=interpret,
    name="mix_tokens_gradient",
  )
  d_y, y, d_out, a, d_h, d_bias_in, d_bias_out = call(
    *_normed(x, padded, kept, tiles), *factors, cotangent
  )
  # Widened before, so that both parts of dx are added in float32.
  wide = x.astype(jnp.float32)
  _, back = jax.vjp(_layer_norm, wide, weights.scale, weights.shift)
  dx, d_scale, d_shift = back(d_y.astype(jnp.float32))
  dx += cotangent.astype(jnp.float32)
  sum_up = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  gradients = Weights(
    d_scale,
    d_shift,
    sum_up("snc,dnc->sd", y, d_h),
    d_bias_in.sum(axis=(0, 1))[:d],
    sum_up("dnc,snc->ds", a, d_out),
    d_bias_out.sum(axis=(0, 1))[:s],
  )
  return dx.astype(x.dtype), Weights(
    *(
      gradient.astype(weight.dtype)
      for gradient, weight in zip(gradients, weights, strict=True)
    )
  )


def _layer_norm(x, scale, shift):
  mean, deviation = statistics(x)
  return (x - mean) * deviation * scale + shift


def _tiles(tokens: int, dtype: jnp.dtype) -> _Tiles:
  tokens = max(pl.next_power_of_2(tokens), _LEAST)
  part = _TILE_BYTES // (tokens * dtype.itemsize)
  return _Tiles(tokens, min(max(part, _LEAST), _MOST))


def _in_whole_tiles(weights: Weights, tiles: _Tiles) -> Weights:
  """Filled up with zeros, which add nothing."""

  def pad(x, *wholes):
    return jnp.pad(
      x,
      [(0, -side % whole) for side, whole in zip(x.shape, wholes, strict=True)],
    )

  tokens, part = tiles
  return Weights(
    pad(weights.scale, part),
    pad(weights.shift, part),
    pad(weights.kernel_in, tokens, part),
    pad(weights.bias_in, part),
    pad(weights.kernel_out, part, tokens),
    pad(weights.bias_out, tokens),
  )


def _of_program(tiles: _Tiles) -> pl.BlockSpec:
  """A program's part of [n, s, c]."""
  return pl.BlockSpec((None, *tiles), lambda i, j: (i, 0, j))


def _whole(x: jax.Array) -> pl.BlockSpec:
  """The same for every program."""
  return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


def _specs_of_normed(tiles: _Tiles) -> list[pl.BlockSpec]:
  """Of what `_normed` gives."""
  of_example = pl.BlockSpec((None, tiles.tokens), lambda i, j: (i, 0))
  of_channels = pl.BlockSpec((tiles.part,), lambda i, j: (j,))
  kept = pl.BlockSpec((1,), lambda i, j: (i,))
  return [kept, _of_program(tiles), *[of_example] * 2, *[of_channels] * 2]


def _normed(x, padded: Weights, kept, tiles: _Tiles) -> list[jax.Array]:
  """What both kernels begin with."""
  fill = (0, 0), (0, tiles.tokens - x.shape[1])
  mean, deviation = (jnp.pad(x[..., 0], fill) for x in statistics(x))
  return [kept, x, mean, deviation, padded.scale, padded.shift]


def _mix_kernel(
  kept_ref,  # 1
  x_ref,  # S p
  mean_ref,  # S
  deviation_ref,  # S
  scale_ref,  # p
  shift_ref,  # p
  turned_in_ref,  # D S
  bias_in_ref,  # D
  turned_out_ref,  # S D
  bias_out_ref,  # S
  out_ref,  # S p
  *,
  tokens,
  channels,
):
  """Mixes an example's tokens in some channels."""
  dtype = turned_in_ref.dtype
  channels -= pl.program_id(1) * x_ref.shape[1]  # from here on
  here = _here(x_ref.shape, tokens, channels)
  x = plgpu.load(x_ref, mask=here, other=0.0).astype(jnp.float32)
  y = _norm(x, mean_ref, deviation_ref, scale_ref, shift_ref).astype(dtype)

  def add(part, total):
    h = product(turned_in_ref[part, :], y) + bias_in_ref[part][:, None]
    share, _ = share_and_slope(h)
    return total + product(turned_out_ref[:, part], (h * share).astype(dtype))

  y = _for_each_part(len(bias_in_ref), add, x)
  y = kept_ref[0] * (y + bias_out_ref[...][:, None])
  plgpu.store(out_ref, (x + y).astype(out_ref.dtype), mask=here)


def _gradient_kernel(
  kept_ref,  # 1
  x_ref,  # S p
  mean_ref,  # S
  deviation_ref,  # S
  scale_ref,  # p
  shift_ref,  # p
  turned_in_ref,  # D S
  bias_in_ref,  # D
  kernel_in_ref,  # S D
  kernel_out_ref,  # D S
  cotangent_ref,  # S p
  d_y_ref,  # S p
  y_ref,  # S p
  d_out_ref,  # S p
  a_ref,  # D p
  d_h_ref,  # D p
  d_bias_in_ref,  # D, of this program alone
  d_bias_out_ref,  # S
  *,
  tokens,
  channels,
  hidden,
):
  """Goes back as far as the layer norm; the letter d_ is for a cotangent."""
  dtype = turned_in_ref.dtype
  channels -= pl.program_id(1) * x_ref.shape[1]  # from here on
  here = _here(x_ref.shape, tokens, channels)
  x = plgpu.load(x_ref, mask=here, other=0.0).astype(jnp.float32)
  y = _norm(x, mean_ref, deviation_ref, scale_ref, shift_ref).astype(dtype)
  d_out = plgpu.load(cotangent_ref, mask=here, other=0.0)
  d_out = kept_ref[0] * d_out.astype(jnp.float32)
  d_bias_out_ref[...] = d_out.sum(axis=1)
  d_out = d_out.astype(dtype)
  plgpu.store(y_ref, y, mask=here)
  plgpu.store(d_out_ref, d_out, mask=here)

  def add(part, d_y):
    h = product(turned_in_ref[part, :], y) + bias_in_ref[part][:, None]
    share, slope = share_and_slope(h)
    d_h = product(kernel_out_ref[part, :], d_out) * slope
    d_bias_in_ref[part] = d_h.sum(axis=1)
    d_h = d_h.astype(dtype)
    rows = _here(d_h.shape, hidden - part.start, channels)
    plgpu.store(a_ref.at[part, :], (h * share).astype(dtype), mask=rows)
    plgpu.store(d_h_ref.at[part, :], d_h, mask=rows)
    return d_y + product(kernel_in_ref[:, part], d_h)

  d_y = _for_each_part(len(bias_in_ref), add, x)
  plgpu.store(d_y_ref, d_y.astype(d_y_ref.dtype), mask=here)


def _norm(x, mean_ref, deviation_ref, scale_ref, shift_ref):
  """Layer norm of a program's tokens; zeros where there are no channels."""
  y = (x - mean_ref[...][:, None]) * deviation_ref[...][:, None]
  return y * scale_ref[...][None] + shift_ref[...][None]


def _here(shape, rows, channels):
  """Which of an array's rows and channels there are."""
  row, channel = (
    jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1)
  )
  return (row < rows) & (channel < channels)


def _for_each_part(hidden: int, add, like):
  """Sums in float32 over the hidden units, a program's part at a time."""
  size = like.shape[1]

  def step(k, total):
    return add(pl.ds(k * size, size), total)

  zeros = jnp.zeros(like.shape, jnp.float32)
  return jax.lax.fori_loop(0, hidden // size, step, zeros)
