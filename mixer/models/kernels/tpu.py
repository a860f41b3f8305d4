# SPDX-License-Identifier: Apache-2.0
"""Token mixing of a block as one kernel of TPUs.

An example's tokens are on the chip as a whole: going forward they are read and
written once. Going back, tokens and cotangent are read, everything else is
computed again (one product of five), and gradients of parameters are added up
over examples on the chip. TPU v3 has the kernels in float32 alone.

Letters in shape comments: n examples, s tokens, c channels, d hidden units.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mixer.models.kernels.common import Weights, mixing_weights, statistics
from mixer.models.layers import gelu_gate_and_grad
from mixer.models.mixer import MixerBlock

_LANES = 128  # a TPU's vectors are so wide
# Hidden units of an example that are worked on at once. The backward pass has
# five arrays of them in float32, a third of the 16 MB that a kernel may take.
_HIDDEN_AT_ONCE = 2**18


class TpuMixerBlock(MixerBlock, kw_only=True):
  """A Mixer block whose token mixing is one TPU kernel. Experimental."""

  def mix_tokens(self, x, keys):
    mask = self.drop_path_mask(keys, (), branch=0)  # n
    weights = mixing_weights(self.variables["params"], "token_mixing")
    x = mix_tokens(x, weights, mask, dtype=self.dtype)
    return checkpoint_name(x, "branch_0")


def mix_tokens(
  x: jax.Array,
  weights: Weights,
  kept: jax.Array | None = None,
  *,
  dtype: jnp.dtype | None = None,
) -> jax.Array:
  """Token mixing with its skip connection: x + kept * MLP(layer norm(x)).

  Args:
    x: n s c.
    weights: of the block's token mixing.
    kept: [n] factors of the branch, 0 where it is dropped; None for ones. It
      has no gradient.
    dtype: of the factors of products, which are added up in float32 as all
      else, and of what comes out; None for float32.

  Returns:
    n s c in `dtype`.
  """
  if kept is None:
    kept = jnp.ones(x.shape[0])
  dtype = jnp.dtype(dtype or jnp.float32)
  return _mix(x, weights, kept.astype(jnp.float32), dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _mix(x, weights, kept, dtype):
  return _on_platform(mix, x, weights, kept, dtype=dtype)


def _mix_forward(x, weights, kept, dtype):
  return _mix(x, weights, kept, dtype), (x, weights, kept)


def _mix_backward(dtype, residuals, cotangent):
  x, weights, kept = residuals
  dx, gradients = _on_platform(
    gradient, x, weights, kept, cotangent, dtype=dtype
  )
  return dx, gradients, jnp.zeros_like(kept)


_mix.defvjp(_mix_forward, _mix_backward)


def _on_platform(call, *arguments, dtype: jnp.dtype):
  """Decides where it is lowered: a program may be for devices elsewhere."""
  call = functools.partial(call, dtype=dtype)
  return jax.lax.platform_dependent(
    *arguments, cpu=functools.partial(call, interpret=True), tpu=call
  )


def mix(
  x: jax.Array,
  weights: Weights,
  kept: jax.Array,
  *,
  dtype: jnp.dtype,
  interpret: bool = False,
  channels: int | None = None,
) -> jax.Array:
  """See `mix_tokens`.

  Args:
    x, weights, kept, dtype: as there.
    interpret: runs on a CPU.
    channels: that are worked on at once, which divide c; None for as many as
      there is room for.
  """
  n, s, c = x.shape
  d = len(weights.b1)
  channels = channels or _channels_at_once(c, d)
  call = pl.pallas_call(
    functools.partial(_mix_kernel, channels=channels),
    out_shape=jax.ShapeDtypeStruct(x.shape, dtype),
    grid=(n,),
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      pl.BlockSpec((1, s, c), lambda i: (i, 0, 0)),
      *map(_whole, ((1, c), (1, c), (d, s), (d, 1), (s, d), (s, 1))),
    ],
    out_specs=pl.BlockSpec((1, s, c), lambda i: (i, 0, 0)),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    cost_estimate=_cost(x, dtype, d, products=2, passes=2),
    interpret=interpret,
    name="mix_tokens",
  )
  return call(
    kept,
    x,
    weights.gamma[None],
    weights.beta[None],
    # Turned here once, and not for each example.
    weights.w1.T.astype(dtype),
    weights.b1[:, None],
    weights.w2.T.astype(dtype),
    weights.b2[:, None],
  )


def gradient(
  x: jax.Array,
  weights: Weights,
  kept: jax.Array,
  cotangent: jax.Array,
  *,
  dtype: jnp.dtype,
  interpret: bool = False,
  channels: int | None = None,
) -> tuple[jax.Array, Weights]:
  """Gradients of x, as it is, and of the weights, of what `mix` leaves."""
  n, s, c = x.shape
  d = len(weights.b1)
  channels = channels or _channels_at_once(c, d)
  # Each of v4's two cores has sums of its own.
  parts = math.gcd(n, 2)
  each = n // parts
  of_example = pl.BlockSpec((1, s, c), lambda p, i: (p * each + i, 0, 0))
  sums = ((1, c), (1, c), (s, d), (d, 1), (d, s), (s, 1))
  call = pl.pallas_call(
    functools.partial(_gradient_kernel, channels=channels),
    out_shape=[
      jax.ShapeDtypeStruct(x.shape, x.dtype),
      *(jax.ShapeDtypeStruct((parts, *of), jnp.float32) for of in sums),
    ],
    grid=(parts, each),
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      of_example,
      of_example,
      *map(_whole, ((1, c), (1, c), (d, s), (s, d), (d, 1), (d, s))),
    ],
    out_specs=[
      of_example,
      *(pl.BlockSpec((1, *of), lambda p, i: (p, 0, 0)) for of in sums),
    ],
    scratch_shapes=[pltpu.VMEM((s, c), jnp.float32)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary")
    ),
    cost_estimate=_cost(x, dtype, d, products=5, passes=3),
    interpret=interpret,
    name="mix_tokens_gradient",
  )
  dx, *gradients = call(
    kept,
    x,
    cotangent,
    weights.gamma[None],
    weights.beta[None],
    weights.w1.T.astype(dtype),
    weights.w1.astype(dtype),
    weights.b1[:, None],
    weights.w2.astype(dtype),
  )
  gradients = Weights(
    *(
      gradient.sum(axis=0).reshape(weight.shape).astype(weight.dtype)
      for gradient, weight in zip(gradients, weights, strict=True)
    )
  )
  return dx, gradients


def _channels_at_once(channels: int, hidden: int) -> int:
  """The most that divide the channels, in whole vectors; else all of them."""
  fitting = [
    part
    for part in range(_LANES, channels + 1, _LANES)
    if channels % part == 0 and part * hidden <= _HIDDEN_AT_ONCE
  ]
  least = _LANES if channels % _LANES == 0 else channels
  return max(fitting, default=least)


def _mix_kernel(
  kept_ref,
  x_ref,  # 1 s c
  scale_ref,  # 1 c
  shift_ref,  # 1 c
  kernel_in_ref,  # d s
  bias_in_ref,  # d 1
  kernel_out_ref,  # s d
  bias_out_ref,  # s 1
  out_ref,  # 1 s c
  *,
  channels,
):
  """Mixes an example's tokens."""
  dtype = kernel_in_ref.dtype
  mean, deviation = statistics(x_ref[0])
  kept = kept_ref[pl.program_id(0)]
  for here in _slices(x_ref.shape[-1], channels):
    x = x_ref[0, :, here].astype(jnp.float32)
    y = (x - mean) * deviation * scale_ref[:, here] + shift_ref[:, here]
    h = _product(kernel_in_ref[...], y.astype(dtype)) + bias_in_ref[...]  # d c
    a = h * gelu_gate_and_grad(h)[0]
    y = _product(kernel_out_ref[...], a.astype(dtype)) + bias_out_ref[...]
    out_ref[0, :, here] = (x + kept * y).astype(out_ref.dtype)


