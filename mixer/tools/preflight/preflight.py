# SPDX-License-Identifier: Apache-2.0
"""Preflight: compiles the programs of a run for a machine, and judges them."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mixer.errors import UserError
from mixer.evaluators import pmap_eval_step
from mixer.evaluators.classification import eval_step
from mixer.models import FAMILIES, family_of, flops
from mixer.models.kernels import target_device
from mixer.plan import Plan, make_plan
from mixer.tools.preflight import compiler
from mixer.tools.preflight.compiler import Compilation, DoesNotFit
from mixer.tools.preflight.roofline import estimate, paper_core_days
from mixer.tools.preflight.topology import Topology, parse
from mixer.training import setup
from mixer.training.nonfinite import DISPATCH_AHEAD

MAX_HALVINGS = 4

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
    suggests: also try keys that save memory or time.
    progress: context of each compilation, given the program's name.

  Returns:
    The report of `judge`, with `suggests` also "suggestions" of `suggest`.

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
    if suggests:
      report["suggestions"] = suggest(plan, topology, devices, report, progress)
  return report


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


def suggest(
  plan: Plan,
  topology: Topology,
  devices: list,
  report: dict,
  progress: Progress,
) -> list[dict]:
  """Compiles the update step with keys that save memory or time.

  Returns:
    For each set of keys "flags", "fits", "peak_beside_all" in bytes and
    "step_seconds", 0 without an estimate; the first is the recipe as it is.
  """
  rows = [_suggestion("", report)]
  for changes in alternatives(plan, report["fits"]):
    flags = " ".join(f"--config.{key}={x}" for key, x in changes.items())
    with progress(f"update step with {flags}"):
      other = plan_for(_change(plan.config, changes), plan.devices)
      training = compile_training(other, devices)
      evaluation = None
      if not report["fits"] and other.data.evals:
        evaluation = compile_evaluation(other, devices)
    judged = judge(other, topology, training, evaluation)
    rows.append(_suggestion(flags, judged))
    if "max_per_device" in changes and rows[-1]["fits"]:
      break
  return rows


def _suggestion(flags: str, report: dict) -> dict:
  return {
    "flags": flags,
    "fits": report["fits"],
    "peak_beside_all": report["training"]["peak_beside_all"],
    "step_seconds": report.get("estimate", {}).get("step_seconds", 0.0),
  }


def alternatives(plan: Plan, fits: bool) -> Iterator[dict]:
  """Yields config keys that save memory or time, the cheapest first.

  For a recipe that does not fit these are also smaller micro-batches.
  """
  config, shard, remat = plan.config, {}, {}
  if plan.devices > 1 and not config.shard_state:
    shard = {"shard_state": True}
  mixes = FAMILIES[family_of(config.model.name)].mixes_tokens
  if mixes and config.model.remat not in ("token_mixing", "blocks"):
    remat = {"model.remat": "token_mixing"}
  yield from filter(None, (shard, remat, shard and remat and shard | remat))
  # Where it is given, max_per_device has no effect.
  cut = {"accumulation": 0} if config.accumulation else {}
  images = plan.data.per_device
  for _ in range(0 if fits else MAX_HALVINGS):
    if images > 1:
      images = -(-images // 2)
      yield {"max_per_device": images} | cut


def _program(program: Compilation, others: int) -> dict:
  """Returns the figures of a program, with `others` bytes next to it."""
  if isinstance(program, DoesNotFit):
    peaks = {"compiles": False, "peak_beside_all": program.needed}
  else:
    peak = program.peak
    peaks = {"compiles": True, "peak_beside_all": peak + others, "peak": peak}
  return peaks | dataclasses.asdict(program)


def plan_for(config: ConfigDict, devices: int) -> Plan:
  """Returns the config's plan, whether or not data and weights exist here.

  Raises:
    UserError: the config is wrong, or the devices do not divide its batch.
  """
  config = config.copy_and_resolve_references()
  plan = make_plan(config, devices=devices, load_init=False)
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
  loss = plan.data.hierarchy or plan.config.loss
  step = pmap_eval_step(eval_step, plan.model.module, tuple(devices), loss=loss)
  image = (*plan.data.image_size, plan.model.module.image_channels)
  batch = {
    "image": jax.ShapeDtypeStruct((*rows, *image), jnp.uint8),
    "label": jax.ShapeDtypeStruct(rows, jnp.int32),
  }
  return compiler.compile_program(step, params, batch, devices=n)
