# SPDX-License-Identifier: Apache-2.0
"""A config resolved against this machine's devices, data and weights.

Planning is cheap: nothing is compiled. All complaints are collected and
reported together.
"""

import dataclasses

import jax
import optax
from ml_collections import ConfigDict

from mixer.config import default
from mixer.config_check import Complaints, resolve, validate
from mixer.data_plan import DataPlan, plan_data
from mixer.errors import UserError, did_you_mean, format_list
from mixer.jax_setup import device_count
from mixer.model_plan import ModelPlan, plan_model
from mixer.models import flops
from mixer.schema import resolve_steps
from mixer.teacher_plan import TeacherPlan, plan_teacher
from mixer.training.optimizer import AUTHORS

# Part of the config, keys in it, and the key and value with which they count.
_COUNT_WITH = (
  ("schedule", ("end",), "kind", "linear"),
  ("drop", ("shape",), "when", "early"),
  ("optimizer", ("momentum",), "name", "momentum"),
  ("optimizer", ("b1", "b2", "eps"), "name", "adam"),
)


@dataclasses.dataclass(frozen=True)
class SchedulePlan:
  """Durations in updates; None where not set or complained about.

  drop_steps: steps whose update has dropout and stochastic depth.
  drop_scale: factor on their rates by step, 1 at step 0 and 0 at the last of
    drop_steps, as numpy.linspace in the code of arXiv 2303.01500; None: 1.
  """

  total_steps: int | None = None
  warmup_steps: int = 0
  checkpoint_every: int | None = None
  milestone_every: int | None = None
  drop_steps: range = range(2**31)
  drop_scale: optax.Schedule | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
  """A config, resolved against this machine's devices, data and weights."""

  config: ConfigDict
  devices: int
  complaints: Complaints = dataclasses.field(default_factory=Complaints)
  data: DataPlan = DataPlan()
  schedule: SchedulePlan = SchedulePlan()
  model: ModelPlan = ModelPlan()
  teacher: TeacherPlan = TeacherPlan()

  @property
  def gradients(self) -> int:
    """Forward and backward passes of an update: two with SAM."""
    return 2 if self.config.sam.rho else 1

  @property
  def flops_per_image(self) -> int:
    """FLOPs of training: a backward pass takes twice a forward pass.

    The teacher has only a forward pass.
    """
    student = 6 * self.gradients * self.model.multiply_accumulates
    return student + 2 * self.teacher.multiply_accumulates


def make_plan(
  config: ConfigDict,
  *,
  devices: int | None = None,
  for_training: bool = True,
  load_init: bool = True,
  skip_missing: bool = False,
) -> Plan:
  """Resolves a config and collects complaints.

  Args:
    config: from a recipe and the command line.
    devices: number that share a batch; those of all processes if None.
    for_training: False does without training data, length of the run and batch.
    load_init: False does without config.init, which a checkpoint supersedes.
    skip_missing: leave out evaluators whose data are missing, unless none would
      be left or training data are missing as well.

  Raises:
    UserError: keys that the schema does not have; no other check runs then.
  """
  config, devices = resolve(config), devices or device_count()
  complaints = Complaints(problems=list(validate(config)))
  if complaints.problems:
    return Plan(config, devices, complaints)
  _skip_evals(config, complaints)
  data = plan_data(
    config,
    devices,
    complaints,
    for_training=for_training,
    skip_missing=skip_missing,
  )
  schedule = SchedulePlan()
  if for_training:
    schedule = _plan_schedule(config, complaints)
  # Last, because weights are the largest files to read.
  model = plan_model(
    config, data, complaints, for_training=for_training, load_init=load_init
  )
  teacher = TeacherPlan()
  if for_training:
    teacher = plan_teacher(config, data, complaints)
  return Plan(config, devices, complaints, data, schedule, model, teacher)


