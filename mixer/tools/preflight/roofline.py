# SPDX-License-Identifier: Apache-2.0
"""Seconds of a step and hours of a run, from counts and published peaks."""

import dataclasses
from collections.abc import Iterable

from mixer.plan import Plan
from mixer.tools.paper.numbers import TABLE_3
from mixer.tools.preflight.compiler import CompiledProgram
from mixer.tools.preflight.hlo import Collective
from mixer.tools.preflight.topology import Topology

SECONDS_PER_DAY = 86_400.0
_DATA = {"i1k": "imagenet2012", "i21k": "imagenet21k"}
# TPUv3 core-days of pre-training by (data set, model, epochs): table 3. The
# authors extrapolated them from runs on JFT-300M.
PAPER_CORE_DAYS = {
  (_DATA[row.data], row.model, row.epochs): 1_000 * row.thousand_core_days
  for row in TABLE_3
  if row.data in _DATA
}


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Least seconds of a step.

  compute: matrix products at the peak FLOP/s.
  memory: HBM traffic at the peak bandwidth; overlaps with compute.
  communication: collectives at the links' peak; assumed not to overlap.
  """

  compute: float
  memory: float
  communication: float

  @property
  def step(self) -> float:
    return max(self.compute, self.memory) + self.communication

  @property
  def limit(self) -> str:
    """Name of the part that takes the most time."""
    parts = dataclasses.asdict(self)
    return max(parts, key=parts.get)


def roofline(
  topology: Topology,
  *,
  flops: float,
  bytes_moved: float,
  collectives: Iterable[Collective],
) -> Roofline:
  """Returns the roofline of a step, given its work per device."""
  chip = topology.chip
  return Roofline(
    compute=flops / (chip.flops / chip.devices),
    memory=bytes_moved / (chip.bandwidth / chip.devices),
    communication=sum(send_time(each, topology) for each in collectives),
  )


def send_time(collective: Collective, topology: Topology) -> float:
  """Returns the seconds of one collective.

  In a ring of n chips, each sends (n - 1) / n of the array, twice for an
  all-reduce. The devices of one chip reduce among themselves first.
  """
  chip = topology.chip
  if topology.chips == 1:
    return 0.0
  if collective.kind == "collective-permute":  # to one neighbour
    links = 2 * chip.axes or 1  # a switch gives one peer all of them
    return collective.bytes / (chip.interconnect / links)
  trips = 2 if collective.kind == "all-reduce" else 1
  # Chips of one ring: a TPU's slice, or the GPUs of a host.
  inside = topology.chips
  if not chip.is_tpu:
    inside = min(inside, chip.per_host)
  speed = chip.interconnect * topology.links_used
  seconds = trips * collective.bytes * (inside - 1) / inside / speed
  if topology.chips > inside:
    # Between hosts, each GPU sends its share of the host's sum.
    hosts, share = topology.hosts, collective.bytes / inside
    seconds += trips * share * (hosts - 1) / hosts / chip.network
  return seconds


def estimate(
  plan: Plan,
  topology: Topology,
  program: CompiledProgram,
  *,
  is_proxy: bool = False,
) -> dict:
  """Returns the cost of a plan by its compiled update, in SI units.

  "flops" and "bytes_moved" are of one step per device, all micro-batches
  together; of FLOPs, a multiply-add is two. "compiler_seconds", the compiler's
  own estimate of a step, is None without a plausible one, or of a proxy.
  """
  parts, chip = plan.data.accumulation, topology.chip
  # The compiler counts the loop over micro-batches, with all products, once.
  traffic = program.traffic
  bytes_moved = traffic.outside + parts * traffic.inside
  model_flops = 6.0 * plan.model.multiply_accumulates
  flops = program.flops
  if flops is None:
    # Excludes the forward pass that rematerialisation computes again.
    flops = model_flops * plan.data.per_device
  flops *= parts
  least = roofline(
    topology,
    flops=flops,
    bytes_moved=bytes_moved,
    collectives=program.collectives,
  )
  seconds = None if is_proxy else program.seconds
  if parts > 1 and seconds is not None:
    # The optimizer, outside the loop, is bound by HBM.
    outside = traffic.outside / (chip.bandwidth / chip.devices)
    seconds = outside + parts * max(0.0, seconds - outside)
  if seconds is not None and seconds < max(least.compute, least.memory) / 2:
    seconds = None  # impossible
  step_seconds = max(least.step, seconds or 0.0)
  images_per_second = plan.config.batch / step_seconds
  run_seconds = plan.schedule.total_steps * step_seconds
  peak = topology.chips * chip.flops
  return {
    "model_flops_per_image": model_flops,
    "flops": flops,
    "bytes_moved": bytes_moved,
    "roofline": dataclasses.asdict(least)
    | {"step": least.step, "limit": least.limit},
    "compiler_seconds": seconds,
    "step_seconds": step_seconds,
    "images_per_second": images_per_second,
    "model_flops_utilisation": images_per_second * model_flops / peak,
    "run_seconds": run_seconds,
    "chip_days": topology.chips * run_seconds / SECONDS_PER_DAY,
    "device_seconds": run_seconds * topology.devices,
  }


def paper_core_days(plan: Plan) -> float | None:
  """Returns the paper's TPUv3 core-days; None if the recipe is not its own."""
  data = plan.config.data
  if not data.examples:
    return None
  epochs = plan.schedule.total_steps * plan.config.batch / data.examples
  name = data.name.partition("/")[0]
  return PAPER_CORE_DAYS.get((name, plan.config.model.name, round(epochs)))
