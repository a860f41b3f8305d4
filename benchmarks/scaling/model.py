# SPDX-License-Identifier: Apache-2.0
"""A step's time for any number of chips and images, from few compilations."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from mixer.tools.preflight.hlo import Collective
from mixer.tools.preflight.roofline import Roofline, roofline
from mixer.tools.preflight.topology import Topology


@dataclasses.dataclass(frozen=True)
class StepModel:
  """Of one recipe on one kind of chip, by jax device.

  flops_per_image: of the compiled step.
  images: of each compilation, rising.
  traffic: bytes to and from memory in each.
  gradient_bytes: that devices sum.
  """

  flops_per_image: float
  images: Sequence[int]
  traffic: Sequence[float]
  gradient_bytes: int

  @classmethod
  def of(cls, reports: Sequence[dict]) -> "StepModel":
    """Takes reports of `preflight.report.to_json`, with rising images."""
    largest = reports[-1]
    return cls(
      flops_per_image=largest["estimate"]["flops"] / largest["per_device"],
      images=[each["per_device"] for each in reports],
      traffic=[each["estimate"]["bytes_moved"] for each in reports],
      gradient_bytes=sum(
        each["bytes"]
        for each in largest["training"]["collectives"]
        if each["kind"] == "all-reduce"
      ),
    )

  def bytes_moved(self, images: float) -> float:
    """Between chip and memory, on straight lines through what was compiled.

    More than one line, because what few images leave behind stays on the chip.
    """
    if images > self.images[-1]:
      return self.traffic[-1] * images / self.images[-1]
    return float(np.interp(images, self.images, self.traffic))

  def step(self, topology: Topology, images: float) -> Roofline:
    """With so many images per device."""
    return roofline(
      topology,
      flops=self.flops_per_image * images,
      bytes_moved=self.bytes_moved(images),
      collectives=[Collective("all-reduce", self.gradient_bytes)],
    )

  def covering_images(self, topology: Topology, share: float) -> int:
    """The fewest images per device with which communication is at most a share.

    Of the time for compute and memory, that is; 1 where one image will do.
    """

    def covers(images: int) -> bool:
      step = self.step(topology, images)
      return step.communication <= share * max(step.compute, step.memory)

    return next(filter(covers, itertools.count(1)))
