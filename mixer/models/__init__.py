# SPDX-License-Identifier: Apache-2.0
"""Models by name."""

import dataclasses
import difflib

from flax import linen as nn

from mixer.models import bit, mixer

# Family -> module class, its table of variants, the table's columns.
FAMILIES = {
  "Mixer": (mixer.MlpMixer, mixer.VARIANTS, mixer.COLUMNS),
  "BiT": (bit.BitResNet, bit.VARIANTS, bit.COLUMNS),
}


def names() -> list[str]:
  """All names that `create` takes with their sizes given by a table."""
  return [name for _, table, _ in FAMILIES.values() for name in table]


def sizes(name: str) -> dict[str, int]:
  """The fields that a table gives a name; none for a family's name."""
  _, table, columns = FAMILIES[name.partition("-")[0]]
  return dict(zip(columns, table.get(name, ()), strict=False))


def create(name: str, *, num_classes: int | None = None, **fields) -> nn.Module:
  """Creates a model.

  Args:
    name: a variant such as "Mixer-B/16", or a family such as "Mixer", whose
      sizes must then be given as fields.
    num_classes: width of the head; 0 or None for no head.
    **fields: any field of the model, over the table's value.

  Raises:
    ValueError: unknown name or field, or a size is missing; with the nearest
      names.
  """
  family = name.partition("-")[0]
  if family not in FAMILIES or name not in (family, *FAMILIES[family][1]):
    every = [*names(), *FAMILIES]
    near = difflib.get_close_matches(name, every, n=4, cutoff=0.5) or every
    raise ValueError(f"There is no model {name!r}. Nearest: {', '.join(near)}.")
  module, _, _ = FAMILIES[family]
  fields = sizes(name) | fields
  _check_fields(module, name, fields)
  return module(num_classes=num_classes, **fields)


def _check_fields(module: type[nn.Module], name: str, given: dict):
  fields = {
    field.name: field
    for field in dataclasses.fields(module)
    if field.name not in ("parent", "name", "num_classes")
  }
  for field in given:
    if field not in fields:
      near = difflib.get_close_matches(field, fields, n=1, cutoff=0) or fields
      raise ValueError(
        f"{name} has no field {field!r}. Did you mean {next(iter(near))!r}? "
        f"Its fields: {', '.join(fields)}."
      )
  missing = [
    field.name
    for field in fields.values()
    if field.default is dataclasses.MISSING and field.name not in given
  ]
  if missing:
    raise ValueError(
      f"{name} needs {', '.join(missing)}: give them as fields, or name a "
      f"variant: {', '.join(names())}."
    )
