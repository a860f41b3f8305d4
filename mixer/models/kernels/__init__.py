# SPDX-License-Identifier: Apache-2.0
"""What a Mixer block is computed by, in the place of its layers.

`gpu`: layer norm, and bias with GELU, are kernels of ours, and products the
library's. On the GPUs in `FASTER_ON` that is faster than the layers as they are
compiled (benchmarks/NOTES.md), and the default.

`tpu`: all of token mixing is one kernel. Nothing of it has been measured on
hardware, so that it is not the default. On a CPU it runs in Pallas' interpret
mode, which is a check, and slow.
"""

import contextlib
from collections.abc import Iterator

import jax
from flax import linen as nn

from mixer.models.kernels import gpu, tpu
from mixer.models.kernels.common import weights_of

__all__ = [
  "KINDS",
  "select_kernels",
  "target_device",
  "gpu",
  "tpu",
  "weights_of",
  "plain_model",
]

KINDS = ("auto", "plain", "fused")
# Beginnings of a device's kind. Measured on an H200; an H100 is the same chip
# with slower memory, of which the kernels need less.
FASTER_ON = ("NVIDIA H100", "NVIDIA H200")
_GPUS = ("gpu", "cuda", "rocm")

_elsewhere: list[jax.Device] = []


@contextlib.contextmanager
def target_device(device: jax.Device) -> Iterator[None]:
  """What is traced inside is for such a device, which need not be here.

  What jax.jit has traced before it does not trace again: make the function
  inside.
  """
  _elsewhere.append(device)
  try:
    yield
  finally:
    _elsewhere.pop()


def plain_model(model: nn.Module) -> nn.Module:
  """The model by its layers, whatever the devices are."""
  if hasattr(model, "kernels"):
    return model.clone(kernels="plain")
  return model


def select_kernels(kind: str, *, gelu: str, dropout: float) -> str:
  """What a block's branches are computed by on this machine's devices.

  Args:
    kind: of `KINDS`: "plain" for the layers, "fused" for kernels wherever they
      run, "auto" for kernels on the GPUs of `FASTER_ON`.
    gelu, dropout: of the model; kernels are for "tanh" and 0.

  Returns:
    "plain", "gpu" or "tpu".

  Raises:
    ValueError: there is no such kind, or not with the rest.
  """
  if kind not in KINDS:
    raise ValueError(f"kernels={kind!r} is none of {', '.join(KINDS)}.")
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
  device = _elsewhere[-1] if _elsewhere else jax.local_devices()[0]
  if kind == "fused":
    return "gpu" if device.platform in _GPUS else "tpu"
  return "gpu" if device.device_kind.startswith(FASTER_ON) else "plain"
