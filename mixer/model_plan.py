# SPDX-License-Identifier: Apache-2.0
"""The model of a plan, and its initial weights from config.init."""

import dataclasses
import inspect
import os

import jax
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from mixer import weights
from mixer.config import EVALUATORS, default
from mixer.config_check import Complaints
from mixer.data.sources import Source
from mixer.data_plan import DataPlan
from mixer.errors import UserError, did_you_mean, nearest, printable
from mixer.models import FAMILIES, create, family_of, fields_of, flops
from mixer.training.optimizer import (
  AUTHORS,
  AUTHORS_KEYS,
  ELEMENTWISE,
  lr_multiplier_tree,
  make_optimizer,
  optax_optimizers,
)
from mixer.weights import LoadedWeights


@dataclasses.dataclass(frozen=True)
class ModelPlan:
  """The model and its initial weights; None where there is a complaint.

  abstract_params: shapes and dtypes of the parameters.
  multiply_accumulates: of one image's forward pass.
  initial_params: from config.init; None for random ones.
  initial_classes: of the run that config.init comes from; None if not known.
  initial_note: sentences about their growth and head.
  """

  module: nn.Module | None = None
  abstract_params: dict | None = None
  multiply_accumulates: int | None = None
  initial_params: dict | None = None
  initial_classes: tuple[str, ...] | None = None
  initial_note: str = ""


def plan_model(
  config: ConfigDict,
  data: DataPlan,
  complaints: Complaints,
  *,
  for_training: bool,
  load_init: bool,
) -> ModelPlan:
  """Creates the model, counts its parameters, and fits the initial weights.

  Args: as of `mixer.plan.make_plan`.
  """
  checkpoint = module = params = cost = initial = classes = None
  note = ""
  if load_init:
    with complaints.collect("config.init: "):  # the complaint names it
      checkpoint = _read_init(config, complaints, for_training)
  with complaints.collect("config.model: "):
    module = create(config.model.name, **_model_fields(config.model))
  if module is not None and data.image_size is not None:
    with complaints.collect("config.data.ops and config.model: "):
      params = flops.abstract_params(module, data.image_size)
      cost = flops.multiply_accumulates(module, data.image_size)
  if params is not None and for_training:
    with complaints.collect("config."):
      _check_optimizer(config, params)
  if params is not None and checkpoint is not None:
    classes = checkpoint.class_names if checkpoint.config else None
    with complaints.collect(f"config.init = {config.init}: "):
      if config.init_head == "auto" and data.source and classes:
        _check_head(classes, data.source)
      grown, growth = checkpoint.params, ""
      if config.init_growth != "none":
        grown, growth = _grow(config, checkpoint, module, data.image_size)
      initial, head = weights.merge_params(
        grown, params, head=config.init_head, head_bias=config.model.head_bias
      )
      note = f"{growth}{head}"
  return ModelPlan(module, params, cost, initial, classes, note)


def _check_optimizer(config: ConfigDict, params: dict):
  """Raises ValueError unless the optimizer can be made and makes updates."""
  options, off = config.optimizer, default().optimizer
  name, arguments = options.name, options.arguments
  lr_multiplier_tree(params, options.multipliers, options.layer_decay)
  if name in AUTHORS:
    if arguments:
      raise UserError(
        f"optimizer.arguments = {arguments.to_dict()} is for optimizers of "
        f"optax, such as adamw, and not for {name}: leave it out."
      )
    return
  known = optax_optimizers()
  if name not in known:
    raise UserError(
      f"optimizer.name = {name!r} is none of {', '.join(AUTHORS)} and optax's "
      f"optimizers{did_you_mean(name, [*AUTHORS, *known])}"
    )
  taken = dict(inspect.signature(known[name]).parameters)
  del taken["learning_rate"]
  takes = f"{name} takes {', '.join(taken)}."
  for key in AUTHORS_KEYS:
    if options[key] != off[key]:
      own = [
        f"optimizer.arguments.{x}" for x in nearest(key, taken, cutoff=0.8)
      ]
      raise UserError(
        f"optimizer.{key} = {options[key]} is for {' and '.join(AUTHORS)}: set "
        f"it to {off[key]}, and {own[0] if own else 'optimizer.arguments'} "
        f"instead. {takes}"
      )
  for key in arguments:
    if key not in taken:
      raise UserError(f"optimizer.arguments.{key} is unknown: {takes}")
  for key, parameter in taken.items():
    if parameter.default is parameter.empty and key not in arguments:
      raise UserError(f"optimizer.arguments.{key} is missing: {takes}")
  if config.shard_state and name not in ELEMENTWISE:
    raise UserError(
      f"shard_state = True is for {', '.join(ELEMENTWISE)}; {name} may need "
      "whole arrays: set it to False."
    )
  try:
    optimizer = make_optimizer(params, optax.constant_schedule(1.0), **options)
    state = jax.eval_shape(optimizer.init, params)
    jax.eval_shape(optimizer.update, params, state, params)
  except Exception as error:  # optax checks little, and raises anything
    raise UserError(
      f"optimizer: {name} makes no updates from gradients alone, or not with "
      f"these arguments: {printable(error)}"
    ) from error


