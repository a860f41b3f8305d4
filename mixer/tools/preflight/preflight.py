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
from mixer.evaluators import pmap_eval_step
from mixer.evaluators.classification import eval_step
from mixer.models import FAMILIES, family_of, flops
from mixer.models.kernels import target_device
from mixer.plan import Plan, make_plan
from mixer.tools.preflight import compiler, roofline
from mixer.tools.preflight.compiler import Compilation, DoesNotFit
from mixer.tools.preflight.roofline import estimate, paper_core_days
from mixer.tools.preflight.topology import Topology, parse
from mixer.training import setup
from mixer.training.nonfinite import DISPATCH_AHEAD

FIRST_TRIALS = 32, 8, 1  # images at once, then twice as many
MAX_CONFIRMATIONS = 4
MIN_PER_IMAGE = 1.0  # bytes; a line no steeper has no limit
# A recipe's duration in steps of another batch could be invalid.
_ANY_DURATION = {
  "total_steps": 10_000_000,
  "total_epochs": None,
  "total_examples": None,
}

Progress = Callable[[str], contextlib.AbstractContextManager]


def preflight(
  config: ConfigDict,
  topology_name: str,
  *,
  suggests: bool = False,
  progress: Progress = contextlib.nullcontext,
) -> dict:
  """Compiles a run's programs for a machine.

  Args:
    config: of a recipe.
    topology_name: such as "v4:4x4x4" or "gpu:h200x8".
    suggests: also search for the largest batches that fit, and try sharding.
    progress: context of each compilation, given the program's name.

  Returns:
    The report of `judge`. With `suggests` also "suggestions", a `search_batch`
    for each remat policy with the "key" to set; and where the state can be
    "sharded", the update's figures with config.shard_state.

  Raises:
    UserError: a name or the config is wrong, or the compiler is missing.
  """
  topology = parse(topology_name)
  plan = plan_for(config, topology.devices)
  compiler.check_installed(topology)
  devices = compiler.open_devices(topology)
  with target_device(devices[0]):
    count = 2 if plan.data.evals else 1
    with progress(f"update step, 1 of {count}"):
      training = compile_training(plan, devices)
    evaluation = None
    if plan.data.evals:
      with progress("evaluation, 2 of 2"):
        evaluation = compile_evaluation(plan, devices)
    report = judge(plan, topology, training, evaluation)
    if not suggests:
      return report
    report["suggestions"] = _search_batches(
      report, plan.config, devices, progress
    )
    can_shard = len(devices) > 1 and not config.shard_state
    if can_shard and not config.model.scan:  # without an estimate to compare
      with progress("update step with shard_state"):
        sharded_plan = plan_for(
          _change(plan.config, {"shard_state": True}), plan.devices
        )
        sharded = compile_training(sharded_plan, devices)
      report["sharded"] = judge_sharded(
        plan, topology, sharded, report["waiting_batches"]
      )
    return report


def find_machines(
  config: ConfigDict, kinds: Sequence[str], within: float
) -> dict:
  """Finds machines that end a run in time, without a compiler.

  Args:
    config: of a recipe.
    kinds: names of chips.
    within: seconds.

  Returns:
    "machines" of `roofline.find_machines`, and the run that they are for;
    "fits" if one may end in time.
  """
  plan = plan_for(config, 1)
  machines = roofline.find_machines(plan, kinds, within)
  return {
    "model": plan.config.model.name,
    "total_steps": plan.schedule.total_steps,
    "batch": plan.config.batch,
    "within": within,
    "fits": any(each["seconds"][0] <= within for each in machines),
    "machines": machines,
  }


def judge(
  plan: Plan,
  topology: Topology,
  training: Compilation,
  evaluation: Compilation | None,
) -> dict:
  """Returns every figure of a run in SI units, and whether it fits.

  Args:
    plan: for `topology`.
    topology: the machine.
    training, evaluation: programs; no evaluation without evaluators.
  """
  parameters = flops.count_params(plan.model.abstract_params)
  height, width = plan.data.image_size
  image = height * width * plan.model.module.image_channels
  share = plan.config.batch // topology.devices
  waiting = (plan.config.data.prefetch + DISPATCH_AHEAD) * share * image
  state = 0
  if not isinstance(training, DoesNotFit):
    # Training and evaluation share the parameters, unless they are sharded.
    shared = 0 if plan.config.shard_state else 4 * parameters
    state = training.arguments - shared + waiting
  programs = {
    "training": _program(training, waiting),
    "evaluation": evaluation and _program(evaluation, state),
  }
  limit = topology.chip.program_memory / topology.chip.devices
  fits = all(
    each["compiles"] and each["peak_beside_all"] <= limit
    for each in programs.values()
    if each
  )
  report = {
    "model": plan.config.model.name,
    "topology": topology.name,
    "verdict": "compiles and fits" if fits else "does not fit",
    "fits": fits,
    "hosts": topology.hosts,
    "chips": topology.chips,
    "devices": topology.devices,
    "chip": dataclasses.asdict(topology.chip),
    "batch": plan.config.batch,
    "per_device": plan.data.per_device,
    "accumulation": plan.data.accumulation,
    "total_steps": plan.schedule.total_steps,
    "parameters": parameters,
    "memory_per_device": limit,
    "waiting_batches": waiting,
    **programs,
    "paper_core_days": paper_core_days(plan),
  }
  # The compiler counts a loop over blocks as one block.
  if not isinstance(training, DoesNotFit) and not plan.config.model.scan:
    report["estimate"] = estimate(plan, topology, training)
  return report