def _gradient_kernel(
  kept_ref,
  x_ref,  # 1 s c
  cotangent_ref,  # 1 s c
  scale_ref,  # 1 c
  shift_ref,  # 1 c
  turned_in_ref,  # d s
  kernel_in_ref,  # s d
  bias_in_ref,  # d 1
  kernel_out_ref,  # d s
  dx_ref,  # 1 s c
  d_scale_ref,  # 1 1 c, as all that follow added up over examples
  d_shift_ref,  # 1 1 c
  d_kernel_in_ref,  # 1 s d
  d_bias_in_ref,  # 1 d 1
  d_kernel_out_ref,  # 1 d s
  d_bias_out_ref,  # 1 s 1
  d_normed_ref,  # s c
  *,
  channels,
):
  """Goes back through an example; the letter d_ is for a cotangent."""
  part, i = pl.program_id(0), pl.program_id(1)
  sums = (
    d_scale_ref,
    d_shift_ref,
    d_kernel_in_ref,
    d_bias_in_ref,
    d_kernel_out_ref,
    d_bias_out_ref,
  )

  @pl.when(i == 0)
  def _begin():
    for ref in sums:
      ref[...] = jnp.zeros_like(ref)

  dtype = kernel_in_ref.dtype
  mean, deviation = statistics(x_ref[0])
  kept = kept_ref[part * pl.num_programs(1) + i]
  sum_d = sum_product = jnp.zeros_like(mean)  # s 1
  for here in _slices(x_ref.shape[-1], channels):
    normed = (x_ref[0, :, here].astype(jnp.float32) - mean) * deviation
    y = (normed * scale_ref[:, here] + shift_ref[:, here]).astype(dtype)
    h = _product(turned_in_ref[...], y) + bias_in_ref[...]  # d c
    share, slope = gelu_gate_and_grad(h)
    d_out = kept * cotangent_ref[0, :, here].astype(jnp.float32)  # s c
    d_bias_out_ref[0] += d_out.sum(axis=1, keepdims=True)
    d_out = d_out.astype(dtype)
    d_kernel_out_ref[0] += _product_turned((h * share).astype(dtype), d_out)
    d_h = _product(kernel_out_ref[...], d_out) * slope
    d_bias_in_ref[0] += d_h.sum(axis=1, keepdims=True)
    d_h = d_h.astype(dtype)
    d_kernel_in_ref[0] += _product_turned(y, d_h)
    d_y = _product(kernel_in_ref[...], d_h)  # s c
    d_scale_ref[0, :, here] += (d_y * normed).sum(axis=0, keepdims=True)
    d_shift_ref[0, :, here] += d_y.sum(axis=0, keepdims=True)
    d_normed = d_y * scale_ref[:, here]
    sum_d += d_normed.sum(axis=1, keepdims=True)
    sum_product += (d_normed * normed).sum(axis=1, keepdims=True)
    d_normed_ref[:, here] = d_normed

  c = x_ref.shape[-1]
  for here in _slices(c, channels):
    normed = (x_ref[0, :, here].astype(jnp.float32) - mean) * deviation
    dx = d_normed_ref[:, here] - (sum_d + normed * sum_product) / c
    dx = cotangent_ref[0, :, here].astype(jnp.float32) + dx * deviation
    dx_ref[0, :, here] = dx.astype(dx_ref.dtype)


def _product(a, b):
  """a times b, in float32."""
  return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _product_turned(a, b):
  """a times b turned."""
  return jax.lax.dot_general(
    a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )


def _slices(channels: int, at_once: int) -> list[slice]:
  return [slice(at, at + at_once) for at in range(0, channels, at_once)]


def _whole(shape: tuple[int, int]) -> pl.BlockSpec:
  """The same for every example, so that it is fetched once."""
  return pl.BlockSpec(shape, lambda *_: (0, 0))


def _cost(x, dtype, hidden: int, *, products: int, passes: int):
  """What XLA is told of a kernel, into which it does not look."""
  n, s, c = x.shape
  return pl.CostEstimate(
    flops=2 * products * n * s * c * hidden,
    transcendentals=n * c * hidden,
    bytes_accessed=passes * x.size * dtype.itemsize,
  )
