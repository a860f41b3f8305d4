# SPDX-License-Identifier: Apache-2.0
"""A step's time for any number of chips and images, from two compilations."""

import dataclasses
import math

from mixer.preflight.collectives import Collective
from mixer.preflight.roofline import Roofline, roofline
from mixer.preflight.topology import Topology


@dataclasses.dataclass(frozen=True)
class StepModel:
  """Of one recipe on one kind of chip, by jax device.

  flops_per_image: of the compiled step.
  traffic_fixed, traffic_per_image: bytes to and from memory.
  gradient_bytes: that devices sum.
  """

  flops_per_image: float
  traffic_fixed: float
  traffic_per_image: float
  gradient_bytes: int

  @classmethod
  def fit(cls, small: dict, large: dict) -> "StepModel":
    """Draws lines through two reports of `mixer.preflight.report.to_json`."""
    images = large["per_device"] - small["per_device"]
    moved = [each["estimate"]["bytes_moved"] for each in (small, large)]
    flops = [each["estimate"]["flops"] for each in (small, large)]
    per_image = (moved[1] - moved[0]) / images
    return cls(
      flops_per_image=(flops[1] - flops[0]) / images,
      traffic_fixed=moved[0] - small["per_device"] * per_image,
      traffic_per_image=per_image,
      gradient_bytes=sum(
        each["bytes"]
        for each in large["training"]["collectives"]
        if each["kind"] == "all-reduce"
      ),
    )

  def step(self, topology: Topology, images: float) -> Roofline:
    """With so many images per device."""
    return roofline(
      topology,
      flops=self.flops_per_image * images,
      bytes_moved=self.traffic_fixed + self.traffic_per_image * images,
      collectives=[Collective("all-reduce", self.gradient_bytes)],
    )

  def covering_images(self, topology: Topology, share: float) -> int:
    """The fewest images per device with which communication is at most a share.

    Of the time for compute and memory, that is; 1 where one image will do.
    """
    chip = topology.chip
    work = self.step(topology, 0).communication / share
    by_compute = work * (chip.flops / chip.devices) / self.flops_per_image
    bytes_left = work * chip.bandwidth / chip.devices - self.traffic_fixed
    by_memory = max(0.0, bytes_left) / self.traffic_per_image
    return max(1, math.ceil(min(by_compute, by_memory)))
