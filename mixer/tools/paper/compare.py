# SPDX-License-Identifier: Apache-2.0
"""Compares a run with a recipe: config, evaluators, published weights.

Differences are sentences "key: the recipe's value -> the run's".
"""

from collections.abc import Iterable
from pathlib import Path

from mixer.config_check import (
  RESUME_SAFE_KEYS,
  diff_configs,
  resolve,
  to_dict,
)
from mixer.tools.paper.protocols import Protocol, extend, load_recipe
from mixer.tools.paper.results_store import SWEEP, UNCHECKED
from mixer.tools.paper.run_reader import RunResult
from mixer.weights.zoo import REGISTRY

# Keys that may differ from the recipe's. TPUs round float32 products to
# bfloat16 as well, as in the authors' runs: model.dtype is the user's choice.
_FREE_KEYS = (
  *(key for key in RESUME_SAFE_KEYS if key != "sweep"),
  "deterministic_operations",
  "model.dtype",
  "model.gelu",
  "seed",
  "sweep.full_examples",
  "sweep.seeds",
)
_EVALUATOR_KEYS = "type", "name", "split", "image", "label", "ops"


def diff(
  recipe: str, run: RunResult, evaluators: Iterable[str], *free: str
) -> list[str]:
  """Lists the keys that differ from a recipe's, evaluators' included."""
  config = to_dict(resolve(load_recipe(recipe)))
  if run.kind != SWEEP:
    free += ("sweep",)
  if config["data"]["examples"] is None:  # as many as the split has
    free += ("data.examples",)
  ignored = (*_FREE_KEYS, *free)
  return [
    *diff_configs(config, run.config, ignored=ignored),
    *diff_evaluators(recipe, run, evaluators),
  ]


def diff_evaluators(
  recipe: str, run: RunResult, evaluators: Iterable[str]
) -> list[str]:
  """Compares those of the evaluators that the run has results of."""
  config, problems = to_dict(resolve(load_recipe(recipe))), []
  for name in evaluators:
    if f"eval/{name}/accuracy" in run.means:
      ours, theirs = _evaluator(config, name), _evaluator(run.config, name)
      problems += diff_configs(ours, theirs, f"evals.{name}.", ())
  return problems


def _evaluator(config: dict, name: str) -> dict:
  options = config["evals"].get(name, {})
  keys = {key: options.get(key) for key in _EVALUATOR_KEYS}
  return keys | {"name": keys["name"] or config["data"]["name"]}


def diff_finetuning(
  recipe: str, run: RunResult, evaluators: Iterable[str]
) -> list[str]:
  """Compares a sweep, or a run on all training images, with the recipe."""
  free = "init", "optimizer.learning_rate"
  if run.kind == SWEEP:
    return diff(recipe, run, evaluators, *free)
  problems = diff(extend(recipe, "full=True"), run, evaluators, *free)
  rates = [*load_recipe(recipe).sweep.learning_rates]
  if run.learning_rate not in rates:
    problems.append(
      f"optimizer.learning_rate: one of {rates!r} -> {run.learning_rate!r}"
    )
  return problems


def check_published(
  protocol: Protocol, run: RunResult, allowed: str
) -> tuple[dict, list[str]]:
  """Compares config.init with the row's published weights.

  Returns:
    The weights as recorded; what differs from those `allowed`.
  """
  init = run.config["init"]
  name = published_name(init)
  source = {"published": name}
  if not name or name != protocol.published:
    return source, [f"init: {allowed} -> {init!r}"]
  if init in REGISTRY:
    return source, []
  known = [
    mirror.sha256
    for mirror in REGISTRY[name].mirrors
    if mirror.sha256 and mirror.suffix == Path(init).suffix
  ]
  if not (known and run.sha256):
    return source | {UNCHECKED: True}, []
  if run.sha256.startswith(tuple(known)):
    return source, []
  return source, [
    f"init: a file whose sha256 begins with {' or '.join(known)} -> {init!r} "
    f"with {run.sha256[: len(known[0])]}"
  ]


def published_name(init: str) -> str | None:
  """Returns the published weights that `init` names, or is a file of."""
  if init in REGISTRY:
    return init
  path = Path(init)
  name = "/".join(path.parts[-2:]).removesuffix(path.suffix)
  return name if path.suffix and name in REGISTRY else None
