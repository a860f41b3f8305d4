# SPDX-License-Identifier: Apache-2.0
"""From what the compiler says to memory, seconds of a step, hours of a run."""

import dataclasses

from ml_collections import ConfigDict

from mixer.plan import Plan
from mixer.tools.paper.numbers import TABLE_3
from mixer.tools.preflight.compiler import Program
from mixer.tools.preflight.roofline import Roofline, roofline
from mixer.tools.preflight.topology import Topology

SECONDS_PER_DAY = 86_400.0
_DATA = {"i1k": "imagenet2012", "i21k": "imagenet21k"}
# Of pre-training on TPUv3, table 3; the authors' extrapolations from runs on
# JFT-300M.
PAPER_CORE_DAYS = {
  (_DATA[row.data], row.model, row.epochs): 1_000 * row.thousand_core_days
  for row in TABLE_3
  if row.data in _DATA
}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What a recipe comes to on a machine, in SI units.

  model_flops: of one image, forward and backward; 2 for a multiply-add.
  flops, bytes_moved: of a step per device, all micro-batches.
  roofline: the least time of a step.
  compiler_seconds: the compiler's own estimate of a step, None if senseless.
  """

  topology: Topology
  batch: int
  per_device: int
  accumulation: int
  total_steps: int
  model_flops: float
  flops: float
  bytes_moved: float
  roofline: Roofline
  compiler_seconds: float | None

  @property
  def step_seconds(self) -> float:
    """The compiler's where it gives one and it is possible at all."""
    return max(self.roofline.step, self.compiler_seconds or 0.0)

  @property
  def images_per_second(self) -> float:
    return self.batch / self.step_seconds

  @property
  def run_seconds(self) -> float:
    return self.total_steps * self.step_seconds

  @property
  def chip_days(self) -> float:
    return self.topology.chips * self.run_seconds / SECONDS_PER_DAY

  @property
  def utilisation(self) -> float:
    """Share of the peak that the model's own arithmetic makes up."""
    peak = self.topology.chips * self.topology.chip.flops
    return self.images_per_second * self.model_flops / peak


def estimate(
  plan: Plan,
  topology: Topology,
  program: Program,
  *,
  compiled_for: Topology | None = None,
) -> Estimate:
  """Of a plan whose update was compiled.

  Args:
    plan: for the devices of `topology`.
    topology: what is asked about.
    program: the update.
    compiled_for: if another machine, whose seconds say nothing.
  """
  parts = plan.data.accumulation
  # The compiler counts the body of a loop once. Products are all inside.
  traffic = program.traffic
  moved = traffic.outside + parts * traffic.inside
  model_flops = 6.0 * plan.model.multiply_accumulates
  flops = program.flops
  if flops is None:
    # Without what the backward pass computes again.
    flops = model_flops * plan.data.per_device
  flops *= parts
  least = roofline(
    topology,
    flops=flops,
    bytes_moved=moved,
    collectives=program.collectives,
  )
  seconds = program.seconds
  if compiled_for not in (None, topology):
    seconds = None
  if parts > 1 and seconds is not None:
    # The optimizer, outside the loop, waits for memory alone.
    chip = topology.chip
    outside = traffic.outside / (chip.bandwidth / chip.devices)
    seconds = repeat(seconds, outside, parts)
  if seconds is not None and seconds < max(least.compute, least.memory) / 2:
    seconds = None
  return Estimate(
    topology=topology,
    batch=plan.config.batch,
    per_device=plan.data.per_device,
    accumulation=parts,
    total_steps=plan.schedule.total_steps,
    model_flops=model_flops,
    flops=flops,
    bytes_moved=moved,
    roofline=least,
    compiler_seconds=seconds,
  )


def repeat(once: float, outside: float, times: int) -> float:
  """A loop's whole, of a total that counts its body once."""
  return outside + times * max(0.0, once - outside)


def paper_core_days(config: ConfigDict, epochs: float) -> float | None:
  """What the paper gives for the recipe; None where it is not the paper's."""
  name = config.data.name.partition("/")[0]
  return PAPER_CORE_DAYS.get((name, config.model.name, round(epochs)))