def _model_fields(options: ConfigDict) -> dict:
  """Returns the arguments of `create`.

  Raises:
    UserError: keys of other families are set.
  """
  name, off = options.name, default().model
  known = {"num_classes", *fields_of(family_of(name))}
  if foreign := [
    f"{key} is of {', '.join(x for x in FAMILIES if key in fields_of(x))}"
    for key, value in options.items()
    if key not in known and key != "name" and value != off[key]
  ]:
    raise UserError(
      f"{'; '.join(foreign)}; {name} has no such field: leave it out."
    )
  return {k: v for k, v in options.items() if k in known and v is not None}


def _read_init(
  config: ConfigDict, complaints: Complaints, for_training: bool
) -> LoadedWeights | None:
  """Reads config.init, which also decides config.model.gelu if that is None.

  Returns:
    The weights as they are in the file; None if config.init is not set.

  Raises:
    ValueError: there are no such weights, or they cannot be read.
  """
  if not for_training:  # no head of zeros is evaluated
    types = [EVALUATORS[options.type] for options in config.evals.values()]
    needs_head = not all(each.own_classes for each in types)
    config.init_head = "keep" if needs_head else "auto"
  elif not config.init:
    for key, off in (("init_head", "auto"), ("init_growth", "none")):
      if config[key] != off:
        complaints.problems.append(
          f"config.{key} = {config[key]!r}, but config.init names no weights: "
          f"give --config.init=FILE, or --config.{key}={off} to start from "
          "random ones."
        )
  if not config.init:
    return None
  if config.model.pixels:
    raise UserError(
      "weights that are read take pixels in [-1, 1], and config.model.pixels = "
      f"{config.model.pixels!r} is for random ones: leave one of the two out."
    )
  checkpoint = weights.read(os.path.expanduser(config.init))
  family = config.model.name.partition("-")[0]
  has_gelu = family in FAMILIES and "gelu" in fields_of(family)
  if has_gelu and config.model.gelu is None:
    config.model.gelu = checkpoint.gelu
  return checkpoint


def _check_head(trained: tuple[str, ...], source: Source) -> None:
  """Raises UserError if a run's head would stand for other classes."""
  names = tuple(source.class_names)
  if len(trained) == source.num_classes and trained != names:
    raise UserError(
      "The head was trained on other classes, or in another order"
      f" ({weights.CLASSES} of its run): give images in folders that file with"
      " config.data.classes, or say with config.init_head whether to 'keep' the"
      " head or to begin with 'zeros'."
    )


def _grow(
  config: ConfigDict,
  checkpoint: LoadedWeights,
  model: nn.Module,
  image_size: tuple[int, int],
) -> tuple[dict, str]:
  """Returns the weights for the run's token grid, and a note about it."""
  params, growth = checkpoint.params, config.init_growth
  family = family_of(config.model.name)
  if family == "BiT":
    raise UserError(
      f"config.init_growth = {growth!r}, but {config.model.name} takes images "
      "of any size as it is: leave it out."
    )
  grid = weights.grid_shape(params, checkpoint.image_size)
  new_grid = tuple(side // model.patch for side in image_size)
  if grid == new_grid:
    return params, ""
  if growth == "tiles":
    factor = weights.integer_factor(grid, new_grid)
    params = weights.grow(params, factor=factor, grid=grid)
    how = f"{factor} x {factor} tiles of the old mixing"
  else:
    params = weights.grow(params, tokens=new_grid, grid=grid)
    how = "the old mixing interpolated, which is beyond the paper"
    if family == "ViT":
      how = "the old position embeddings interpolated"
  sizes = " to ".join(f"{h} x {w}" for h, w in (grid, new_grid))
  return params, f"Grown from {sizes} tokens: {how}. "
