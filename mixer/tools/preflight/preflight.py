# SPDX-License-Identifier: Apache-2.0
"""Preflight: compiles the programs of a run for a machine, and judges them."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mixer.errors import UserError
from mixer.evaluators.classification import eval_step
from mixer.evaluators.common import pmap_eval_step
from mixer.models import FAMILIES, family_of, flops
from mixer.models.kernels import target_device
from mixer.plan import Plan, make_plan
from mixer.tools.preflight import compiler
from mixer.tools.preflight.compiler import CompiledProgram, DoesNotFit
from mixer.tools.preflight.roofline import Estimate, estimate
from mixer.tools.preflight.topology import Topology, parse
from mixer.training import setup
from mixer.training.nonfinite import DISPATCH_AHEAD

PROXY_TOPOLOGY = "v5p:2x2x1"  # in place of a GPU whose compiler is missing
FIRST_TRIALS = 32, 8, 1  # images at once, then twice as many
MAX_CONFIRMATIONS = 4
# A recipe's duration in steps of another batch could be invalid.
_ANY_DURATION = {
  "total_steps": 10_000_000,
  "total_epochs": None,
  "total_examples": None,
}

Progress = Callable[[str], contextlib.AbstractContextManager]


@dataclasses.dataclass(frozen=True)
class PeakLine:
  """Bytes per device as a line: fixed + per_image * images.

  It only finds candidates: the activations of few images fit into memory that
  gradients take later, and with many the compiler rematerialises.
  """

  fixed: float
  per_image: float


@dataclasses.dataclass(frozen=True)
class Suggestion:
  """Result of a batch search.

  at_once: largest micro-batch per device that fits; 0 if none does.
  accumulation: number of micro-batches.
  whole: images per device that would fit without accumulation.
  peak: bytes that the compiler reports for `at_once`.
  line: the fit; None if even two images are too many.
  """

  at_once: int
  accumulation: int
  whole: int
  peak: int | None
  line: PeakLine | None


@dataclasses.dataclass(frozen=True)
class PreflightReport:
  """Findings of preflight.

  compiled_for: `topology`, or its proxy.
  evaluation: None without evaluators.
  estimate: None if the update does not fit, or has a loop over blocks.
  suggestions: by the config key and value that go with each, or "".
  sharded, sharded_estimate: the update with config.shard_state; None if not
    compiled.
  """

  plan: Plan
  topology: Topology
  compiled_for: Topology
  training: CompiledProgram | DoesNotFit
  evaluation: CompiledProgram | DoesNotFit | None
  estimate: Estimate | None
  suggestions: dict[str, Suggestion] = dataclasses.field(default_factory=dict)
  sharded: CompiledProgram | DoesNotFit | None = None
  sharded_estimate: Estimate | None = None

  @property
  def is_proxy(self) -> bool:
    return self.compiled_for is not self.topology

  @property
  def parameters(self) -> int:
    return flops.count_params(self.plan.model.abstract_params)

  @property
  def limit(self) -> float:
    """Bytes of a device that programs can use."""
    chip = self.topology.chip
    return chip.program_memory / chip.devices

  @property
  def prefetched_bytes(self) -> int:
    """Bytes per device of batches that wait for their update."""
    height, width = self.plan.data.image_size
    image = height * width * self.plan.model.module.image_channels
    share = self.plan.config.batch // self.topology.devices
    return (self.plan.config.data.prefetch + DISPATCH_AHEAD) * share * image

  @property
  def training_peak(self) -> float:
    if isinstance(self.training, DoesNotFit):
      return self.training.needed
    return self.training.peak + self.prefetched_bytes

  @property
  def evaluation_peak(self) -> float | None:
    """Peak next to the state and batches of the training."""
    if self.evaluation is None:
      return None
    if isinstance(self.evaluation, DoesNotFit):
      return self.evaluation.needed
    if isinstance(self.training, DoesNotFit):
      return self.evaluation.peak
    # Training and evaluation share the parameters, unless they are sharded.
    shared = 0 if self.plan.config.shard_state else 4 * self.parameters
    state = self.training.arguments - shared + self.prefetched_bytes
    return self.evaluation.peak + state

  @property
  def fits(self) -> bool:
    refused = any(
      isinstance(program, DoesNotFit)
      for program in (self.training, self.evaluation)
    )
    peak = max(self.training_peak, self.evaluation_peak or 0)
    return not refused and peak <= self.limit


def preflight(
  config: ConfigDict,
  topology_name: str,
  *,
  suggests: bool = False,
  progress: Progress = contextlib.nullcontext,
) -> PreflightReport:
  """Compiles a run's programs for a machine.

  Args:
    config: of a recipe.
    topology_name: such as "v4:4x4x4" or "gpu:h200x8".
    suggests: also search for the largest batches that fit.
    progress: context of each compilation, given the program's name.

  Raises:
    UserError: a name or the config is wrong, or the compiler is missing.
  """
  topology = parse(topology_name)
  plan = plan_for(config, topology.devices)
  compiler.check_installed(topology)
  chip = topology.chip
  is_proxy = not (chip.is_tpu or compiler.has_gpu_compiler(chip))
  target = parse(PROXY_TOPOLOGY) if is_proxy else topology
  devices = compiler.open_devices(target)
  with target_device(devices[0]):
    target_plan = proxy_plan(plan, config, target) if is_proxy else plan
    count = 2 if plan.data.evals else 1
    with progress(f"update step, 1 of {count}"):
      training = compile_training(target_plan, devices)
    evaluation = cost = None
    if plan.data.evals:
      with progress("evaluation, 2 of 2"):
        evaluation = compile_evaluation(target_plan, devices)
    # The compiler counts a loop over blocks as one block.
    if isinstance(training, CompiledProgram) and not config.model.scan:
      cost = estimate(plan, topology, training, is_proxy=is_proxy)
    report = PreflightReport(plan, topology, target, training, evaluation, cost)
    if suggests:
      report = _suggest(report, target_plan.config, devices, progress)
  return report


def plan_for(config: ConfigDict, devices: int) -> Plan:
  """Returns the config's plan, whether or not its data exist here.

  Raises:
    UserError: the config is wrong, or the devices do not divide its batch.
  """
  plan = make_plan(config.copy_and_resolve_references(), devices=devices)
  if plan.complaints.problems:
    raise UserError("\n".join(plan.complaints.problems))
  return plan


def proxy_plan(plan: Plan, config: ConfigDict, target: Topology) -> Plan:
  """Returns the plan for a proxy, with the same images per device."""

  def scale(batch: int) -> int:
    return batch // plan.devices * target.devices

  batches = {
    f"evals.{name}.batch": scale(options.batch)
    for name, options in plan.config.evals.items()
    if options.batch
  }
  changes = batches | {
    "batch": scale(plan.config.batch),
    "accumulation": plan.data.accumulation,
  }
  return plan_for(_change(config, changes | _ANY_DURATION), target.devices)


def _change(config: ConfigDict, values: dict) -> ConfigDict:
  """Returns a copy with other values, by dotted keys."""
  copy = config.copy_and_resolve_references()
  with copy.unlocked():
    copy.update_from_flattened_dict(values)
  return copy


def compile_training(
  plan: Plan, devices: Sequence[jax.Device]
) -> CompiledProgram | DoesNotFit:
  """Compiles the update step of the run."""
  _, optimizer = setup.create_optimizer(plan)
  return compiler.compile_program(
    setup.create_update(plan, optimizer, devices),
    *setup.abstract_inputs(plan, optimizer, devices),
    devices=len(devices),
  )


def compile_evaluation(
  plan: Plan, devices: Sequence[jax.Device]
) -> CompiledProgram | DoesNotFit:
  """Compiles classification with the largest batch of the evaluators."""
  n = len(devices)
  rows = n, max(each.batch for each in plan.data.evals.values()) // n
  step = pmap_eval_step(
    eval_step, plan.model.module, tuple(devices), loss=plan.config.loss
  )
  image = (*plan.data.image_size, plan.model.module.image_channels)
  batch = {
    "image": jax.ShapeDtypeStruct((*rows, *image), jnp.uint8),
    "label": jax.ShapeDtypeStruct(rows, jnp.int32),
  }
  return compiler.compile_program(
    step, plan.model.abstract_params, batch, devices=n
  )


def _suggest(
  report: PreflightReport,
  config: ConfigDict,
  devices: Sequence[jax.Device],
  progress: Progress,
) -> PreflightReport:
  """Adds the batch search per remat policy, and the update with shard_state."""

  def compile_with(label: str, values: dict) -> CompiledProgram | DoesNotFit:
    with progress(f"update step with {label}"):
      plan = plan_for(_change(config, values), len(devices))
      return compile_training(plan, devices)

  def peak_of(label: str, remat: str, images: int, parts: int) -> float:
    program = compile_with(
      f"{label}, {images} images in {parts} parts",
      {
        "batch": images * len(devices),
        "accumulation": parts,
        "model.remat": remat,
        **_ANY_DURATION,
      },
    )
    if isinstance(program, DoesNotFit):
      return math.inf
    return program.peak + report.prefetched_bytes

  policies = remat_candidates(config.model.name, config.model.remat)
  suggestions = {}
  for i, remat in enumerate(policies, 1):
    key = f"config.model.remat={remat}" if remat != config.model.remat else ""
    suggestions[key] = search_batch(
      functools.partial(
        peak_of, f"remat={remat} ({i} of {len(policies)})", remat
      ),
      share=report.plan.config.batch // report.topology.devices,
      limit=report.limit,
    )
  sharded = cost = None
  # A proxy has another number of shards. With a scan no time is known.
  if not (
    config.shard_state
    or config.model.scan
    or report.is_proxy
    or len(devices) == 1
  ):
    sharded = compile_with("shard_state", {"shard_state": True})
    if isinstance(sharded, CompiledProgram):
      cost = estimate(report.plan, report.topology, sharded)
  return dataclasses.replace(
    report, suggestions=suggestions, sharded=sharded, sharded_estimate=cost
  )


def remat_candidates(name: str, policy: str) -> list[str]:
  """Returns a model's remat policy and those that keep less in memory."""
  mixes = FAMILIES[family_of(name)].mixes_tokens
  less = ["token_mixing", "blocks"] if mixes else ["blocks"]
  if policy in less:
    return less[less.index(policy) :]
  return [policy, *less]


def search_batch(
  peak_of: Callable[[int, int], float], *, share: int, limit: float
) -> Suggestion:
  """Finds the largest micro-batch that fits, in about three compilations.

  Args:
    peak_of: bytes per device of an update with (images, micro-batches); inf if
      refused.
    share: images per device in one update.
    limit: bytes of a device.
  """
  line, whole = _fit_line(peak_of), 0
  if line:
    whole = max(0, int((limit - line.fixed) // line.per_image))
  largest = min(share, whole if line else 1)
  candidates = [n for n in range(largest, 0, -1) if share % n == 0]
  for at_once in candidates[:MAX_CONFIRMATIONS]:
    peak = peak_of(share, share // at_once)
    if peak <= limit:
      return Suggestion(at_once, share // at_once, whole, peak, line)
  return Suggestion(0, 0, whole, None, line)


def _fit_line(peak_of: Callable[[int, int], float]) -> PeakLine | None:
  for images in FIRST_TRIALS:
    small = peak_of(images, 1)
    large = peak_of(2 * images, 1) if small < math.inf else math.inf
    if large < math.inf:
      per_image = max(1.0, (large - small) / images)
      return PeakLine(small - images * per_image, per_image)
  return None
