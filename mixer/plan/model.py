# SPDX-License-Identifier: Apache-2.0
"""The model of a config, and whether images fit it."""

from ml_collections import ConfigDict

from mixer.config import default
from mixer.data.ops import output_size
from mixer.errors import UserError
from mixer.models import FAMILIES, create, family_of, fields_of, flops
from mixer.plan.base import Plan
from mixer.training.optimizer import lr_multiplier_tree


def plan_model(plan: Plan, trains: bool):
  """Creates the model, and counts its parameters and operations."""
  config = plan.config
  with plan.collecting("config.model: "):
    fields, strange = _fields(config.model)
    plan.problems += strange
    if not strange:
      plan.model = create(config.model.name, **fields)
  with plan.collecting("config.data.ops: "):
    ops = config.data.ops or (not trains and _first_ops(plan))
    if not ops:
      raise UserError("is not set, such as 'inception_crop(224) | flip'.")
    plan.image_size = output_size(ops)
  if plan.model is None or plan.image_size is None:
    return
  with plan.collecting("config.data.ops and config.model: "):
    plan.abstract_params = flops.abstract_params(plan.model, plan.image_size)
    plan.multiply_accumulates = flops.multiply_accumulates(
      plan.model, plan.image_size
    )
  if plan.abstract_params is None or not trains:
    return
  with plan.collecting("config."):
    lr_multiplier_tree(plan.abstract_params, config.optimizer.multipliers)


def _fields(options: ConfigDict) -> tuple[dict, list[str]]:
  """Splits what the config says of the model.

  Returns:
    What `create` takes, and a complaint for each key that is set although the
    model's family does not have it.

  Raises:
    ValueError: there is no such model.
  """
  name, off = options.name, default().model
  known = {"num_classes", *fields_of(family_of(name))}
  given, strange = {}, []
  for key, value in options.to_dict().items():
    if key in known:
      if value is not None:
        given[key] = value
    elif key != "name" and value != off[key]:
      owners = [family for family in FAMILIES if key in fields_of(family)]
      strange.append(
        f"config.model.{key} is of {', '.join(owners)}; {name} has no such "
        "field: leave it out."
      )
  return given, strange


def _first_ops(plan: Plan) -> str | None:
  """The ops of the first evaluator that has any."""
  return next((o.ops for o in plan.config.evals.values() if o.ops), None)
