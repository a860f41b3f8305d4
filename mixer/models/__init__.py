# SPDX-License-Identifier: Apache-2.0
"""Models by name: the families, their published variants, and `create`."""

import dataclasses
from typing import NamedTuple

from flax import linen as nn

from mixer.errors import nearest
from mixer.models import bit, mixer, mixer_variations, vit
from mixer.models.kernels import KERNELS
from mixer.models.layers import GELUS, REMAT


class Family(NamedTuple):
  """A family of models.

  module: its class.
  variants: sizes of the published models, by name.
  columns: names of those sizes' fields.
  mixes_tokens: whether its blocks begin with token mixing or self-attention,
    which the remat policy "token_mixing" saves (`layers.REMAT`).
  """

  module: type[nn.Module]
  variants: dict[str, tuple]
  columns: tuple[str, ...]
  mixes_tokens: bool = True


FAMILIES = {
  "Mixer": Family(mixer.MlpMixer, mixer.VARIANTS, mixer.COLUMNS),
  "ViT": Family(vit.VisionTransformer, vit.VARIANTS, vit.COLUMNS),
  "BiT": Family(bit.BitResNet, bit.VARIANTS, bit.COLUMNS, mixes_tokens=False),
  "MixerVariation": Family(mixer_variations.MixerVariation, {}, mixer.COLUMNS),
}

# Words that fields of models take; `config.SCHEMA` lists the same.
CHOICES = {
  "gelu": GELUS,
  "remat": tuple(REMAT),
  "kernels": KERNELS,
  "pixels": (None, "imagenet"),
  "pool": vit.POOLS,
}


def names(family: str | None = None) -> list[str]:
  """Returns the names of all published variants, or of one family's."""
  families = FAMILIES if family is None else {family: FAMILIES[family]}
  return [name for each in families.values() for name in each.variants]


def family_of(name: str) -> str:
  """Returns the family of a model's name, such as "ViT" for "ViT-B/16".

  Raises:
    ValueError: unknown model; names the nearest ones.
  """
  family = name.partition("-")[0]
  if family not in FAMILIES or name not in (family, *FAMILIES[family].variants):
    every, short = [*names(), *FAMILIES], _letters(name)
    ends = [each for each in every if _letters(each).endswith(short)]
    near = ends or nearest(name, every, most=4) or every
    raise ValueError(f"There is no model {name!r}. Nearest: {', '.join(near)}.")
  return family


def _letters(name: str) -> str:
  """Returns a name's letters and digits: b16 for B-16, B_16 and B/16."""
  return "".join(filter(str.isalnum, name)).lower()


def sizes(name: str) -> dict[str, object]:
  """Returns a variant's sizes as fields; none for a family's name."""
  family = FAMILIES[name.partition("-")[0]]
  return dict(zip(family.columns, family.variants.get(name, ()), strict=False))


def fields_of(family: str) -> dict[str, dataclasses.Field]:
  """Returns the fields that `create` takes for a family, except num_classes."""
  return {
    field.name: field
    for field in dataclasses.fields(FAMILIES[family].module)
    if field.name not in ("parent", "name", "num_classes")
  }


def create(name: str, *, num_classes: int | None = None, **fields) -> nn.Module:
  """Creates a model.

  Args:
    name: a variant such as "Mixer-B/16", or a family such as "Mixer", whose
      sizes must then be given as fields.
    num_classes: width of the head; 0 or None for no head.
    **fields: any field of the model; overrides the variant's sizes.

  Raises:
    ValueError: unknown name, field or word for a field, missing size, or a
      `remat` policy that the family does not have; names the valid ones.
  """
  family = family_of(name)
  fields = sizes(name) | fields
  _check_fields(family, name, fields)
  return FAMILIES[family].module(num_classes=num_classes, **fields)


def _check_fields(family: str, name: str, values: dict):
  fields = fields_of(family)
  for field in values:
    if field not in fields:
      [near] = nearest(field, fields, cutoff=0)
      raise ValueError(
        f"{name} has no field {field!r}. Did you mean {near!r}? "
        f"Its fields: {', '.join(fields)}."
      )
  for field, words in CHOICES.items():
    if field in values and values[field] not in words:
      raise ValueError(
        f"{field}={values[field]!r} is none of {', '.join(words)}."
      )
  if (
    values.get("remat") == "token_mixing" and not FAMILIES[family].mixes_tokens
  ):
    raise ValueError(
      f"remat='token_mixing' is for Mixers and ViTs, and not for {name}: take "
      "'products' or 'blocks'."
    )
  missing = [
    field.name
    for field in fields.values()
    if field.default is dataclasses.MISSING and field.name not in values
  ]
  if missing:
    variants = names(family)
    named = f", or name a variant: {', '.join(variants)}" if variants else ""
    raise ValueError(
      f"{name} needs {', '.join(missing)}: give them as fields{named}."
    )
