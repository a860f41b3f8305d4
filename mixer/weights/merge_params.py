# SPDX-License-Identifier: Apache-2.0
"""Merges loaded parameters into a model's, or explains why they do not fit."""

import math
import re

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mixer.errors import UserError
from mixer.models.base import TokenModel
from mixer.models.infer import describe_params, infer
from mixer.models.vit import VisionTransformer

_SHOWN = 8


def merge_params(
  params: dict,
  abstract_params: dict,
  *,
  head: str = "auto",
  head_bias: float = 0.0,
) -> tuple[dict, str]:
  """Checks names and shapes, and keeps or replaces the head.

  Args:
    params: nested dict of arrays, from `mixer.weights.load`.
    abstract_params: the model's parameters, or their shapes.
    head: "keep" the head, start it from "zeros" (as the paper fine-tunes), or
      "auto": keep it where the number of classes is the same.
    head_bias: initial value of a new head's bias.

  Returns:
    float32 parameters for the model, and a sentence about the head.

  Raises:
    UserError: explains why they do not fit, and lists every parameter that is
      missing, left over or of another shape.
  """
  loaded = flatten_dict(params, sep="/")
  expected = flatten_dict(abstract_params, sep="/")
  head_shapes = {k: v.shape for k, v in expected.items() if _is_head(k)}
  is_same = all(
    name in loaded and loaded[name].shape == shape
    for name, shape in head_shapes.items()
  )
  body = {k: v for k, v in loaded.items() if not _is_head(k)}
  if not head_shapes:
    merged, note = body, "The model has no head."
  elif head == "keep" or (head == "auto" and is_same):
    merged, note = loaded, "The head of the weights is kept."
  else:
    new_head = {
      name: np.full(shape, head_bias if name == "head/bias" else 0)
      for name, shape in head_shapes.items()
    }
    if "pre_logits" not in abstract_params:
      # ViT's hidden layer under the head goes with it.
      body = {k: v for k, v in body.items() if not k.startswith("pre_logits/")}
    merged = body | new_head
    [width] = head_shapes["head/bias"]
    old_width = loaded["head/bias"].size if "head/bias" in loaded else 0
    note = f"The head ({old_width} classes) is replaced by zeros ({width})."

  misfits = [
    name
    for name in sorted({*merged, *expected}, key=_natural_key)
    if _shape(merged, name) != _shape(expected, name)
  ]
  if misfits:
    lines = [
      f"{name}: {_shape(merged, name)} in the weights, "
      f"{_shape(expected, name)} in the model"
      for name in misfits[:_SHOWN]
    ]
    if len(misfits) > _SHOWN:
      lines.append(f"and {len(misfits) - _SHOWN:,} more")
    reason = _explain(params, abstract_params, misfits)
    raise UserError(
      "\n  ".join([f"The weights do not fit the model. {reason}", *lines])
    )
  arrays = {k: np.asarray(v, np.float32) for k, v in merged.items()}
  return unflatten_dict(arrays, sep="/"), note


def _is_head(name: str) -> bool:
  return name.startswith("head/")


def _shape(flat: dict, name: str) -> tuple[int, ...] | str:
  return flat[name].shape if name in flat else "missing"


def _natural_key(name: str) -> list[str]:
  """Sorts block 10 behind block 9."""
  return [x.zfill(3) if x.isdigit() else x for x in re.split(r"(\d+)", name)]


def _explain(params: dict, abstract_params: dict, misfits: list[str]) -> str:
  """Returns a sentence about two models, and the way from one to the other."""
  loaded, model = infer(params), infer(abstract_params)
  theirs, ours = describe_params(params), describe_params(abstract_params)
  if loaded == model and theirs == ours:
    return "Parameters are missing, left over or of another shape."
  if all(name.startswith(("head/", "pre_logits/")) for name in misfits):
    return (
      "Only their head differs: give the model the same in config.model, or a "
      "new one (config.init_head='zeros')."
    )
  remedy = "choose the same in config.model, or take other weights"
  if type(loaded) is type(model) and isinstance(model, TokenModel):
    tokens = (
      loaded.trained_tokens(params),
      model.trained_tokens(abstract_params),
    )
    sizes = [(each.patch, each.hidden, each.blocks) for each in (loaded, model)]
    if tokens[0] != tokens[1] and sizes[0] == sizes[1]:
      remedy = _growth(loaded, *tokens)
  return f"They are of {theirs}; the model is {ours}: {remedy}."


def _growth(loaded: TokenModel, old: int, new: int) -> str:
  """Returns the way to grow weights from `old` tokens to `new`."""
  factor = math.isqrt(new // old)
  if isinstance(loaded, VisionTransformer):
    return "interpolate them (config.init_growth='interpolate')"
  if factor**2 * old != new:
    return (
      "no whole factor apart, so interpolate (config.init_growth='interpolate',"
      " beyond the paper), or take images of the old size"
    )
  return (
    f"grow them by {factor} (config.init_growth='tiles' with "
    f"config.model.tokens_mlp={factor**2 * loaded.tokens_mlp})"
  )
