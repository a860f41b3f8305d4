# SPDX-License-Identifier: Apache-2.0
"""A schema: keys of a ConfigDict with their defaults, types and checks."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mixer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Key:
  """One key of the schema.

  default: value that a recipe starts from; None is always allowed where it is
    the default.
  check: yields the end of a sentence "config.KEY = VALUE ..." for each fault of
    a value; None allows every value of the type.
  kind: type of a value; the type of the default if not given.
  """

  default: Any
  check: Callable[[Any], Iterator[str]] | None = None
  kind: type | None = None


def at_least(low: float, high: float = math.inf, hint: str = "") -> Callable:
  """Checks for finite numbers from `low` to `high`, both included."""
  allowed = f"{low} to {high}" if high < math.inf else f"{low} or more"

  def check(value):
    if value is not None and not (
      low <= value <= high and math.isfinite(value)
    ):
      yield f"must be {allowed}{hint}."

  return check


def one_of(*choices: str | None) -> Callable:
  """Checks for one of several words."""

  def check(value):
    if value not in choices:
      yield f"is none of {', '.join(map(repr, choices))}."

  return check


def counts_of(meaning: str) -> Callable:
  """Checks for a tuple of whole numbers above 0."""

  def check(value):
    if value is not None and not (
      value and all(isinstance(n, int) and n > 0 for n in value)
    ):
      yield f"must be {meaning}."

  return check


def above_zero(value: float) -> Iterator[str]:
  """Checks for a finite number above 0; yields complaints."""
  if not 0 < value < math.inf:
    yield "must be above 0."


def rates(values: tuple) -> Iterator[str]:
  """Checks learning rates; yields complaints."""
  for rate in values:
    if not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
      yield f"has {rate!r}: rates are above 0."


def multipliers(pairs: tuple) -> Iterator[str]:
  """Checks pairs of a regular expression and a factor; yields complaints."""
  for pair in pairs:
    match pair:
      case (str(pattern), int() | float() as factor) if factor >= 0:
        try:
          re.compile(pattern)
        except re.error as error:
          yield f"has the pattern {pattern!r}: {error}."
      case _:
        yield (
          f"has {pair!r}, which is not a pair of a pattern and a factor of at "
          "least 0."
        )


# Of durations, with the type of their values.
UNITS = {"steps": int, "epochs": float, "examples": int}


def define_duration(prefix: str) -> dict[str, Key]:
  """Returns the three keys of a duration, all unset."""
  return {f"{prefix}_{unit}": Key(None, kind=x) for unit, x in UNITS.items()}


def defaults(schema: dict[str, Key | dict]) -> ConfigDict:
  """Returns a config of all defaults."""
  config = ConfigDict()
  for name, key in schema.items():
    if isinstance(key, dict):
      config[name] = defaults(key)
    else:
      empty = key.default is None
      config[name] = placeholder(key.kind) if empty else key.default
  return config


class EpochLengthError(UserError):
  """A duration is in epochs, and the number of examples is unknown."""


def resolve_steps(
  config: ConfigDict, prefix: str, *, batch: int, examples: int | None
) -> int | None:
  """Converts a duration to updates.

  Args:
    config: the part of the config that holds the duration's three keys.
    prefix: the duration's name, such as "total".
    batch: examples per update.
    examples: examples per epoch.

  Returns:
    Updates, rounded to the nearest and at least 1; None if none is set.

  Raises:
    EpochLengthError: the unit is epochs, and `examples` is not known.
    UserError: more than one unit is set, or the value is not a length.
  """
  values = {u: config[f"{prefix}_{u}"] for u in UNITS}
  values = {unit: value for unit, value in values.items() if value}
  if not values:
    return None
  if len(values) > 1:
    both = " and ".join(f"{prefix}_{u} = {v}" for u, v in values.items())
    raise UserError(f"{both} are both set: set all but one to 0.")
  [(unit, value)] = values.items()
  if not 0 <= value < math.inf:
    raise UserError(f"{prefix}_{unit} = {value} is not a length.")
  if unit == "steps":
    return value
  if unit == "epochs":
    if not examples:
      raise EpochLengthError(
        "Durations in epochs need the number of training examples: prepare the "
        "data set, or set config.data.examples."
      )
    value *= examples
  return max(round(value / batch), 1)
