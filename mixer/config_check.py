# SPDX-License-Identifier: Apache-2.0
"""Configs against the schema, against sense, and against one another."""

import re
from collections.abc import Iterator, Sequence
from math import isfinite

from ml_collections import ConfigDict

from mixer.config import EVALUATORS, default, did_you_mean, evaluator
from mixer.errors import UserError

# Keys that a resumed run may change, because they do not change its result.
RESUME_SAFE_KEYS = (
  "accumulation",
  "checkpoint",
  "data.data_dir",
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
  "shard_state",
  "sweep",
)


def resolve(config: ConfigDict) -> ConfigDict:
  """Compares a config with the schema and fills in what it leaves out.

  A locked ConfigDict does not see `config.optimizer = {"learning_rat": 3}`.

  Raises:
    UserError: lists every key that the schema does not have, with the nearest
      one that it has, and every value of another type.
  """
  schema = default()
  problems = []
  result = _resolve(config, schema, "", problems)
  for name, part in config.get("evals", {}).items():
    kind = part.get("type") if isinstance(part, ConfigDict) else None
    kind = kind or "classification"
    if kind not in EVALUATORS:
      problems.append(
        f"config.evals.{name}.type = {kind!r} is not an evaluator"
        f"{did_you_mean(kind, EVALUATORS)}"
      )
      continue
    schema = evaluator(kind)
    result.evals[name] = _resolve(part, schema, f"evals.{name}.", problems)
  if problems:
    raise UserError("\n".join(problems))
  return result


def _resolve(config, schema, path, problems):
  result = schema.copy_and_resolve_references()
  if not isinstance(config, ConfigDict):
    problems.append(f"config.{path[:-1]} = {config!r} is not a dict of keys.")
    return result
  for key, value in config.items():
    where = path + key
    if key not in schema:
      problems.append(
        f"config.{where} is not a key{did_you_mean(key, schema, path)}"
      )
    elif where == "evals":
      result.evals = ConfigDict()
    elif isinstance(schema[key], ConfigDict):
      result[key] = _resolve(value, schema[key], f"{where}.", problems)
    else:
      try:
        result[key] = value
      except (TypeError, ValueError):
        problems.append(
          f"config.{where} = {value!r} is of type {type(value).__name__}, not "
          f"{schema.get_type(key).__name__}."
        )
  return result


def to_dict(config: ConfigDict) -> dict:
  """The config in JSON's types."""
  return {
    key: to_dict(value) if isinstance(value, ConfigDict) else _listed(value)
    for key, value in config.items()
  }


def _listed(value):
  if isinstance(value, (tuple, list)):
    return [_listed(x) for x in value]
  return value


# Keys that the hosts of a run may have different values of.
PER_HOST_KEYS = (
  "data.data_dir",
  "data.prefetch",
  "data.worker_kind",
  "data.workers",
)


def diff_configs(
  old: dict,
  new: dict,
  path: str = "",
  ignored: Sequence[str] = RESUME_SAFE_KEYS,
) -> Iterator[str]:
  """Yields "key: old -> new" for what changes the result of a run.

  Args:
    old, new: from `to_dict`.
    path: of both in the config.
    ignored: keys, and parts of the config, that may differ.
  """
  for key in sorted({*old, *new}):
    where = f"{path}{key}"
    if where in ignored:
      continue
    before, after = old.get(key), new.get(key)
    if isinstance(before, dict) and isinstance(after, dict):
      yield from diff_configs(before, after, f"{where}.", ignored)
    elif before != after:
      yield f"{where}: {before!r} -> {after!r}"


def validate(config: ConfigDict) -> Iterator[str]:
  """Yields a sentence for every value out of its range."""
  for key, allowed in _CHOICES.items():
    value = _get(config, key)
    if value not in allowed:
      words = ", ".join(map(repr, allowed))
      yield f"config.{key} = {value!r} is none of {words}."
  for key, (low, high) in _RANGES.items():
    value = _get(config, key)
    if value is not None and not (low <= value <= high and isfinite(value)):
      allowed = f"{low} to {high}" if isfinite(high) else f"{low} or more"
      yield f"config.{key} = {value} must be {allowed}."
  for key, meaning in _WHOLE_NUMBERS.items():
    numbers = _get(config, key)
    if numbers is not None and not (
      numbers and all(isinstance(n, int) and n > 0 for n in numbers)
    ):
      yield f"config.{key} = {numbers!r} must be {meaning}."
  for pair in config.optimizer.multipliers:
    if not (
      isinstance(pair, (tuple, list))
      and len(pair) == 2
      and isinstance(pair[0], str)
      and isinstance(pair[1], (int, float))
      and pair[1] >= 0
    ):
      yield (
        f"config.optimizer.multipliers has {pair!r}, which is not a pair of a "
        "pattern and a factor of at least 0."
      )
      continue
    try:
      re.compile(pair[0])
    except re.error as error:
      yield f"config.optimizer.multipliers: {pair[0]!r}: {error}."
  for rate in config.sweep.learning_rates:
    if not isinstance(rate, (int, float)) or not 0 < rate < _INFINITY:
      yield f"config.sweep.learning_rates has {rate!r}: rates are above 0."
  for name, options in config.evals.items():
    yield from _check_evaluator(f"config.evals.{name}", options)


