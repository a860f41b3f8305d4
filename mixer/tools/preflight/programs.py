# SPDX-License-Identifier: Apache-2.0
"""A run's own programs, compiled for a slice of TPUs: training, evaluation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mixer.errors import UserError
from mixer.evaluators.classification import eval_step
from mixer.evaluators.common import pmap_eval_step
from mixer.plan import Plan, make_plan
from mixer.tools.preflight.compiler import Program, compile_program
from mixer.training.setup import (
  abstract_inputs,
  create_optimizer,
  create_update,
)


def plan_for(config: ConfigDict, devices: int) -> Plan:
  """The config's plan for so many devices.

  Data that are not on this machine are of no concern.

  Raises:
    UserError: the config is wrong, or cannot be cut into the devices.
  """
  plan = make_plan(config.copy_and_resolve_references(), devices=devices)
  if plan.complaints.problems:
    raise UserError("\n".join(plan.complaints.problems))
  return plan


def change(config: ConfigDict, **keys) -> ConfigDict:
  """A copy with other values; `__` stands for a dot."""
  copy = config.copy_and_resolve_references()
  with copy.unlocked():
    copy.update_from_flattened_dict(
      {key.replace("__", "."): value for key, value in keys.items()}
    )
  return copy


def compile_training(plan: Plan, devices: Sequence[jax.Device]) -> Program:
  """The update that the run would do, as it would do it.

  Raises:
    DoesNotFit: there is not enough memory.
  """
  _, optimizer = create_optimizer(plan)
  return compile_program(
    create_update(plan, optimizer, devices),
    *abstract_inputs(plan, optimizer, devices),
    devices=len(devices),
  )


def compile_evaluation(plan: Plan, devices: Sequence[jax.Device]) -> Program:
  """Classification of as many images as the largest evaluator takes.

  Raises:
    DoesNotFit: there is not enough memory.
  """
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
  return compile_program(step, plan.model.abstract_params, batch, devices=n)
