# SPDX-License-Identifier: Apache-2.0
"""What share of the devices' peak a run makes use of."""

import jax

from mixer.chips import find_chip


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
  chip = find_chip(device.device_kind)
  if chip is None:
    return None
  return flops_per_second_per_device / (chip.flops / chip.devices)
