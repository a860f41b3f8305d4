# SPDX-License-Identifier: Apache-2.0
"""Configs against the schema and against each other; lists of complaints."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from mixer.config import (
  EVALUATORS,
  RENAMED,
  SCHEMA,
  default,
  evaluator,
  evaluator_schema,
)
from mixer.errors import (
  DatasetNotFoundError,
  RetryableError,
  UserError,
  did_you_mean,
)
from mixer.schema import EpochLengthError, Key

# Keys, or parts of the config, that a resumed run may change, because they do
# not change its result.
RESUME_SAFE_KEYS = (
  "accumulation",
  "checkpoint",
  "data.data_dir",
  "data.max_pixels",
  "data.on_bad_image",
  "data.prefetch",
  "data.worker_kind",
  "data.workers",
  "evals",
  "log",
  "max_per_device",
  "max_skipped",
  "model.kernels",
  "model.remat",
  "model.scan",
  "on_eval_error",
  "shard_state",
  "skip_evals",
  "sweep",
)
# Keys that may differ between the hosts of a run.
PER_HOST_KEYS = (
  "data.data_dir",
  "data.prefetch",
  "data.worker_kind",
  "data.workers",
)


@dataclasses.dataclass
class Complaints:
  """Faults of a config: sentences that also say how to correct it.

  missing: about data sets that are not on this machine.
  problems: about everything else.
  """

  missing: list[str] = dataclasses.field(default_factory=list)
  problems: list[str] = dataclasses.field(default_factory=list)

  @contextlib.contextmanager
  def collect(self, prefix: str = "", *, once: bool = False) -> Iterator[None]:
    """Collects errors raised inside; problems get the prefix.

    Args:
      prefix: the part of the config that they are about.
      once: drop a problem that another part has as well, from the same cause.
    """
    try:
      yield
    except RetryableError:
      raise
    except DatasetNotFoundError as error:
      if str(error) not in self.missing:
        self.missing.append(str(error))
    except EpochLengthError:
      pass  # follows from a complaint about the training split
    except ValueError as error:
      if not (once and any(x.endswith(str(error)) for x in self.problems)):
        self.problems.append(f"{prefix}{error}")

  def raise_all(self):
    """Raises UserError with all complaints, missing data sets first."""
    if lines := self.missing + self.problems:
      raise UserError("\n".join(lines))


def resolve(config: ConfigDict) -> ConfigDict:
  """Fills in the defaults and renames former keys.

  A locked ConfigDict does not notice `config.optimizer = {"learning_rat": 3}`.

  Raises:
    UserError: lists every key that the schema does not have, with the nearest
      one that it has, and every value of another type.
  """
  problems = []
  result = _resolve(config, default(), "", problems)
  for name, part in config.get("evals", {}).items():
    kind = part.get("type") if isinstance(part, ConfigDict) else None
    kind = kind or "classification"
    if kind not in EVALUATORS:
      problems.append(
        f"config.evals.{name}.type = {kind!r} is not an evaluator"
        f"{did_you_mean(kind, EVALUATORS)}"
      )
      continue
    defaults = evaluator(kind)
    result.evals[name] = _resolve(part, defaults, f"evals.{name}.", problems)
  if problems:
    raise UserError("\n".join(problems))
  return result


def _resolve(config, defaults, path, problems):
  """Returns a part of all defaults, updated by the same part of `config`."""
  result = defaults.copy_and_resolve_references()
  if not isinstance(config, ConfigDict):
    problems.append(f"config.{path[:-1]} = {config!r} is not a dict of keys.")
    return result
  # Former names last: a recipe has set them over a default of today's name.
  for key in sorted(config, key=lambda key: key not in defaults):
    value = config[key]
    if key not in defaults:
      key = RENAMED.get(key, key)
    name = path + key
    if key not in result:
      problems.append(
        f"config.{name} is not a key{did_you_mean(key, result, path)}"
      )
    elif name == "evals":
      pass
    # A part without default keys, such as optimizer.arguments, takes any.
    elif isinstance(result[key], ConfigDict) and result[key]:
      result[key] = _resolve(value, defaults[key], f"{name}.", problems)
    else:
      try:
        result[key] = value
      except (TypeError, ValueError):
        problems.append(
          f"config.{name} = {value!r} is of type {type(value).__name__}, not "
          f"{defaults.get_type(key).__name__}."
        )
  return result


def validate(config: ConfigDict) -> Iterator[str]:
  """Yields a sentence for every value that the schema does not allow."""
  yield from _validate(config, SCHEMA, "config.")
  for name, part in config.evals.items():
    schema = evaluator_schema(part.type)
    yield from _validate(part, schema, f"config.evals.{name}.")


def _validate(
  config: ConfigDict, schema: dict[str, Key | dict], path: str
) -> Iterator[str]:
  for name, key in schema.items():
    value = config[name]
    if isinstance(key, dict):
      yield from _validate(value, key, f"{path}{name}.")
    elif key.check is not None:
      for complaint in key.check(value):
        yield f"{path}{name} = {value!r} {complaint}"


def to_dict(config: ConfigDict) -> dict:
  """Converts a config to JSON's types."""
  return json.loads(config.to_json(sort_keys=True))


def beyond_defaults(config: dict) -> dict[str, object]:
  """Returns the values, by dotted keys, that are not the schema's defaults."""
  usual, config = (
    flatten_dict(x, sep=".") for x in (to_dict(default()), config)
  )
  return {key: x for key, x in config.items() if x != usual.get(key)}


def diff_configs(
  old: dict,
  new: dict,
  path: str = "",
  ignored: Sequence[str] = RESUME_SAFE_KEYS,
) -> Iterator[str]:
  """Yields "key: old -> new" for every difference.

  Args:
    old, new: from `to_dict`.
    path: of both in the config.
    ignored: keys, and parts of the config, that may differ.
  """
  for key in sorted({*old, *new}):
    name = f"{path}{key}"
    if name in ignored:
      continue
    before, after = old.get(key), new.get(key)
    if isinstance(before, dict) and isinstance(after, dict):
      yield from diff_configs(before, after, f"{name}.", ignored)
    elif before != after:
      yield f"{name}: {before!r} -> {after!r}"


def explain_order(old: dict, new: dict, start: int, total_steps: int) -> str:
  """Tells which examples a change of batch, data or seed repeats or skips.

  Args:
    old, new: from `to_dict`, resolved.
    start: step from which on the new config holds.
    total_steps: the last step.

  Returns:
    A sentence; "" if the order of examples stays.
  """
  batch, new_batch = old["batch"], new["batch"]
  new_size = new["data"]["examples"]
  size = old["data"]["examples"] or new_size
  repeats = old["data"].get("repeats", 1)
  order = size, old["seed"], repeats
  if order != (new_size, new["seed"], new["data"].get("repeats", 1)):
    fate = "examples are in another order: some are repeated, some passed over"
  elif batch != new_batch:
    low, high = sorted(start * n // repeats for n in (batch, new_batch))
    verb = "passed over" if new_batch > batch else "seen again"
    fate = f"examples {low:,} to {high - 1:,} of the global order are {verb}"
  else:
    return ""
  epochs = start * batch / size + (total_steps - start) * new_batch / new_size
  return (
    f"From step {start:,} on, {fate}; by step {total_steps:,} the run has seen "
    f"{epochs:.4g} epochs."
  )
