# SPDX-License-Identifier: Apache-2.0
"""Creates a model from its parameters or from the config of its run."""

import dataclasses
import math
import re

from flax import linen as nn
from flax.traverse_util import flatten_dict

from mixer.errors import UserError, format_list
from mixer.models import FAMILIES, create, family_of, fields_of
from mixer.models.base import ImageModel, TokenModel

Shapes = dict[str, tuple[int, ...]]
# Fields that change neither the parameters nor, in float32, the logits.
_TRAINING_FIELDS = {
  "scan",
  "kernels",
  *(field.name for field in dataclasses.fields(ImageModel)),
} - {"num_classes", "image_channels"}


def infer(params: dict) -> nn.Module | None:
  """Returns the model that parameters belong to, with default options.

  Args:
    params: nested dict of arrays, or of anything that has a shape.

  Returns:
    A Mixer, a ViT or a BiT, without num_classes if it has no head; None for
    other parameters, also of a MixerVariation: shapes do not tell its options.
  """
  shapes = {k: v.shape for k, v in flatten_dict(params, sep="/").items()}
  families = {"Mixer": _mixer_fields, "ViT": _vit_fields, "BiT": _bit_fields}
  for family, fields_from in families.items():
    try:
      fields = fields_from(shapes)
    except (KeyError, ValueError):  # parameters of another family
      continue
    return create(family, num_classes=_width(shapes, "head"), **fields)
  return None


def infer_model(
  params: dict, *, config: dict | None = None, gelu: str = "tanh", **fields
) -> nn.Module:
  """Creates the model that parameters belong to.

  Args:
    params: nested dict of arrays.
    config: the part `model` of the run's config.json, which names the model;
      None infers it from the shapes.
    gelu: "tanh" or "exact"; ignored by a BiT, which has none.
    **fields: override any field of the model.

  Raises:
    UserError: there is no config, and the parameters do not belong to a Mixer,
      a ViT or a BiT.
    ValueError: the config does not name a model.
  """
  model = infer(params) if config is None else create_from_config(config)
  if model is None:
    raise UserError(
      "These are not the parameters of a Mixer, a ViT or a BiT, so the model "
      "cannot be inferred: name the run's folder, whose config.json names the "
      "model, or create it with mixer.models.create."
    )
  if hasattr(model, "gelu"):
    fields = {"gelu": gelu} | fields
  return model.clone(**fields)


def create_from_config(config: dict) -> nn.Module:
  """Creates the model of a run, without the options of its training.

  Args:
    config: the part `model` of the run's config.json.

  Raises:
    ValueError: the config does not name a model, or lacks one of its sizes.
  """
  name = str(config.get("name"))
  known = {"num_classes", *fields_of(family_of(name))} - _TRAINING_FIELDS
  fields = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in config.items()
    if key in known and value is not None
  }
  return create(name, **fields)


def infer_image_size(
  params: dict, model: nn.Module | None = None
) -> tuple[int, int] | None:
  """Returns height and width of the square image that parameters are for.

  None for a BiT, which takes any size, for a number of tokens that is unknown
  or not a square, and for parameters of another family, unless `model` is
  given.
  """
  model = model or infer(params)
  if not isinstance(model, TokenModel):
    return None
  tokens = model.trained_tokens(params)
  if tokens is None:
    return None
  side = math.isqrt(tokens)
  return (side * model.patch,) * 2 if side * side == tokens else None


def describe_params(params: dict) -> str:
  """Describes parameters, such as "Mixer-B/16, 196 tokens (224 px / 16)"."""
  model = infer(params)
  if model is None:
    if "VariedBlock_0" in params:
      return "a MixerVariation"
    return f"another model ({format_list([*params], shown=3)})"
  if not isinstance(model, TokenModel):
    return f"{describe(model)}, images of any size"
  size = infer_image_size(params)
  pixels = f" ({size[0]} px / {model.patch})" if size else ""
  return f"{describe(model)}, {model.trained_tokens(params):,} tokens{pixels}"


def describe(model: nn.Module) -> str:
  """Describes a model: "Mixer-B/16", or "a Mixer with patch=8, hidden=24, ...".

  Fields that differ from the variant follow its name, except the patch, which
  is part of it: "Mixer-S/8 with tokens_mlp=1024".
  """
  family = next(k for k, v in FAMILIES.items() if v.module is type(model))
  _, variants, columns, _ = FAMILIES[family]
  sizes = {column: getattr(model, column) for column in columns}
  for variant, values in variants.items():
    differences = {
      column: sizes[column]
      for column, value in zip(columns, values, strict=True)
      if column != "patch" and sizes[column] != value
    }
    if differences.keys() <= {"tokens_mlp"}:
      name = re.sub(r"/\d+$", f"/{sizes.get('patch')}", variant)
      break
  else:
    name, differences = f"a {family}", sizes
  for field in fields_of(family).values():
    value = getattr(model, field.name)
    if field.default not in (dataclasses.MISSING, value):
      differences[field.name] = value
  listed = ", ".join(f"{key}={value!r}" for key, value in differences.items())
  return f"{name} with {listed}" if listed else name


def _mixer_fields(shapes: Shapes) -> dict[str, object]:
  patch, _, image_channels, hidden = shapes["stem/kernel"]
  mixing = "MixerBlock_0/{}_mixing/Dense_0/kernel"
  _, tokens_mlp = shapes[mixing.format("token")]
  _, channels_mlp = shapes[mixing.format("channel")]
  return {
    "patch": patch,
    "hidden": hidden,
    "blocks": _count(shapes, r"MixerBlock_\d+/"),
    "tokens_mlp": tokens_mlp,
    "channels_mlp": channels_mlp,
    "image_channels": image_channels,
  }


def _vit_fields(shapes: Shapes) -> dict[str, object]:
  patch, _, image_channels, hidden = shapes["embedding/kernel"]
  block = "Transformer/encoderblock_0"
  _, mlp = shapes[f"{block}/MlpBlock_0/Dense_0/kernel"]
  _, heads, _ = shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"]
  _, _, _ = shapes["Transformer/posembed_input/pos_embedding"]
  return {
    "patch": patch,
    "hidden": hidden,
    "blocks": _count(shapes, r"Transformer/encoderblock_\d+/"),
    "mlp": mlp,
    "heads": heads,
    "pool": "token" if "cls" in shapes else "mean",
    "representation": _width(shapes, "pre_logits"),
    "image_channels": image_channels,
  }


def _bit_fields(shapes: Shapes) -> dict[str, object]:
  _, _, image_channels, channels = shapes["root_block/conv_root/kernel"]
  stages = range(1, _count(shapes, r"block\d+/") + 1)
  return {
    "width": channels / 64,
    "units": tuple(_count(shapes, rf"block{i}/unit\d+/") for i in stages),
    "image_channels": image_channels,
  }


def _count(shapes: Shapes, pattern: str) -> int:
  """Returns the number of modules whose path matches a pattern."""
  return len({m[0] for name in shapes if (m := re.match(pattern, name))})


def _width(shapes: Shapes, layer: str) -> int | None:
  """Returns the width of a dense layer; None if it is missing."""
  shape = shapes.get(f"{layer}/bias") or shapes.get(f"{layer}/kernel")
  return shape[-1] if shape else None
