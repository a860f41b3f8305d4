# SPDX-License-Identifier: Apache-2.0
"""Explains a mismatch between parameters and a model."""

import math

from mixer.weights.baseline_sizes import BitSizes, VitSizes
from mixer.weights.infer_model import read_sizes
from mixer.weights.sizes import Sizes


def explain(params: dict, wanted: dict, head: str) -> str:
  """Explains the differences in shape, and the way out.

  Args:
    params: nested dict of arrays.
    wanted: the model's parameters, or their shapes.
    head: as in `merge_params`.
  """
  given, model = read_sizes(params), read_sizes(wanted)
  if given is None or model is None or given.family != model.family:
    return _explain_families(params, wanted)
  bodies = {"Mixer": _mixer, "ViT": _vit, "BiT": _bit}
  reasons = [bodies[given.family](given, model)]
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
  reasons = [reason for reason in reasons if reason]
  return " ".join(reasons) or "Parameters are missing or left over."


def _mixer(given: Sizes, model: Sizes) -> str:
  if _trunk(given) != _trunk(model):
    return _of_another(given, model)
  if given.patch != model.patch:
    return _patches(given, model)
  if given.tokens != model.tokens:
    return _mixed_tokens(given, model)
  if given.tokens_mlp != model.tokens_mlp:
    return (
      f"They have {given.tokens_mlp:,} hidden units in token mixing, the model "
      f"{model.tokens_mlp:,}: set config.model.tokens_mlp={given.tokens_mlp}"
      f"{_grown(given)}."
    )
  return ""


def _vit(given: VitSizes, model: VitSizes) -> str:
  def trunk(sizes):
    return sizes.hidden, sizes.blocks, sizes.mlp, sizes.heads

  if trunk(given) != trunk(model):
    return _of_another(given, model)
  if given.patch != model.patch:
    return _patches(given, model)
  if given.pool != model.pool:
    has = "a" if given.pool == "token" else "no"
    return (
      f"They have {has} class token, and the model pools by {model.pool!r}: "
      f"set config.model.pool={given.pool!r}."
    )
  if given.tokens != model.tokens:
    return (
      f"They know the places of {_tokens(given)}, the model has "
      f"{_tokens(model)}: interpolate them (config.init_growth='interpolate')."
    )
  if given.representation != model.representation:
    return (
      f"They have {given.representation or 'no'} hidden units under the head, "
      f"the model {model.representation or 'none'}: set "
      f"config.model.representation={given.representation or 0}, or begin with "
      "a new head (config.init_head='zeros')."
    )
  return ""


def _bit(given: BitSizes, model: BitSizes) -> str:
  if (given.width, given.units) != (model.width, model.units):
    return _of_another(given, model)
  return ""


def _of_another(given, model) -> str:
  return (
    f"They are of {given.name}, the model is {model.name}: choose the same "
    "with config.model.name."
  )


def _patches(given, model) -> str:
  return (
    f"They are for patches of {given.patch} px, the model has {model.patch}: "
    "take a variant with the same patch, or other weights."
  )


def _explain_families(params: dict, wanted: dict) -> str:
  families = [_family(tree) for tree in (params, wanted)]
  if families[0] == families[1]:
    return "Choose the variant and the resolution that they were made for."
  return (
    f"They are of {families[0]}, the model is {families[1]}: choose the same "
    "with config.model.name."
  )


def _family(params: dict) -> str:
  """Returns the family that the parameters' names belong to, in words."""
  for name, family in (
    ("MixerBlock_0", "a Mixer"),
    ("Transformer", "a ViT"),
    ("root_block", "a BiT ResNet"),
  ):
    if name in params:
      return family
  return f"another model ({', '.join(list(params)[:3]) or 'without names'})"


def _mixed_tokens(given: Sizes, model: Sizes) -> str:
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


def _tokens(sizes: Sizes | VitSizes) -> str:
  if sizes.image_size is None:
    return f"{sizes.tokens:,} tokens"
  return f"{sizes.tokens:,} tokens ({sizes.image_size[0]} px / {sizes.patch})"


def _trunk(sizes: Sizes) -> tuple[int, ...]:
  return sizes.hidden, sizes.blocks, sizes.channels_mlp


def _grown(sizes: Sizes) -> str:
  factor = sizes.factor
  return f", as they were grown by {factor}" if (factor or 1) > 1 else ""