def _skip_evals(config: ConfigDict, complaints: Complaints):
  """Removes the evaluators that config.skip_evals names, and the key's value.

  The resolved config can then be planned again, from a run's config.json.
  """
  known = list(config.evals)
  for name in filter(None, map(str.strip, config.skip_evals.split(","))):
    if name not in known:
      complaints.problems.append(
        f"config.skip_evals: {name!r} is not an evaluator"
        f"{did_you_mean(name, known)}"
      )
    elif name in config.evals:
      del config.evals[name]
  config.skip_evals = ""


def _plan_schedule(config: ConfigDict, complaints: Complaints) -> SchedulePlan:
  """Converts durations to updates, and compares them."""

  def steps(part, prefix):
    return resolve_steps(
      part, prefix, batch=config.batch, examples=config.data.examples
    )

  total = every = milestone = None
  warmup = 0
  with complaints.collect("config."):
    total = steps(config, "total")
    if not total:
      complaints.problems.append(
        "The length of the run is not set: give config.total_steps, "
        "total_epochs or total_examples."
      )
  with complaints.collect("config.schedule."):
    warmup = steps(config.schedule, "warmup") or 0
    if total and warmup >= total:
      complaints.problems.append(
        f"The warm-up of {warmup} steps does not end within the run of "
        f"{total}: add --config.schedule.warmup_steps={total // 10}, a "
        "tenth of the run, or lengthen the run."
      )
  if (config.sam.rho_min or 0.0) > config.sam.rho > 0:
    complaints.problems.append(
      f"config.sam.rho_min = {config.sam.rho_min:g} is above config.sam.rho = "
      f"{config.sam.rho:g}, its value at the peak: swap them, or leave it out."
    )
  with complaints.collect("config.checkpoint."):
    every = steps(config.checkpoint, "every")
    milestone = steps(config.checkpoint, "milestone")
  drops = SchedulePlan.drop_steps
  with complaints.collect("config.drop: "):
    cutoff = steps(config.drop, "cutoff")
    drops = _drop_steps(config, cutoff, total)
  scale = None
  if config.drop.when == "early" and config.drop.shape == "linear":
    scale = optax.linear_schedule(1.0, 0.0, len(drops) - 1)
  return SchedulePlan(total, warmup, every, milestone, drops, scale)


def _drop_steps(
  config: ConfigDict, cutoff: int | None, total: int | None
) -> range:
  """Returns the steps at which dropout and stochastic depth act.

  Raises:
    UserError: a cut-off without a schedule, a schedule without a cut-off in the
      run, or without a rate.
  """
  when, every = config.drop.when, SchedulePlan.drop_steps
  if when == "always":
    if cutoff:
      raise UserError(
        "when = 'always' has no cut-off: set it to 'early' or 'late', or leave "
        "the cut-off out."
      )
    return every
  if not (config.model.dropout or config.model.stoch_depth):
    raise UserError(
      f"when = {when!r} has no rate to act on: set config.model.stoch_depth or "
      "config.model.dropout."
    )
  if not cutoff:
    raise UserError(
      f"when = {when!r} needs a cut-off: set config.drop.cutoff_steps, "
      "cutoff_epochs or cutoff_examples."
    )
  if total and cutoff >= total:
    raise UserError(
      f"The cut-off at step {cutoff:,} is not within the run of {total:,} "
      "steps: set an earlier one."
    )
  return every[:cutoff] if when == "early" else every[cutoff:]


