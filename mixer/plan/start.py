# SPDX-License-Identifier: Apache-2.0
"""The weights that a run starts from, against its model and its data."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from mixer import weights
from mixer.errors import UserError
from mixer.models import FAMILIES, family_of, fields_of
from mixer.plan.base import Plan


def read_start(plan: Plan, trains: bool):
  """Reads config.init, which also says how the model's GELU is computed."""
  config = plan.config
  if not trains:
    _keep_head(config)
  for key, off in (("init_head", "auto"), ("init_growth", "none")):
    if trains and config[key] != off and not config.init:
      plan.problems.append(
        f"config.{key} = {config[key]!r}, but config.init names no weights: "
        f"give --config.init=FILE, or --config.{key}={off} to start from "
        "random ones."
      )
  if not config.init:
    return
  with plan.collecting(f"config.init = {config.init}: "):
    plan.checkpoint = weights.read(os.path.expanduser(config.init))
    family = config.model.name.partition("-")[0]
    has_gelu = family in FAMILIES and "gelu" in fields_of(family)
    if has_gelu and config.model.gelu is None:
      config.model.gelu = plan.checkpoint.gelu


def _keep_head(config: ConfigDict):
  """Sees to it that no evaluator judges a head of zeros."""
  judged = any(each.type != "fewshot" for each in config.evals.values())
  config.init_head = "keep" if judged else "auto"


def take_start(plan: Plan):
  """Grows the weights if the config says so, and fits them to the model."""
  config, checkpoint = plan.config, plan.checkpoint
  if checkpoint is None or plan.abstract_params is None:
    return
  with plan.collecting(f"config.init = {config.init}: "):
    _check_head(plan)
    params, grown = _grow(plan)
    plan.initial_params, head = weights.fit(
      params,
      plan.abstract_params,
      head=config.init_head,
      head_bias=config.model.head_bias,
    )
    plan.initial_note = f"{grown}{head}"


def _grow(plan: Plan) -> tuple[dict, str]:
  """Returns the weights for the run's token grid, and what was done."""
  params, how = plan.checkpoint.params, plan.config.init_growth
  if how == "none":
    return params, ""
  _check_growth(plan.config)
  grid = weights.token_grid(params, plan.checkpoint.image_size)
  wanted = tuple(side // plan.model.patch for side in plan.image_size)
  if grid == wanted:
    return params, ""
  if how == "tiles":
    factor = weights.whole_factor(grid, wanted)
    grown = weights.grow(params, factor=factor, grid=grid)
    said = f"{factor} x {factor} tiles of the old mixing"
  else:
    grown = weights.grow(params, tokens=wanted, grid=grid)
    said = "the old mixing interpolated, which is beyond the paper"
    if family_of(plan.config.model.name) == "ViT":
      said = "the old position embeddings interpolated"
  sizes = " to ".join(f"{h} x {w}" for h, w in (grid, wanted))
  return grown, f"Grown from {sizes} tokens: {said}. "


def _check_growth(config: ConfigDict):
  """Raises UserError if the model's family does not grow like this."""
  family, how = family_of(config.model.name), config.init_growth
  if family == "BiT":
    raise UserError(
      f"config.init_growth = {how!r}, but {config.model.name} takes images of "
      "any size as it is: leave it out."
    )
  if family == "ViT" and how == "tiles":
    raise UserError(
      "config.init_growth = 'tiles' copies a Mixer's token-mixing MLPs for "
      f"every tile of a larger image, and {config.model.name} has none: take "
      "'interpolate', which resizes its position embeddings."
    )


def _check_head(plan: Plan):
  """Raises UserError if a run's head would stand for other classes."""
  if plan.config.init_head != "auto" or plan.source is None:
    return
  folder = Path(plan.config.init).expanduser()
  trained = weights.trained_classes(folder) or plan.class_names
  if len(trained) == plan.source.num_classes and trained != plan.class_names:
    raise UserError(
      "The head was trained on other classes, or in another order"
      f" ({folder / weights.CLASSES}): give images in folders that file with"
      " config.data.classes, or say with config.init_head whether to 'keep' the"
      " head or to begin with 'zeros'."
    )
