# SPDX-License-Identifier: Apache-2.0
"""A config's evaluators, resolved, with everything that is wrong with them."""

from mixer.config import did_you_mean, steps
from mixer.errors import UserError
from mixer.evaluators import TYPES
from mixer.plan.base import EvalPlan, Plan
from mixer.plan.data import check_classes, open_split, output_size

RESULTS = ("loss", "accuracy", "accuracy_top5")


def plan_evals(plan: Plan):
  config = plan.config
  for name, options in config.evals.items():
    here = f"config.evals.{name}"
    if options.type not in TYPES:
      plan.problems.append(
        f"{here}.type = {options.type!r} is not an evaluator"
        f"{did_you_mean(options.type, TYPES)}"
      )
    batch = options.batch or plan.devices * (plan.per_device or 1)
    if batch < 1 or batch % plan.devices:
      plan.problems.append(
        f"{here}.batch = {batch} is no multiple of the {plan.devices} devices."
      )
    every = None
    with plan.collecting(f"{here}."):
      every = steps(
        options, "every", batch=config.batch, examples=config.data.examples
      )
    data_name = options.name or config.data.name
    plan.evals[name] = EvalPlan(options, data_name, batch, every)
    with plan.collecting(f"{here}.ops: "):
      if not options.ops:
        raise UserError("is not set, such as 'resize_small(256)'.")
      size = output_size(options.ops)
      if plan.image_size and size != plan.image_size:
        raise UserError(
          f"makes images of {size[0]} x {size[1]} px, training has "
          f"{plan.image_size[0]} x {plan.image_size[1]}: end both alike."
        )
  best = config.checkpoint.best
  known = [f"eval/{name}/{r}" for name in config.evals for r in RESULTS]
  if best and best not in known:
    plan.problems.append(
      f"config.checkpoint.best = {best!r} is the result of no evaluator"
      f"{did_you_mean(best, known)}"
    )


def open_evals(plan: Plan):
  """Opens the data set of every evaluator."""
  for name, evaluation in plan.evals.items():
    with plan.collecting(f"config.evals.{name}: "):
      evaluation.source = open_split(
        plan.config, evaluation.data_name, evaluation.options, "evals." + name
      )
      if plan.source is not None:
        check_classes(evaluation.source, plan.source.class_names, "training")