def _check_evaluator(here: str, options: ConfigDict) -> Iterator[str]:
  published = options.get("published")
  if published is not None and not 0 <= published <= 1:
    yield (f"{here}.published = {published} must be 0 to 1: 76.44 % is 0.7644.")
  if options.type != "fewshot":
    return
  shots = options.shots
  if not shots or not all(isinstance(k, int) and k > 0 for k in shots):
    yield (
      f"{here}.shots = {shots!r} must be numbers of examples, such as (5, 10)."
    )
  if options.draws < 1:
    yield f"{here}.draws = {options.draws} must be 1 or more."
  if not 0 < options.l2 < _INFINITY:
    yield f"{here}.l2 = {options.l2} must be above 0."


_CHOICES = {
  "data.on_bad_image": ("error", "replace"),
  "data.worker_kind": ("thread", "process"),
  "init_growth": ("none", "tiles", "interpolate"),
  "init_head": ("auto", "keep", "zeros"),
  "loss": ("softmax", "sigmoid"),
  "model.dtype": ("float32", "bfloat16"),
  "model.gelu": (None, "tanh", "exact"),
  "model.kernels": (None, "auto", "plain", "fused"),
  "model.remat": ("none", "products", "token_mixing", "blocks"),
  "model.pool": (None, "token", "mean"),
  "optimizer.name": ("adam", "momentum"),
  "optimizer.accumulator_dtype": ("float32", "bfloat16"),
  "schedule.kind": ("linear", "cosine", "constant"),
}
_WHOLE_NUMBERS = {
  "model.pyramid": "divisors of the token grid's sides, one for each block, "
  "such as (1, 1, 2, 1)",
  "model.units": "numbers of residual units, one for each stage, such as "
  "(3, 4, 6, 3)",
}
_INFINITY = float("inf")
_RANGES = {
  "accumulation": (1, _INFINITY),
  "ema_decay": (0, 0.999999),
  "batch": (1, _INFINITY),
  "checkpoint.keep": (1, _INFINITY),
  "cutmix": (0, _INFINITY),
  "cutmix_share": (0, 1),
  "data.examples": (0, _INFINITY),
  "data.prefetch": (1, _INFINITY),
  "data.workers": (0, _INFINITY),
  "label_smoothing": (0, 1),
  "log.every_steps": (1, _INFINITY),
  "log.profile_steps": (0, _INFINITY),
  "max_per_device": (1, _INFINITY),
  "max_skipped": (1, _INFINITY),
  "mixup": (0, _INFINITY),
  "model.blocks": (1, _INFINITY),
  "model.channels_mlp": (1, _INFINITY),
  "model.dropout": (0, 0.999),
  "model.group": (1, _INFINITY),
  "model.head_bias": (-1000, 1000),
  "model.heads": (1, _INFINITY),
  "model.hidden": (1, _INFINITY),
  "model.mlp": (1, _INFINITY),
  "model.num_classes": (1, _INFINITY),
  "model.patch": (1, _INFINITY),
  "model.representation": (0, _INFINITY),
  "model.stoch_depth": (0, 0.999),
  "model.tokens_mlp": (1, _INFINITY),
  "model.width": (0.5, _INFINITY),
  "optimizer.b1": (0, 0.999999),
  "optimizer.b2": (0, 0.999999),
  "optimizer.clip_norm": (0, _INFINITY),
  "optimizer.eps": (0, 1),
  "optimizer.learning_rate": (0, _INFINITY),
  "optimizer.momentum": (0, 1),
  "optimizer.weight_decay": (0, _INFINITY),
  "schedule.end": (0, 1),
  "seed": (0, 2**31 - 1),
  "sweep.full_examples": (0, _INFINITY),
  "sweep.seeds": (1, _INFINITY),
}


def _get(config, key):
  for part in key.split("."):
    config = config[part]
  return config
