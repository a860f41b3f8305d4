# SPDX-License-Identifier: Apache-2.0
"""Token mixing for TPUs as one fused kernel. Experimental.

Never measured on hardware: checked in interpret mode and by compiling for TPUs.
An example's tokens fit in VMEM as a whole: the forward pass reads and writes
them once. The backward pass reads tokens and cotangent, recomputes everything
else (one product of five), and sums parameter gradients over examples in VMEM.
On TPU v3 the kernels compile only in float32.

Letters in shape comments: n examples, s tokens, c channels, d hidden units.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mixer.models.kernels import Weights, mixing_weights, statistics
from mixer.models.layers import freeze_shift, gelu_gate_and_grad
from mixer.models.mixer import MixerBlock

_LANES = 128  # width of a TPU's vectors
# Hidden units of an example computed at once. The backward pass has five such
# arrays in float32, a third of the 16 MB of VMEM that a kernel may use.
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
  mask: jax.Array | None = None,
  *,
  dtype: jnp.dtype | None = None,
) -> jax.Array:
  """Computes token mixing with its skip connection: x + mask * MLP(norm(x)).

  Args:
    x: n s c.
    weights: of the block's token mixing.
    mask: [n] drop-path factors of the branch; None for ones. Its gradient is
      zero.
    dtype: of the products' factors and of the output; everything else is
      float32. None for float32.

  Returns:
    n s c in `dtype`.
  """
  if mask is None:
    mask = jnp.ones(x.shape[0])
  dtype = jnp.dtype(dtype or jnp.float32)
  weights = weights._replace(b2=freeze_shift(weights.b2, dtype))
  return _mix(x, weights, mask.astype(jnp.float32), dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _mix(x, weights, mask, dtype):
  return _on_platform(mix, x, weights, mask, dtype=dtype)


def _mix_forward(x, weights, mask, dtype):
  return _mix(x, weights, mask, dtype), (x, weights, mask)


def _mix_backward(dtype, residuals, cotangent):
  x, weights, mask = residuals
  dx, gradients = _on_platform(
    gradient, x, weights, mask, cotangent, dtype=dtype
  )
  return dx, gradients, jnp.zeros_like(mask)


_mix.defvjp(_mix_forward, _mix_backward)


def _on_platform(call, *arguments, dtype: jnp.dtype):
  """Interprets on CPUs; decided at lowering, since the target may be absent."""
  call = functools.partial(call, dtype=dtype)
  return jax.lax.platform_dependent(
    *arguments, cpu=functools.partial(call, interpret=True), tpu=call
  )


def mix(
  x: jax.Array,
  weights: Weights,
  mask: jax.Array,
  *,
  dtype: jnp.dtype,
  interpret: bool = False,
  channels: int | None = None,
) -> jax.Array:
  """Calls the forward kernel; see `mix_tokens`.

  Args:
    x, weights, mask, dtype: as in `mix_tokens`.
    interpret: runs on a CPU.
    channels: number computed at once, a divisor of c; None for as many as fit.
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
    mask,
    x,
    weights.gamma[None],
    weights.beta[None],
    # Transposed here once, not for each example.
    weights.w1.T.astype(dtype),
    weights.b1[:, None],
    weights.w2.T.astype(dtype),
    weights.b2[:, None],
  )


