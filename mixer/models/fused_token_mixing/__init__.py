# SPDX-License-Identifier: Apache-2.0
"""Token mixing of a Mixer block as one kernel.

Layer norm, both products, GELU and the skip connection are computed while
tokens are on the chip, and nothing but the tokens is kept for the backward
pass. `tpu` and `gpu` say how, each for its kind of chip, and what their
backward passes write. Nothing of it has been measured on hardware
(benchmarks/NOTES.md), so that it is not the default. On a CPU the TPU's kernels
run in Pallas' interpret mode, which is a check, and slow.
"""

import functools

import jax
import jax.numpy as jnp

from mixer.models.fused_token_mixing import gpu, tpu
from mixer.models.fused_token_mixing.arithmetic import Weights, weights_of

__all__ = ["KINDS", "check_token_mixing", "mix_tokens", "weights_of"]

KINDS = ("plain", "fused")


def check_token_mixing(kind: str, *, gelu: str, dropout: float):
  """Raises ValueError if there is no such token mixing, or not with the rest.

  Args:
    kind: of `KINDS`.
    gelu, dropout: of the model.
  """
  if kind not in KINDS:
    raise ValueError(f"token_mixing={kind!r} is none of {', '.join(KINDS)}.")
  if kind == "plain":
    return
  problems = []
  if gelu != "tanh":
    problems.append(f"gelu={gelu!r}")
  if dropout:
    problems.append(f"dropout={dropout}")
  if problems:
    raise ValueError(
      "token_mixing='fused' is a kernel with gelu='tanh' and dropout=0.0, and "
      f"not for {' or '.join(problems)}: take token_mixing='plain'."
    )


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
    weights: of the block.
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
  return _on_platform("mix", x, weights, kept, dtype=dtype)


def _mix_forward(x, weights, kept, dtype):
  return _mix(x, weights, kept, dtype), (x, weights, kept)


def _mix_backward(dtype, residuals, cotangent):
  x, weights, kept = residuals
  dx, gradients = _on_platform(
    "gradient", x, weights, kept, cotangent, dtype=dtype
  )
  return dx, gradients, jnp.zeros_like(kept)


_mix.defvjp(_mix_forward, _mix_backward)


def _on_platform(name: str, *arguments, dtype: jnp.dtype):
  """Decides where it is lowered: a program may be for devices elsewhere."""

  def of(kernels, interpret=False):
    call = getattr(kernels, name)
    return functools.partial(call, dtype=dtype, interpret=interpret)

  return jax.lax.platform_dependent(
    *arguments,
    cpu=of(tpu, interpret=True),
    cuda=of(gpu),
    rocm=of(gpu),
    tpu=of(tpu),
  )
