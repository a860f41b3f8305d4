# SPDX-License-Identifier: Apache-2.0
"""Loaded parameters against the model that is to take them."""

import math
import re

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mixer.errors import UserError
from mixer.weights.sizes import Sizes, sizes_of

_SHOWN = 8


def fit(
  params: dict, wanted: dict, *, head: str = "auto", head_bias: float = 0.0
) -> tuple[dict, str]:
  """Checks names and shapes, and keeps or replaces the head.

  Args:
    params: nested dict of arrays, from `mixer.weights.load`.
    wanted: the model's parameters or their shapes.
    head: "keep" the head, start it from "zeros" (as the paper fine-tunes), or
      "auto": keep it where the number of classes is the same.
    head_bias: initial value of a new head's bias.

  Returns:
    float32 parameters for the model, and a sentence about the head.

  Raises:
    UserError: why they do not fit, and every parameter that is missing, left
      over or of another shape.
  """
  given = flatten_dict(params, sep="/")
  needed = flatten_dict(wanted, sep="/")
  new_head = {
    name: np.full(shape.shape, head_bias if name == "head/bias" else 0)
    for name, shape in needed.items()
    if name.startswith("head/")
  }
  same = all(
    name in given and given[name].shape == new.shape
    for name, new in new_head.items()
  )
  if not new_head:
    kept, sentence = {}, "The model has no head."
  elif head == "keep" or (head == "auto" and same):
    kept = {k: v for k, v in given.items() if k.startswith("head/")}
    sentence = "The head of the weights is kept."
  else:
    kept = new_head
    width = new_head["head/bias"].shape[0]
    found = given.get("head/bias", np.zeros(0)).size
    sentence = f"The head ({found} classes) is replaced by zeros ({width})."
  body = {k: v for k, v in given.items() if not k.startswith("head/")}
  if kept is new_head and "pre_logits" not in wanted:
    # ViT's hidden layer under the head goes with it.
    body = {k: v for k, v in body.items() if not k.startswith("pre_logits/")}
  result = body | kept

  problems = [
    f"{name}: {'missing' if name not in result else result[name].shape} in the "
    f"weights, {needed[name].shape if name in needed else 'missing'} in the "
    "model"
    for name in sorted({*result, *needed}, key=_in_order)
    if name not in result
    or name not in needed
    or result[name].shape != needed[name].shape
  ]
  if problems:
    listed = "\n  ".join(problems[:_SHOWN])
    more = len(problems) - _SHOWN
    raise UserError(
      f"The weights do not fit the model. {_explain(params, wanted, head)}"
      f"\n  {listed}{f'{chr(10)}  and {more:,} more' if more > 0 else ''}"
    )
  arrays = {k: np.asarray(v, np.float32) for k, v in result.items()}
  return unflatten_dict(arrays, sep="/"), sentence


def _in_order(name: str) -> list:
  """Sorts block 10 behind block 9."""
  return [x.zfill(3) if x.isdigit() else x for x in re.split(r"(\d+)", name)]


def _explain(params: dict, wanted: dict, head: str) -> str:
  """What the shapes come to, and what to do."""
  given, model = sizes_of(params), sizes_of(wanted)
  if given is None or model is None:
    return _explain_families(params, wanted)
  reasons = []
  if _trunk(given) != _trunk(model):
    reasons.append(
      f"They are of {_name(given)}, the model is {_name(model)}: choose the "
      "same with config.model.name."
    )
  elif given.patch != model.patch:
    reasons.append(
      f"They are for patches of {given.patch} px, the model has {model.patch}: "
      "take a variant with the same patch, or other weights."
    )
  elif given.tokens != model.tokens:
    reasons.append(_explain_tokens(given, model))
  elif given.tokens_mlp != model.tokens_mlp:
    reasons.append(
      f"They have {given.tokens_mlp:,} hidden units in token mixing, the model "
      f"{model.tokens_mlp:,}: set config.model.tokens_mlp={given.tokens_mlp}"
      f"{_grown(given)}."
    )
  if given.image_channels != model.image_channels:
    reasons.append(
      f"They are for images of {given.image_channels} channels, the model for "
      f"{model.image_channels}."
    )
  if head == "keep" and given.num_classes != model.num_classes:
    reasons.append(
      f"Their head, which config.init_head='keep' keeps, has "
      f"{given.num_classes or 0} classes, the model's {model.num_classes}: set "
      "config.model.num_classes, or config.init_head='zeros'."
    )
  return " ".join(reasons) or "Parameters are missing or left over."


def _explain_families(params: dict, wanted: dict) -> str:
  families = [_family(tree) for tree in (params, wanted)]
  if families[0] == families[1]:
    return "Choose the variant and the resolution that they were made for."
  return (
    f"They are of {families[0]}, the model is {families[1]}: choose the same "
    "with config.model.name."
  )


def _family(params: dict) -> str:
  """By the names that the authors gave."""
  for name, family in (
    ("MixerBlock_0", "a Mixer"),
    ("Transformer", "a ViT"),
    ("root_block", "a BiT ResNet"),
  ):
    if name in params:
      return family
  return f"another model ({', '.join(list(params)[:3]) or 'without names'})"


def _explain_tokens(given: Sizes, model: Sizes) -> str:
  """Another number of tokens: growth by a whole factor, or by any other."""
  counts = f"They mix {_tokens(given)}, the model {_tokens(model)}: "
  factor = math.isqrt(model.tokens // given.tokens)
  if factor**2 * given.tokens != model.tokens:
    return (
      f"{counts}no whole factor apart, so interpolate "
      "(config.init_growth='interpolate', beyond the paper), or take images of "
      "the old size."
    )
  grown = factor**2 * given.tokens_mlp
  units = ""
  if model.tokens_mlp != grown:
    units = f" with config.model.tokens_mlp={grown}"
  return f"{counts}grow them by {factor} (config.init_growth='tiles'{units})."


def _tokens(sizes: Sizes) -> str:
  if sizes.image_size is None:
    return f"{sizes.tokens:,} tokens"
  return f"{sizes.tokens:,} tokens ({sizes.image_size[0]} px / {sizes.patch})"


def _trunk(sizes: Sizes) -> tuple[int, ...]:
  return sizes.hidden, sizes.blocks, sizes.channels_mlp


def _name(sizes: Sizes) -> str:
  """Mixer-B/16, or its sizes if the paper has no such Mixer."""
  return sizes.variant or (
    f"a Mixer of {sizes.blocks} blocks, {sizes.hidden} channels and "
    f"{sizes.channels_mlp:,} hidden units"
  )


def _grown(sizes: Sizes) -> str:
  factor = sizes.factor
  return f", as they were grown by {factor}" if (factor or 1) > 1 else ""
