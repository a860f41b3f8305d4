# SPDX-License-Identifier: Apache-2.0
"""A config's evaluators, resolved, with everything that is wrong with them."""

from ml_collections import ConfigDict

from mixer.config import did_you_mean, steps
from mixer.data.ops import output_size
from mixer.data.sources import image_folder
from mixer.errors import UserError
from mixer.evaluators import TYPES, result_name
from mixer.plan.base import EvalPlan, Plan
from mixer.plan.data import (
  check_classes,
  check_num_classes,
  open_split,
)


def plan_evals(plan: Plan, trains: bool):
  for name, options in plan.config.evals.items():
    here = f"config.evals.{name}"
    plan.evals[name] = _plan_one(plan, here, options, trains)
  _check_best(plan)


def _plan_one(
  plan: Plan, here: str, options: ConfigDict, trains: bool
) -> EvalPlan:
  config = plan.config
  batch = options.batch or plan.devices * (plan.per_device or 1)
  if batch < 1 or batch % plan.devices:
    plan.problems.append(
      f"{here}.batch = {batch} is no multiple of the {plan.devices} devices."
    )
  every = None
  if trains:
    with plan.collecting(f"{here}."):
      every = steps(
        options, "every", batch=config.batch, examples=config.data.examples
      )
  data_name = options.name or config.data.name
  if not data_name:
    plan.problems.append(f"{here}.name, the data set, is not set.")
  with plan.collecting(f"{here}.ops: "):
    if not options.ops:
      raise UserError("is not set, such as 'resize_small(256)'.")
    size = output_size(options.ops)
    if plan.image_size and size != plan.image_size:
      others = "training has" if config.data.ops else "those before it have"
      raise UserError(
        f"makes images of {size[0]} x {size[1]} px, {others} "
        f"{plan.image_size[0]} x {plan.image_size[1]}: end both alike."
      )
  return EvalPlan(options, data_name, batch, every)


def known_results(plan: Plan) -> dict[str, str]:
  """What the evaluators give, such as "eval/test/loss", and which gives it."""
  return {
    result_name(evaluation.options.type, name, result): name
    for name, evaluation in plan.evals.items()
    for result in TYPES[evaluation.options.type].results(evaluation.options)
  }


def _check_best(plan: Plan):
  best, known = plan.config.checkpoint.best, known_results(plan)
  if best and best not in known:
    plan.problems.append(
      f"config.checkpoint.best = {best!r} is the result of no evaluator"
      f"{did_you_mean(best, known)}"
    )


def open_evals(plan: Plan):
  """Opens the data sets of every evaluator."""
  for name, evaluation in plan.evals.items():
    if not evaluation.data_name:
      continue
    with plan.collecting(f"config.evals.{name}: "):
      if evaluation.options.type == "fewshot":
        _open_fewshot(plan, name, evaluation)
      else:
        _open(plan, name, evaluation)


def _open(plan: Plan, name: str, evaluation: EvalPlan):
  """Opens a split with the classes that the head is for."""
  config, data_name = plan.config, evaluation.data_name
  is_folder = data_name.startswith(image_folder.PREFIX)
  source = open_split(
    config,
    data_name,
    evaluation.options,
    f"evals.{name}",
    classes=config.data.classes if is_folder else "",
    has_several=evaluation.options.type == "real",
  )
  check_num_classes(source, config)
  if plan.source is not None:
    check_classes(source, plan.source.class_names, "training")
  evaluation.source = source


def _open_fewshot(plan: Plan, name: str, evaluation: EvalPlan):
  """Opens two splits of a data set with classes of its own."""
  options = evaluation.options
  of_pool = options.copy_and_resolve_references()
  of_pool.update(split=options.pool_split, examples=None)
  evaluation.source, evaluation.pool = (
    open_split(plan.config, evaluation.data_name, part, f"evals.{name}")
    for part in (options, of_pool)
  )