def gradient(
  x: jax.Array,
  weights: Weights,
  mask: jax.Array,
  cotangent: jax.Array,
  *,
  dtype: jnp.dtype,
  interpret: bool = False,
  channels: int | None = None,
) -> tuple[jax.Array, Weights]:
  """Returns the gradients of `mix` for x, in its dtype, and the weights."""
  n, s, c = x.shape
  d = len(weights.b1)
  channels = channels or _channels_at_once(c, d)
  # Separate sums for each of v4's two cores.
  parts = math.gcd(n, 2)
  each = n // parts
  example_spec = pl.BlockSpec((1, s, c), lambda p, i: (p * each + i, 0, 0))
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
      example_spec,
      example_spec,
      *map(_whole, ((1, c), (1, c), (d, s), (s, d), (d, 1), (d, s))),
    ],
    out_specs=[
      example_spec,
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
    mask,
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
  """Returns the largest divisor in whole vectors that fits; else all."""
  fitting = [
    part
    for part in range(_LANES, channels + 1, _LANES)
    if channels % part == 0 and part * hidden <= _HIDDEN_AT_ONCE
  ]
  least = _LANES if channels % _LANES == 0 else channels
  return max(fitting, default=least)


def _mix_kernel(
  mask_ref,
  x_ref,  # 1 s c
  gamma_ref,  # 1 c
  beta_ref,  # 1 c
  w1_ref,  # d s
  b1_ref,  # d 1
  w2_ref,  # s d
  b2_ref,  # s 1
  out_ref,  # 1 s c
  *,
  channels,
):
  """Mixes the tokens of one example."""
  dtype = w1_ref.dtype
  mean, deviation = statistics(x_ref[0])
  mask = mask_ref[pl.program_id(0)]
  for at in _slices(x_ref.shape[-1], channels):
    x = x_ref[0, :, at].astype(jnp.float32)
    y = (x - mean) * deviation * gamma_ref[:, at] + beta_ref[:, at]
    h = _product(w1_ref[...], y.astype(dtype)) + b1_ref[...]  # d c
    a = h * gelu_gate_and_grad(h)[0]
    y = _product(w2_ref[...], a.astype(dtype)) + b2_ref[...]
    out_ref[0, :, at] = (x + mask * y).astype(out_ref.dtype)


def _gradient_kernel(
  mask_ref,
  x_ref,  # 1 s c
  cotangent_ref,  # 1 s c
  gamma_ref,  # 1 c
  beta_ref,  # 1 c
  w1_t_ref,  # d s
  w1_ref,  # s d
  b1_ref,  # d 1
  w2_ref,  # d s
  dx_ref,  # 1 s c
  d_gamma_ref,  # 1 1 c; this and all below summed over examples
  d_beta_ref,  # 1 1 c
  d_w1_ref,  # 1 s d
  d_b1_ref,  # 1 d 1
  d_w2_ref,  # 1 d s
  d_b2_ref,  # 1 s 1
  d_normed_ref,  # s c
  *,
  channels,
):
  """Computes gradients for one example; d_ stands for a cotangent."""
  part, i = pl.program_id(0), pl.program_id(1)
  sums = (d_gamma_ref, d_beta_ref, d_w1_ref, d_b1_ref, d_w2_ref, d_b2_ref)

  @pl.when(i == 0)
  def _begin():
    for ref in sums:
      ref[...] = jnp.zeros_like(ref)

  dtype = w1_ref.dtype
  mean, deviation = statistics(x_ref[0])
  mask = mask_ref[part * pl.num_programs(1) + i]
  sum_d = sum_product = jnp.zeros_like(mean)  # s 1
  for at in _slices(x_ref.shape[-1], channels):
    normed = (x_ref[0, :, at].astype(jnp.float32) - mean) * deviation
    y = (normed * gamma_ref[:, at] + beta_ref[:, at]).astype(dtype)
    h = _product(w1_t_ref[...], y) + b1_ref[...]  # d c
    gate, slope = gelu_gate_and_grad(h)
    d_out = mask * cotangent_ref[0, :, at].astype(jnp.float32)  # s c
    d_b2_ref[0] += d_out.sum(axis=1, keepdims=True)
    d_out = d_out.astype(dtype)
    d_w2_ref[0] += _product_transposed((h * gate).astype(dtype), d_out)
    d_h = _product(w2_ref[...], d_out) * slope
    d_b1_ref[0] += d_h.sum(axis=1, keepdims=True)
    d_h = d_h.astype(dtype)
    d_w1_ref[0] += _product_transposed(y, d_h)
    d_y = _product(w1_ref[...], d_h)  # s c
    d_gamma_ref[0, :, at] += (d_y * normed).sum(axis=0, keepdims=True)
    d_beta_ref[0, :, at] += d_y.sum(axis=0, keepdims=True)
    d_normed = d_y * gamma_ref[:, at]
    sum_d += d_normed.sum(axis=1, keepdims=True)
    sum_product += (d_normed * normed).sum(axis=1, keepdims=True)
    d_normed_ref[:, at] = d_normed

  c = x_ref.shape[-1]
  for at in _slices(c, channels):
    normed = (x_ref[0, :, at].astype(jnp.float32) - mean) * deviation
    dx = d_normed_ref[:, at] - (sum_d + normed * sum_product) / c
    dx = cotangent_ref[0, :, at].astype(jnp.float32) + dx * deviation
    dx_ref[0, :, at] = dx.astype(dx_ref.dtype)


def _product(a, b):
  """Multiplies a by b, summing in float32."""
  return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _product_transposed(a, b):
  """Multiplies a by b transposed, summing in float32."""
  return jax.lax.dot_general(
    a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )


def _slices(channels: int, at_once: int) -> list[slice]:
  return [slice(i, i + at_once) for i in range(0, channels, at_once)]


def _whole(shape: tuple[int, int]) -> pl.BlockSpec:
  """Returns a spec with one block for all examples, fetched once."""
  return pl.BlockSpec(shape, lambda *_: (0, 0))


def _cost(x, dtype, hidden: int, *, products: int, passes: int):
  """Returns the cost estimate for XLA, which cannot look into a kernel."""
  n, s, c = x.shape
  return pl.CostEstimate(
    flops=2 * products * n * s * c * hidden,
    transcendentals=n * c * hidden,
    bytes_accessed=passes * x.size * dtype.itemsize,
  )
