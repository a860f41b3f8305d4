# SPDX-License-Identifier: Apache-2.0
"""Merges loaded parameters into a model's, or explains why they do not fit."""

import math
import re

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mixer.errors import UserError
from mixer.models import FAMILIES, fields_of
from mixer.models.base import TokenModel
from mixer.models.infer import (
  describe,
  describe_tokens,
  family_name,
  infer,
)
from mixer.models.vit import VisionTransformer

_SHOWN = 8
_INCOMPLETE = "Parameters are missing, left over or of another shape."


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

  problems = [
    f"{name}: {_shape(merged, name)} in the weights, "
    f"{_shape(expected, name)} in the model"
    for name in sorted({*merged, *expected}, key=_natural_key)
    if _shape(merged, name) != _shape(expected, name)
  ]
  if problems:
    lines = problems[:_SHOWN]
    if len(problems) > _SHOWN:
      lines.append(f"and {len(problems) - _SHOWN:,} more")
    reason = explain_mismatch(params, abstract_params, head)
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


def explain_mismatch(params: dict, abstract_params: dict, head: str) -> str:
  """Names the fields in which two models differ, and the way out.

  Arguments are those of `merge_params`.
  """
  loaded, model = infer(params), infer(abstract_params)
  if loaded is None or type(loaded) is not type(model):
    families = _family(params), _family(abstract_params)
    if families[0] == families[1]:
      return _INCOMPLETE
    return _choose_model(*families)
  family = family_name(model)
  differences = {
    field: (getattr(loaded, field), getattr(model, field))
    for field in [*fields_of(family), "num_classes"]
    if getattr(loaded, field) != getattr(model, field)
  }
  if differences.keys() & {*FAMILIES[family].columns} - {"tokens_mlp"}:
    return _choose_model(describe(loaded), describe(model))
  if isinstance(model, TokenModel):
    tokens = loaded.trained_tokens(params)
    if tokens != model.trained_tokens(abstract_params):
      return _explain_tokens(params, abstract_params)
  if head != "keep":
    differences.pop("num_classes", None)
  sentences = [
    f"{field} is {old!r} in the weights, {new!r} in the model: "
    f"{_remedy(field, old, new)}."
    for field, (old, new) in differences.items()
  ]
  return " ".join(sentences) or _INCOMPLETE


def _choose_model(loaded: str, model: str) -> str:
  return (
    f"They are of {loaded}, the model is {model}: choose the same with "
    "config.model.name, or take other weights."
  )


def _family(params: dict) -> str:
  """Returns the family that the parameters' names belong to, in words."""
  for name, family in (
    ("MixerBlock_0", "a Mixer"),
    ("VariedBlock_0", "a MixerVariation"),
    ("Transformer", "a ViT"),
    ("root_block", "a BiT ResNet"),
  ):
    if name in params:
      return family
  return f"another model ({', '.join(list(params)[:3]) or 'without names'})"


def _remedy(field: str, old: object, new: object) -> str:
  """Returns the way out of a difference in one field."""
  if field == "image_channels":
    return f"take weights for {new}-channel images"
  remedy = f"set config.model.{field}={old or 0!r}"
  if field in ("representation", "num_classes"):
    return f"{remedy}, or begin with a new head (config.init_head='zeros')"
  if field == "tokens_mlp":
    factor = math.isqrt(old // new)
    if factor > 1 and factor**2 * new == old:
      return f"{remedy}, as they were grown by {factor}"
  return remedy


def _explain_tokens(params: dict, abstract_params: dict) -> str:
  """Explains how weights grow to the model's number of tokens."""
  loaded, model = infer(params), infer(abstract_params)
  old = loaded.trained_tokens(params)
  new = model.trained_tokens(abstract_params)
  factor = math.isqrt(new // old)
  if isinstance(model, VisionTransformer):
    remedy = "interpolate them (config.init_growth='interpolate')"
  elif factor**2 * old != new:
    remedy = (
      "no whole factor apart, so interpolate (config.init_growth='interpolate',"
      " beyond the paper), or take images of the old size"
    )
  else:
    units = ""
    if model.tokens_mlp != factor**2 * loaded.tokens_mlp:
      units = f" with config.model.tokens_mlp={factor**2 * loaded.tokens_mlp}"
    remedy = f"grow them by {factor} (config.init_growth='tiles'{units})"
  return (
    f"They are for {describe_tokens(params)}, the model is for "
    f"{describe_tokens(abstract_params)}: {remedy}."
  )
