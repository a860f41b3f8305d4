# SPDX-License-Identifier: Apache-2.0
"""Fused kernels for a Mixer block, and the choice between them and its layers.

`gpu`: layer norm, and bias with GELU, are kernels; products are the library's.
`triton` has the kernels of the GPUs in `FASTER_ON`, where they are faster than
the compiled layers (benchmarks/NOTES.md), and the default. `mosaic` has the
same for the backend that replaces Pallas' Triton; unmeasured, hence chosen only
by "fused", and only where jax has no Triton.

`tpu`: experimental, never measured on hardware, and never the default. All of
token mixing is one kernel. On a CPU it runs in Pallas' interpret mode, which is
a check, and slow.

The kernels are subclasses of `MixerBlock`, imported when they are selected.

Letters in shape comments: n examples, s tokens, c channels, d hidden units.
"""

import contextlib
import functools
import importlib.util
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from flax import linen as nn

from mixer.models.layers import gelu_gate_logit

KERNELS = ("auto", "plain", "fused")
# Prefixes of a device's kind. Measured on an H200; an H100 is the same chip
# with slower memory, which the kernels use less of.
FASTER_ON = ("NVIDIA H100", "NVIDIA H200")
_GPUS = ("gpu", "cuda", "rocm")

_targets: list[jax.Device] = []


@contextlib.contextmanager
def target_device(device: jax.Device) -> Iterator[None]:
  """Selects kernels for a device that may be absent from this machine.

  Make the function to compile inside this context: jax.jit does not trace the
  same function twice.
  """
  # Pallas asks this mesh for the device, where there is none of its platform.
  kind = jax.sharding.AbstractDevice(device.device_kind, None, device.platform)
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=kind)
  _targets.append(device)
  try:
    with jax.sharding.use_abstract_mesh(mesh):
      yield
  finally:
    _targets.pop()


def plain_model(model: nn.Module) -> nn.Module:
  """Returns the model with layers in place of kernels."""
  if hasattr(model, "kernels"):
    return model.clone(kernels="plain")
  return model


def select_block(model: nn.Module, plain: type[nn.Module]) -> type[nn.Module]:
  """Returns the class of a Mixer's blocks on this machine's devices.

  Parameters are always made by the plain class, so that their names and values
  are the same everywhere.

  Args:
    model: bound; its fields kernels, gelu and dropout decide.
    plain: `MixerBlock`.

  Raises:
    ValueError: from `select_kernels`.
  """
  kind = select_kernels(model.kernels, gelu=model.gelu, dropout=model.dropout)
  if kind == "plain" or model.is_initializing():
    return plain
  # The kernels subclass the block whose module calls this function.
  if kind == "gpu":
    from mixer.models.kernels.gpu import GpuMixerBlock

    return GpuMixerBlock
  from mixer.models.kernels.tpu import TpuMixerBlock

  return TpuMixerBlock


def select_kernels(kind: str, *, gelu: str, dropout: float) -> str:
  """Resolves an option `kernels` for this machine's devices.

  Args:
    kind: "plain" for layers, "fused" for kernels on any device,
      "auto" for kernels on the GPUs in `FASTER_ON`.
    gelu: of the model; kernels require "tanh".
    dropout: of the model; kernels require 0.

  Returns:
    "plain", "gpu" or "tpu".

  Raises:
    ValueError: "fused" with another GELU or with dropout.
  """
  assert kind in KERNELS
  problems = []
  if gelu != "tanh":
    problems.append(f"gelu={gelu!r}")
  if dropout:
    problems.append(f"dropout={dropout}")
  if kind == "fused" and problems:
    raise ValueError(
      "kernels='fused' is for gelu='tanh' and dropout=0.0, and not for "
      f"{' or '.join(problems)}: take kernels='plain'."
    )
  if kind == "plain" or problems:
    return "plain"
  device = _targets[-1] if _targets else jax.local_devices()[0]
  if kind == "fused":
    return "gpu" if device.platform in _GPUS else "tpu"
  is_faster = device.device_kind.startswith(FASTER_ON) and has_triton()
  return "gpu" if is_faster else "plain"


@functools.cache
def has_triton() -> bool:
  if importlib.util.find_spec("jax.experimental.pallas.triton"):
    return True
  logging.info(
    "This jax has no Triton, which the measured kernels need: layers run in "
    "their place. config.model.kernels=fused takes kernels of Mosaic GPU."
  )
  return False


_EPSILON = 1e-6  # of Flax's layer norm
# Published names, by the name of the MLP.
_NORMS = {"token_mixing": "LayerNorm_0", "channel_mixing": "LayerNorm_1"}


class Weights(NamedTuple):
  """Parameters of one branch of a block, or their gradients.

  f is the mixed axis: s in token mixing, c in channel mixing.
  """

  gamma: jax.Array  # c
  beta: jax.Array  # c
  w1: jax.Array  # f d
  b1: jax.Array  # d
  w2: jax.Array  # d f
  b2: jax.Array  # f


def mixing_weights(params: dict, mixing: str) -> Weights:
  """Selects a branch's weights.

  Args:
    params: of the block.
    mixing: "token_mixing" or "channel_mixing".
  """
  norm, mlp = params[_NORMS[mixing]], params[mixing]
  first, second = mlp["Dense_0"], mlp["Dense_1"]
  return Weights(
    norm["scale"],
    norm["bias"],
    first["kernel"],
    first["bias"],
    second["kernel"],
    second["bias"],
  )


def statistics(
  x: jax.Array, channels: int | None = None, keepdims: bool = True
) -> tuple[jax.Array, jax.Array]:
  """Returns each token's mean and reciprocal standard deviation, as Flax does.

  Args:
    x: ... s c.
    channels: number of channels that are not padding (zeros); None for all.
    keepdims: keeps the last axis.

  Returns:
    Two float32 arrays, ... s 1.
  """
  x = x.astype(jnp.float32)
  channels = channels or x.shape[-1]
  mean, square = (
    y.sum(axis=-1, keepdims=keepdims) / channels for y in (x, x * x)
  )
  variance = jnp.maximum(square - mean * mean, 0.0)
  return mean, jax.lax.rsqrt(variance + _EPSILON)


def gelu_gate(x: jax.Array) -> jax.Array:
  """Returns the gate of x, GELU(x) = x * gate; 0 where the power overflows."""
  power = -math.log2(math.e) * gelu_gate_logit(x)
  root = jax.lax.rsqrt(1 + jnp.exp2(power))
  return root * root  # division takes more instructions
