# SPDX-License-Identifier: Apache-2.0
"""Preflight: a recipe on a machine, from the compiler's word to a report."""

import dataclasses
from collections.abc import Iterator

from ml_collections import ConfigDict

from mixer.models import FAMILIES, family_of, flops
from mixer.models.kernels import target_device
from mixer.plan import Plan
from mixer.tools.preflight.compiler import (
  DoesNotFit,
  Program,
  check_installed,
  open_devices,
)
from mixer.tools.preflight.estimate import Estimate, estimate
from mixer.tools.preflight.gpu_compiler import can_compile_for
from mixer.tools.preflight.programs import (
  change,
  compile_evaluation,
  compile_training,
  plan_for,
)
from mixer.tools.preflight.suggestion import Suggestion, suggest
from mixer.tools.preflight.topology import Topology, parse
from mixer.training.nonfinite import DISPATCH_AHEAD

# Whose compiler judges memory in the place of a GPU's that is not here.
STAND_IN = "v5p:2x2x1"
# Where another batch is tried the length is of no concern, and must be valid.
_LENGTH = {
  "total_steps": 10_000_000,
  "total_epochs": None,
  "total_examples": None,
}


@dataclasses.dataclass(frozen=True)
class Sharded:
  """The same update with the state sharded over the devices.

  estimate: None where it does not fit.
  """

  training: Program | DoesNotFit
  estimate: Estimate | None


@dataclasses.dataclass(frozen=True)
class Report:
  """Everything that preflight finds.

  compiled_for: the machine itself, or the one in its place.
  training, evaluation: what the compiler made, or why it did not; evaluation
    is None without evaluators.
  suggestions: by "" or the config key that goes with it; empty if not asked.
  sharded: None if not asked, or if the recipe has it already.
  """

  plan: Plan
  topology: Topology
  compiled_for: Topology
  training: Program | DoesNotFit
  evaluation: Program | DoesNotFit | None
  estimate: Estimate | None
  suggestions: dict[str, Suggestion]
  sharded: Sharded | None = None

  @property
  def parameters(self) -> int:
    return flops.count_params(self.plan.model.abstract_params)

  @property
  def limit(self) -> float:
    chip = self.topology.chip
    return chip.program_memory / chip.devices

  @property
  def waiting(self) -> int:
    """Bytes per device of the batches that wait for their update.

    Those that are kept ready, and those of updates that are in flight.
    """
    height, width = self.plan.data.image_size
    image = height * width * self.plan.model.module.image_channels
    share = self.plan.config.batch // self.topology.devices
    return (self.plan.config.data.prefetch + DISPATCH_AHEAD) * share * image

  @property
  def training_peak(self) -> float:
    if isinstance(self.training, DoesNotFit):
      return self.training.needed
    return self.training.peak + self.waiting

  @property
  def evaluation_peak(self) -> float | None:
    """With the training's state and batches beside it."""
    if self.evaluation is None:
      return None
    if isinstance(self.evaluation, DoesNotFit):
      return self.evaluation.needed
    state = 0
    if isinstance(self.training, Program):
      # Whole parameters are those of the training, unless it has shares.
      same = 0 if self.plan.config.shard_state else 4 * self.parameters
      state = self.training.arguments - same + self.waiting
    return self.evaluation.peak + state

  @property
  def fits(self) -> bool:
    peak = max(self.training_peak, self.evaluation_peak or 0)
    refused = any(
      isinstance(program, DoesNotFit)
      for program in (self.training, self.evaluation)
    )
    return peak <= self.limit and not refused


def preflight(
  config: ConfigDict, topology_name: str, *, suggests: bool = False
) -> Report:
  """Compiles a run's programs for a machine.

  Args:
    config: from a recipe.
    topology_name: such as "v4:4x4x4" or "gpu:h200x8".
    suggests: also look for the most images at once that fit.

  Raises:
    UserError: a name or a config that is wrong, or no compiler.
  """
  topology = parse(topology_name)
  plan = plan_for(config, topology.devices)
  check_installed(topology)
  own = topology.chip.is_tpu or can_compile_for(topology.chip)
  target = topology if own else parse(STAND_IN)
  devices = open_devices(target)
  with target_device(devices[0]):
    # On the stand-in, as many images per device.
    target_plan = plan
    if target is not topology:
      target_plan = on_stand_in(plan, config, target)
    training = _or_refusal(compile_training, target_plan, devices)
    evaluation = None
    if plan.data.evals:
      evaluation = _or_refusal(compile_evaluation, target_plan, devices)
    estimated = None
    # The compiler counts a loop over blocks as one block.
    if isinstance(training, Program) and not config.model.scan:
      estimated = estimate(plan, topology, training, compiled_for=target)
    report = Report(
      plan, topology, target, training, evaluation, estimated, suggestions={}
    )
    if suggests:
      report = dataclasses.replace(
        report,
        suggestions=dict(_suggest(target_plan.config, target, devices, report)),
        sharded=_shard(target_plan.config, target, devices, report),
      )
    return report


def on_stand_in(plan: Plan, config: ConfigDict, target: Topology) -> Plan:
  """The plan with as many images per device on another number of devices."""

  def share(batch: int) -> int:
    return batch // plan.devices * target.devices

  batches = {
    f"evals__{name}__batch": share(options.batch)
    for name, options in plan.config.evals.items()
    if options.batch
  }
  changed = change(
    config,
    batch=share(plan.config.batch),
    accumulation=plan.data.accumulation,
    **batches,
    **_LENGTH,
  )
  return plan_for(changed, target.devices)


def _or_refusal(compile_it, plan: Plan, devices) -> Program | DoesNotFit:
  try:
    return compile_it(plan, devices)
  except DoesNotFit as refusal:
    return refusal


def remat_to_try(name: str, policy: str) -> list[str]:
  """A model's own policy, and those that keep less for the backward pass."""
  mixes = FAMILIES[family_of(name)].mixes_tokens
  less = ["token_mixing", "blocks"] if mixes else ["blocks"]
  if policy in less:
    return less[less.index(policy) :]
  return [policy, *less]


def _suggest(
  config: ConfigDict, target: Topology, devices: list, report: Report
) -> Iterator[tuple[str, Suggestion]]:
  share = report.plan.config.batch // report.topology.devices

  def peak_of(images: int, parts: int, remat: str) -> int:
    changed = change(
      config,
      batch=images * target.devices,
      accumulation=parts,
      model__remat=remat,
      **_LENGTH,
    )
    program = compile_training(plan_for(changed, target.devices), devices)
    return program.peak + report.waiting

  for remat in remat_to_try(config.model.name, config.model.remat):
    name = f"config.model.remat={remat}" if remat != config.model.remat else ""
    yield (
      name,
      suggest(
        lambda images, parts, remat=remat: peak_of(images, parts, remat),
        share=share,
        limit=report.limit,
      ),
    )


def _shard(
  config: ConfigDict, target: Topology, devices: list, report: Report
) -> Sharded | None:
  if config.shard_state or report.topology.devices == 1:
    return None
  if config.model.scan:  # neither's time is known
    return None
  if target is not report.topology:  # shares are of another number of devices
    return None
  changed = change(config, shard_state=True)
  training = _or_refusal(
    compile_training, plan_for(changed, target.devices), devices
  )
  if isinstance(training, DoesNotFit):
    return Sharded(training, None)
  return Sharded(training, estimate(report.plan, report.topology, training))
