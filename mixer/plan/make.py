# SPDX-License-Identifier: Apache-2.0
"""From a config to a plan: keys, data, durations, batch and model."""

import jax
from ml_collections import ConfigDict

from mixer.config import steps
from mixer.config_check import check_values, complete
from mixer.data.bad_images import BadImages
from mixer.plan.base import Plan
from mixer.plan.data import check_num_classes, open_split
from mixer.plan.evals import open_evals, plan_evals
from mixer.plan.model import plan_model
from mixer.plan.start import read_start, take_start


def make_plan(
  config: ConfigDict,
  *,
  devices: int | None = None,
  trains: bool = True,
  begins: bool = True,
) -> Plan:
  """Resolves a config and collects complaints.

  Args:
    config: as a recipe and the command line made it.
    devices: that share a batch; those of all processes if None.
    trains: False does without training data, length of the run and batch.
    begins: False does without config.init, which a checkpoint supersedes.

  Raises:
    UserError: keys that the schema does not have; nothing else can be said
      about such a config.
  """
  plan = Plan(complete(config), devices or jax.device_count())
  plan.problems += check_values(plan.config)
  if plan.problems:
    return plan
  if plan.config.data.on_bad_image == "replace":
    plan.bad_images = BadImages()
  if trains:
    _plan_training_data(plan)
    _plan_durations(plan)
  _plan_batch(plan, trains)
  if begins:
    read_start(plan, trains)
  plan_model(plan, trains)
  if begins:
    take_start(plan)
  plan_evals(plan, trains)
  open_evals(plan)
  return plan


def _plan_durations(plan: Plan):
  config = plan.config

  def read(part, prefix):
    return steps(
      part, prefix, batch=config.batch, examples=config.data.examples
    )

  with plan.collecting("config."):
    plan.total_steps = read(config, "total")
    if not plan.total_steps:
      plan.problems.append(
        "The length of the run is not set: give config.total_steps, "
        "total_epochs or total_examples."
      )
  with plan.collecting("config.schedule."):
    plan.warmup_steps = read(config.schedule, "warmup") or 0
    if plan.total_steps and plan.warmup_steps >= plan.total_steps:
      plan.problems.append(
        f"The warm-up of {plan.warmup_steps} steps does not end within the "
        f"run of {plan.total_steps}: shorten config.schedule.warmup_steps, or "
        "lengthen the run."
      )
  with plan.collecting("config.checkpoint."):
    plan.checkpoint_every = read(config.checkpoint, "every")
    plan.milestone_every = read(config.checkpoint, "milestone")


def _plan_batch(plan: Plan, trains: bool):
  config, devices = plan.config, plan.devices
  if not trains:  # evaluators take as many images at once, about
    share = -(-config.batch // devices)
    plan.per_device = min(share, config.max_per_device or share)
    return
  if config.batch % devices:
    lower = config.batch // devices * devices
    near = [str(n) for n in (lower, lower + devices) if n]
    plan.problems.append(
      f"config.batch = {config.batch} is not divided by the {devices} devices: "
      f"take {' or '.join(near)}."
    )
    return
  share = config.batch // devices
  parts = config.accumulation
  if parts is None:
    limit = config.max_per_device or share
    parts = next(
      n for n in range(1, share + 1) if share % n == 0 and share <= n * limit
    )
  if share % parts:
    plan.problems.append(
      f"config.accumulation = {parts} does not divide the {share} images of "
      f"each device ({config.batch} / {devices}): take a divisor, or set "
      "config.max_per_device instead."
    )
    return
  plan.accumulation, plan.per_device = parts, share // parts


def _plan_training_data(plan: Plan):
  """Opens the training split; an epoch is as long as it, if not told."""
  data = plan.config.data
  if not data.name:
    plan.problems.append("config.data.name, the data set, is not set.")
    return
  with plan.collecting("config.data: "):
    source = open_split(
      plan.config, data.name, data, "data", classes=data.classes
    )
    check_num_classes(source, plan.config)
    plan.source = source
    data.examples = len(source)