def judge_sharded(
  plan: Plan, topology: Topology, program: Compilation, waiting: int
) -> dict:
  """Returns the figures of the update with config.shard_state.

  `waiting` is the bytes of batches that wait on a device.
  """
  seconds = None
  if not isinstance(program, DoesNotFit):
    seconds = estimate(plan, topology, program)["step_seconds"]
  return {"training": _program(program, waiting), "step_seconds": seconds}


def _program(program: Compilation, others: int) -> dict:
  """Returns the figures of a program, with `others` bytes next to it."""
  if isinstance(program, DoesNotFit):
    peaks = {"compiles": False, "peak_beside_all": program.needed}
  else:
    peak = program.peak
    peaks = {"compiles": True, "peak_beside_all": peak + others, "peak": peak}
  return peaks | dataclasses.asdict(program)


def plan_for(config: ConfigDict, devices: int) -> Plan:
  """Returns the config's plan, whether or not its data exist here.

  Raises:
    UserError: the config is wrong, or the devices do not divide its batch.
  """
  plan = make_plan(config.copy_and_resolve_references(), devices=devices)
  if plan.complaints.problems:
    raise UserError("\n".join(plan.complaints.problems))
  return plan


def _change(config: ConfigDict, values: dict) -> ConfigDict:
  """Returns a copy with other values, by dotted keys."""
  copy = config.copy_and_resolve_references()
  with copy.unlocked():
    copy.update_from_flattened_dict(values)
  return copy


def compile_training(plan: Plan, devices: list) -> Compilation:
  """Compiles the update step of the run."""
  _, optimizer = setup.create_optimizer(plan)
  return compiler.compile_program(
    setup.create_update(plan, optimizer, devices),
    *setup.abstract_inputs(plan, optimizer, devices),
    devices=len(devices),
  )


def compile_evaluation(plan: Plan, devices: list) -> Compilation:
  """Compiles classification with the largest batch of the evaluators."""
  n, params = len(devices), plan.model.abstract_params
  rows = n, max(each.batch for each in plan.data.evals.values()) // n
  step = pmap_eval_step(
    eval_step, plan.model.module, tuple(devices), loss=plan.config.loss
  )
  image = (*plan.data.image_size, plan.model.module.image_channels)
  batch = {
    "image": jax.ShapeDtypeStruct((*rows, *image), jnp.uint8),
    "label": jax.ShapeDtypeStruct(rows, jnp.int32),
  }
  return compiler.compile_program(step, params, batch, devices=n)


def _search_batches(
  report: dict, config: ConfigDict, devices: list, progress: Progress
) -> list[dict]:
  """Searches the largest batch for each remat policy."""
  policies = remat_candidates(config.model.name, config.model.remat)

  def peak_of(remat: str, images: int, parts: int) -> float:
    changes = _ANY_DURATION | {
      "batch": images * len(devices),
      "accumulation": parts,
      "model.remat": remat,
    }
    plan = plan_for(_change(config, changes), len(devices))
    policy = f"remat={remat} ({policies.index(remat) + 1} of {len(policies)})"
    label = f"update step with {policy}, {images // parts} images x {parts}"
    with progress(label):
      program = compile_training(plan, devices)
    if isinstance(program, DoesNotFit):
      return math.inf
    return program.peak + report["waiting_batches"]

  return [
    {"key": f"config.model.remat={remat}" if i else ""}
    | search_batch(
      functools.partial(peak_of, remat),
      share=report["batch"] // report["devices"],
      limit=report["memory_per_device"],
    )
    for i, remat in enumerate(policies)
  ]


def remat_candidates(name: str, policy: str) -> list[str]:
  """Returns a model's remat policy, then those that keep less in memory."""
  mixes = FAMILIES[family_of(name)].mixes_tokens
  less = ["token_mixing", "blocks"] if mixes else ["blocks"]
  if policy in less:
    return less[less.index(policy) :]
  return [policy, *less]


def search_batch(
  peak_of: Callable[[int, int], float], *, share: int, limit: float
) -> dict:
  """Finds the largest micro-batch that fits, in about three compilations.

  Args:
    peak_of: bytes per device of an update with (images, micro-batches); inf if
      refused.
    share: images per device in one update.
    limit: bytes of a device.

  Returns:
    "at_once", the images in a micro-batch; "accumulation", the number of
    micro-batches; and "peak"; they are 0 or None if nothing fits. "whole" is
    the number of images that would fit without accumulation by the "line".
  """
  line, whole = _fit_line(peak_of), 0
  if line:
    whole = max(0, int((limit - line["fixed"]) // line["per_image"]))
  largest = min(share, whole if line else 1)
  at_once, accumulation, peak = 0, 0, None
  candidates = [n for n in range(largest, 0, -1) if share % n == 0]
  for images in candidates[:MAX_CONFIRMATIONS]:
    if (trial := peak_of(share, share // images)) <= limit:
      at_once, accumulation, peak = images, share // images, trial
      break
  return {
    "at_once": at_once,
    "accumulation": accumulation,
    "whole": whole,
    "peak": peak,
    "line": line,
  }


def _fit_line(
  peak_of: Callable[[int, int], float],
) -> dict[str, float] | None:
  """Fits the peak by a line through two numbers of images.

  It only finds candidates: the activations of few images fit into memory that
  gradients take later, and with many the compiler rematerialises.
  """
  for images in FIRST_TRIALS:
    small = peak_of(images, 1)
    large = peak_of(2 * images, 1) if small < math.inf else math.inf
    if large < math.inf:
      per_image = max(MIN_PER_IMAGE, (large - small) / images)
      return {"fixed": small - images * per_image, "per_image": per_image}
  return None
