# SPDX-License-Identifier: Apache-2.0
"""Models by name."""

import dataclasses
import difflib
from typing import NamedTuple

from flax import linen as nn

from mixer.errors import nearest
from mixer.models import bit, mixer, mixer_variations, vit


class Family(NamedTuple):
  """Models of one kind.

  module: their class.
  variants: the published ones' sizes by name.
  columns: which fields those sizes are.
  mixes_tokens: whether their blocks begin with that, see `residual.REMAT`.
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


def names(family: str | None = None) -> list[str]:
  """All names, or a family's, whose sizes are given by a table."""
  families = FAMILIES if family is None else {family: FAMILIES[family]}
  return [name for each in families.values() for name in each.variants]


def family_of(name: str) -> str:
  """The family of a name that `create` takes, such as "ViT" of "ViT-B/16".

  Raises:
    ValueError: there is no such model; with the nearest names.
  """
  family = name.partition("-")[0]
  if family not in FAMILIES or name not in (family, *FAMILIES[family].variants):
    every = [*names(), *FAMILIES]
    near = nearest(name, every, most=4) or every
    raise ValueError(f"There is no model {name!r}. Nearest: {', '.join(near)}.")
  return family


def sizes(name: str) -> dict[str, object]:
  """The fields that a table gives a name; none for a family's name."""
  family = FAMILIES[name.partition("-")[0]]
  return dict(zip(family.columns, family.variants.get(name, ()), strict=False))


def fields_of(family: str) -> dict[str, dataclasses.Field]:
  """What `create` takes for a family's models, beside num_classes."""
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
    **fields: any field of the model, over the table's value.

  Raises:
    ValueError: unknown name or field, a size is missing, or the family has no
      such policy for `remat`; with what there is.
  """
  family = family_of(name)
  fields = sizes(name) | fields
  _check_fields(family, name, fields)
  return FAMILIES[family].module(num_classes=num_classes, **fields)


def _check_fields(family: str, name: str, given: dict):
  fields = fields_of(family)
  for field in given:
    if field not in fields:
      near = difflib.get_close_matches(field, fields, n=1, cutoff=0) or fields
      raise ValueError(
        f"{name} has no field {field!r}. Did you mean {next(iter(near))!r}? "
        f"Its fields: {', '.join(fields)}."
      )
  if given.get("remat") == "token_mixing" and not FAMILIES[family].mixes_tokens:
    raise ValueError(
      f"remat='token_mixing' is of Mixers and ViTs, and not of {name}: take "
      "'products' or 'blocks'."
    )
  missing = [
    field.name
    for field in fields.values()
    if field.default is dataclasses.MISSING and field.name not in given
  ]
  if missing:
    variants = names(family)
    named = f", or name a variant: {', '.join(variants)}" if variants else ""
    raise ValueError(
      f"{name} needs {', '.join(missing)}: give them as fields{named}."
    )
