# SPDX-License-Identifier: Apache-2.0
"""What the devices could do at most."""

import re

import jax

# Dense bfloat16 (float16 where a device has no bfloat16) multiply-adds with
# the vendor's clocks, in FLOP/s per jax device. The key is, in lower case, what
# `device.device_kind` says of a TPU, or how it begins for a GPU, where memory
# size and such follow; of several that fit, the longest counts.
# Google's data sheets state TPUs per chip; on v2 and v3 a jax device is one
# core, half a chip. NVIDIA's often state twice these figures: with sparsity.
PEAK_FLOPS_PER_SECOND = {
  "tpu v2": 45e12 / 2,  # Google Cloud, "System architecture", v2: 45 a chip
  "tpu v3": 123e12 / 2,  # Google Cloud, "TPU v3": 123 a chip
  "tpu v4": 275e12,  # Google Cloud, "TPU v4"
  "tpu v5 lite": 197e12,  # Google Cloud, "TPU v5e"
  "tpu v5e": 197e12,  # the same chip
  "tpu v5": 459e12,  # Google Cloud, "TPU v5p"; jax calls it "TPU v5"
  "tpu v5p": 459e12,  # the same chip
  "tpu v6 lite": 918e12,  # Google Cloud, "TPU v6e" (Trillium)
  "tpu v6e": 918e12,  # the same chip
  "tesla v100-sxm2": 125e12,  # NVIDIA V100 data sheet, SXM2; float16
  "tesla v100-pcie": 112e12,  # NVIDIA V100 data sheet, PCIe; float16
  "tesla t4": 65e12,  # NVIDIA T4 data sheet; float16
  "nvidia a100": 312e12,  # NVIDIA A100 data sheet, SXM and PCIe
  "nvidia h100": 989e12,  # NVIDIA H100 data sheet, SXM: "NVIDIA H100 80GB HBM3"
  "nvidia h100 pcie": 756e12,  # NVIDIA H100 data sheet, PCIe
  "nvidia h100 nvl": 835e12,  # NVIDIA H100 data sheet, NVL
  "nvidia h200": 989e12,  # NVIDIA H200 data sheet, SXM
  "nvidia l4": 121e12,  # NVIDIA L4 data sheet, half of 242 with sparsity
  "nvidia geforce rtx 3090": 71e12,  # NVIDIA GA102 white paper, appendix A
  "nvidia geforce rtx 4090": 165.2e12,  # NVIDIA Ada white paper, appendix A
}


def peak_flops_per_second(device: jax.Device) -> float | None:
  """Peak dense bfloat16 FLOP/s of one jax device; None if not known here."""
  kind = device.device_kind.lower()
  names = [
    name
    for name in PEAK_FLOPS_PER_SECOND
    if kind == name
    # "NVIDIA L40" is no "NVIDIA L4": a name must end where a word does.
    or (not name.startswith("tpu") and re.match(rf"{name}[ -]", kind))
  ]
  return PEAK_FLOPS_PER_SECOND[max(names, key=len)] if names else None


def model_flops_utilisation(
  flops_per_second_per_device: float, device: jax.Device
) -> float | None:
  """The share (0 to 1) of the peak that the model's own work makes up.

  Args:
    flops_per_second_per_device: what forward and backward pass need by
      arithmetic, 2 for a multiply-add, recomputation not counted.
    device: one of the devices, all of a kind.

  Returns:
    None for a device whose peak is not known, such as a CPU.
  """
  peak = peak_flops_per_second(device)
  return None if peak is None else flops_per_second_per_device / peak