def plan_summary(plan: Plan) -> str:
  """Returns the plan as lines of text."""
  config, data = plan.config, plan.data
  schedule, model = plan.schedule, plan.model
  images, lines = config.data.examples, []
  if data.accumulation:
    hosts = jax.process_count()
    kind = jax.local_devices()[0].device_kind
    lines.append(
      f"batch         global {config.batch} = {hosts} "
      f"{'hosts' if hosts > 1 else 'host'} x {plan.devices // hosts} {kind} x "
      f"{data.per_device} x {data.accumulation} accumulated"
    )
  if model.abstract_params is not None:
    giga = model.multiply_accumulates / 1e9
    lines.append(
      f"model         {config.model.name}, "
      f"{flops.count_params(model.abstract_params):,} parameters, "
      f"{data.image_size[0]} x {data.image_size[1]} px, {giga:.3g} GMAC or "
      f"{2 * giga:.3g} GFLOP an image forward, "
      f"{plan.flops_per_image / 1e9:.3g} GFLOP in training"
    )
  sam = config.sam
  if sam.rho:
    low = "" if sam.rho_min is None else f" to {sam.rho_min:g}"
    lines.append(
      f"SAM           rho {sam.rho:g}{low}, alpha {sam.alpha:g}, each "
      f"{sam.images} images perturbed by themselves"
    )
  elif sam != default().sam:
    lines.append("WARNING       config.sam: no effect without config.sam.rho")
  note = f"; {model.initial_note}" if model.initial_note else ""
  lines.append(f"start         {config.init or 'random weights'}{note}")
  if plan.teacher.apply is not None:
    giga = plan.teacher.multiply_accumulates / 1e9
    cost = f", {giga:.3g} GMAC an image forward" if giga else ""
    lines.append(
      f"teacher       {config.teacher.init}: {plan.teacher.description}{cost}; "
      f"weight {config.teacher.weight:g}, temperature "
      f"{config.teacher.temperature:g}"
    )
  if config.data.name:
    lines.append(
      f"data          {config.data.name}, {config.data.split}: "
      f"{f'{images:,}' if images else 'unknown'} examples; {config.data.ops}"
    )
  if unused := data.unused_folders:
    lines.append(f"not used      {format_list(unused)}")
  if schedule.total_steps:
    seen = schedule.total_steps * config.batch
    epochs = f", {seen / images:.4g} epochs" if images else ""
    lines.append(
      f"length        {schedule.total_steps:,} steps{epochs}, {seen:,} images, "
      f"warm-up {schedule.warmup_steps:,} steps"
    )
    initial = config.ema_decay**schedule.total_steps
    if config.ema_decay and initial > 0.1:  # the results would be misleading
      lines.append(
        f"WARNING       ema_decay = {config.ema_decay:g} is slow for "
        f"{schedule.total_steps:,} steps: {initial:.0%} of the weights that "
        "are evaluated and saved will be the initial ones; 0 turns it off"
      )
    if model.multiply_accumulates:
      flop = plan.flops_per_image * seen
      lines.append(f"compute       {flop:.3g} FLOP")
  if schedule.drop_steps != SchedulePlan.drop_steps:
    late = config.drop.when == "late"
    edge = schedule.drop_steps.start if late else schedule.drop_steps.stop
    lines.append(
      f"dropping      {'from' if late else 'until'} step {edge:,}, "
      f"{'linear to 0' if schedule.drop_scale else 'constant'}"
    )
  if config.optimizer.name not in AUTHORS:
    lines.append(
      f"optimizer     optax's {config.optimizer.name}, in its own form: decay "
      "(on kernels) by config.optimizer.arguments, not .weight_decay"
    )
  for name, each in data.evals.items():
    size = f" ({len(each.source):,} images)" if each.source else ""
    lines.append(
      f"evaluation    {name}: {each.options.name or config.data.name}, "
      f"{each.options.split}{size}; {each.options.ops}; {_cadence(each.every)}"
    )
  for part, keys, decides, value in _COUNT_WITH:
    options, defaults = config[part], default()[part]
    changed = [x for x in keys if options[x] != defaults[x]]
    if changed and options[decides] != value:
      lines.append(
        f"WARNING       config.{part}.{', '.join(changed)}: no effect without"
        f" config.{part}.{decides} = {value}"
      )
  milestones = schedule.milestone_every
  for_ever = f", one every {milestones:,} for ever" if milestones else ""
  lines.append(
    f"checkpoints   {_cadence(schedule.checkpoint_every)}, newest "
    f"{config.checkpoint.keep} kept{for_ever}"
  )
  return "\n".join([*lines, data.left_out]).rstrip()


def _cadence(every: int | None) -> str:
  return f"every {every:,} steps and at the end" if every else "at the end"
