# SPDX-License-Identifier: Apache-2.0
"""Seconds of a step and hours of a run, from counts and published peaks."""

import dataclasses
from collections.abc import Iterable

from mixer.models.flops import count_params, product_bytes
from mixer.models.kernels import FASTER_ON
from mixer.plan import Plan
from mixer.tools.paper.numbers import TABLE_3
from mixer.tools.preflight.compiler import CompiledProgram
from mixer.tools.preflight.hlo import Collective
from mixer.tools.preflight.topology import Topology, machines_of

SECONDS_PER_DAY = 86_400.0
# Known runs took so many times the least time of `find_machines`
# (benchmarks/NOTES.md).
SLOWDOWN = 1.7, 2.4
# HBM traffic without a compiler, by what compiled programs move: per parameter
# ten passes over float32, for gradients and Adam; and the arrays of the forward
# pass's products so many times: GPUs fuse less, most where our kernels are off.
STATE_BYTES = 40
PASSES_TPU, PASSES_KERNELS, PASSES_GPU = 3.0, 6.6, 9.5
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
  all-reduce. The devices of one chip reduce among themselves first; then chips
  that links join, slices or hosts; then each chip sends its share of that sum
  over the network.
  """
  chip, linked = topology.chip, topology.linked
  groups = topology.chips // linked
  if collective.kind == "collective-permute":  # to one neighbour
    links = 2 * chip.axes or 1  # a switch gives one peer all of them
    speed = chip.network if groups > 1 else chip.interconnect / links
    return collective.bytes / speed if topology.chips > 1 else 0.0
  trips = 2 if collective.kind == "all-reduce" else 1
  seconds = 0.0
  if linked > 1:
    speed = chip.interconnect * topology.links_used
    seconds += trips * collective.bytes * (linked - 1) / linked / speed
  if groups > 1:
    share = collective.bytes / linked
    seconds += trips * share * (groups - 1) / groups / chip.network
  return seconds


def estimate(plan: Plan, topology: Topology, program: CompiledProgram) -> dict:
  """Returns the cost of a plan by its compiled update, in SI units.

  "flops" and "bytes_moved" are of one step per device, all micro-batches
  together; of FLOPs, a multiply-add is two. "compiler_seconds", the compiler's
  own estimate of a step, is None without a plausible one.
  """
  parts, chip = plan.data.accumulation, topology.chip
  # The compiler counts the loop over micro-batches, with all products, once.
  traffic = program.traffic
  bytes_moved = traffic.outside + parts * traffic.inside
  model_flops = float(plan.flops_per_image)
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
  seconds = program.seconds
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


def find_machines(plan: Plan, kinds: Iterable[str], within: float) -> dict:
  """Finds machines that may end a run in time, by roofline, uncompiled.

  A step's FLOPs are the model's own; one all-reduce sums its gradients.

  Args:
    plan: of the recipe, for any number of devices.
    kinds: names of chips.
    within: seconds of the run.

  Returns:
    The run and its "machines": of each kind up to four that may end in time,
    the smallest first, or else the fastest. The "seconds" on each are the least
    and the most by SLOWDOWN. "fits" if one may end in time. "undivided" counts
    machines that are left out, as their devices do not divide the batch.
  """
  model, batch = plan.model, plan.config.batch
  parameters = count_params(model.abstract_params)
  arrays = product_bytes(model.module, plan.data.image_size)
  group = plan.config.sam.images if plan.config.sam.rho else 1

  def row(machine: Topology) -> dict:
    images = batch // machine.devices
    passes = PASSES_TPU if machine.chip.is_tpu else PASSES_GPU
    if machine.chip.kinds[0].startswith(tuple(map(str.lower, FASTER_ON))):
      passes = PASSES_KERNELS
    least = roofline(
      machine,
      flops=float(plan.flops_per_image) * images,
      bytes_moved=plan.gradients * passes * arrays * images
      + STATE_BYTES * parameters,
      collectives=[Collective("all-reduce", 4 * parameters)],
    )
    seconds = plan.schedule.total_steps * least.step
    return {
      "topology": machine.name,
      "chips": machine.chips,
      "images": images,
      "limit": least.limit,
      "seconds": [factor * seconds for factor in SLOWDOWN],
    }

  machines, undivided = [], 0
  for kind in kinds:
    every = machines_of(kind)
    rows = [row(each) for each in every if batch % (group * each.devices) == 0]
    undivided += len(every) - len(rows)
    in_time = [each for each in rows if each["seconds"][0] <= within]
    fastest = sorted(rows, key=lambda each: each["seconds"][0])[:1]
    machines += in_time[:4] or fastest
  return {
    "model": plan.config.model.name,
    "total_steps": plan.schedule.total_steps,
    "batch": batch,
    "within": within,
    "fits": any(each["seconds"][0] <= within for each in machines),
    "machines": machines,
    "undivided": undivided,
  }


def paper_core_days(plan: Plan) -> float | None:
  """Returns the paper's TPUv3 core-days; None if the recipe is not its own."""
  data = plan.config.data
  if not data.examples or plan.config.sam.rho:
    return None
  epochs = plan.schedule.total_steps * plan.config.batch / data.examples
  name = data.name.partition("/")[0]
  return PAPER_CORE_DAYS.get((name, plan.config.model.name, round(epochs)))
