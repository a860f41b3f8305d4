# SPDX-License-Identifier: Apache-2.0
"""Whether a run is one of a table's row: its config against the recipe's.

A row is measured by a recipe, so what it wants is what that recipe resolves to.
A run that was fine-tuned must have begun from the row's pre-training: from the
published weights, or from a run's folder, whose config says how it was trained.
"""

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from mixer.config_check import (
  RESUME_SAFE_KEYS,
  diff_configs,
  resolve,
  to_dict,
)
from mixer.errors import UserError
from mixer.storage import storage_path
from mixer.tools.paper import results_store as records
from mixer.tools.paper.measured import offered
from mixer.tools.paper.measured.offered import Offered, Part
from mixer.tools.paper.protocols import Protocol, extend, load_recipe
from mixer.weights.zoo import REGISTRY

# Keys that may differ. TPUs round factors to bfloat16, as the authors' runs
# were: dtype is the user's.
_FREE = (
  *RESUME_SAFE_KEYS,
  "deterministic_operations",
  "init",
  "model.dtype",
  "model.gelu",
  "seed",
)
_EVALUATOR = "type", "name", "split", "image", "label", "ops"
_PROTOCOL = "metric", "report", "full_split", "learning_rates"


def pretraining(recipe: str, part: Part) -> list[str]:
  """Lists what keeps a run from being the recipe's pre-training."""
  wanted, found = to_dict(resolve(load_recipe(recipe))), _completed(part)
  ignored = tuple(key for key in _FREE if key != "init")
  return list(_differences(wanted, found, ignored))


def finetuning(recipe: str, part: Part, *, is_sweep: bool) -> list[str]:
  """Lists what keeps a sweep, or a run, from being the recipe's.

  Args:
    recipe: with its data set.
    part: of the sweep on that data set, or of a run on all training images.
    is_sweep: else one run.
  """
  chosen_from = resolve(load_recipe(recipe))
  wanted = chosen_from
  if not is_sweep:
    wanted = resolve(load_recipe(extend(recipe, "full=True")))
  wanted, found = to_dict(wanted), _completed(part)
  ignored = (*_FREE, "optimizer.learning_rate")
  problems = list(_differences(wanted, found, ignored))
  rates = sorted(chosen_from.sweep.learning_rates)
  if is_sweep:
    for key in _PROTOCOL:
      old, new = wanted["sweep"][key], found["sweep"][key]
      if key == "learning_rates":
        old, new = sorted(old), sorted(new)
      if old != new:
        problems.append(f"sweep.{key}: {old!r} -> {new!r}")
  elif part.learning_rate not in rates:
    problems.append(
      f"optimizer.learning_rate: one of {rates!r} -> {part.learning_rate!r}"
    )
  return problems


def published(
  protocol: Protocol, part: Part, sha256: str | None
) -> tuple[list[str], dict]:
  """Whether evaluated weights are the row's published ones.

  Args:
    protocol: of the row.
    part: of the evaluation.
    sha256: of the file that was evaluated, None if it is not known.

  Returns:
    What keeps them from it; the weights, as they are recorded.
  """
  init = part.config["init"]
  if published_name(init) != protocol.published:
    return [f"init: {protocol.published!r} -> {init!r}"], {}
  known = [
    mirror.sha256
    for mirror in REGISTRY[protocol.published].mirrors
    if mirror.sha256 and mirror.suffix == Path(init).suffix
  ]
  if init in REGISTRY or not (sha256 and known):
    return [], _as_recorded(init, protocol.published)
  if not sha256.startswith(tuple(known)):
    return [
      f"init: a file whose sha256 begins with {' or '.join(known)} -> {init!r}"
      f" with {sha256[: len(known[0])]}"
    ], {}
  return [], {"published": protocol.published}


def _as_recorded(init: str, name: str) -> dict:
  """Published weights; of a file brought by hand its name says so alone."""
  return {"published": name} | (
    {} if init in REGISTRY else {records.UNCHECKED: True}
  )


def evaluator(recipe: str, part: Part, name: str) -> list[str]:
  """Lists how an evaluator differs from the recipe's of that name."""
  wanted, found = to_dict(resolve(load_recipe(recipe))), _completed(part)
  old, new = _evaluator(wanted, name), _evaluator(found, name)
  return [
    f"evals.{name}.{key}: {old[key]!r} -> {new[key]!r}"
    for key in _EVALUATOR
    if old[key] != new[key]
  ]


def _evaluator(config: dict, name: str) -> dict:
  """What it judges by; without a data set it takes that of training."""
  options = config["evals"].get(name, {})
  found = {key: options.get(key) for key in _EVALUATOR}
  return found | {"name": found["name"] or config["data"]["name"]}


def upstream(
  protocol: Protocol, part: Part
) -> tuple[list[str], dict, Offered | None]:
  """Follows config.init of a fine-tuned run.

  Returns:
    What is wrong with where it began; that place, as it is recorded; the run
    there, None where the weights are the published ones.
  """
  init = part.config["init"]
  path = storage_path(init)
  if init and path.is_dir():
    run = offered.read(path)
    if run.kind != offered.RUN:
      raise UserError(f"config.init = {init} is the folder of no single run.")
    return (
      [
        f"of config.init = {init}: {problem}"
        for problem in pretraining(protocol.pretrain, run.parts[""])
      ],
      {"folder": run.folder.name},
      run,
    )
  name = published_name(init)
  if name == protocol.published:
    return [], _as_recorded(init, name), None
  wanted = f"the folder of a run of {protocol.pretrain}"
  if protocol.published:
    wanted = f"{protocol.published!r}, or {wanted}"
  return [f"init: {wanted} -> {init!r}{_lost(init, name)}"], {}, None


def published_name(init: str) -> str | None:
  """The published weights that `init` names, or the file of which it is."""
  if init in REGISTRY:
    return init
  path = Path(init)
  place = "/".join(path.parts[-2:]).removesuffix(path.suffix)
  return place if path.suffix and place in REGISTRY else None


def _lost(init: str, name: str | None) -> str:
  if not init or name:
    return ""
  return (
    ", which is no folder here: bring it back, its config.json says how it was "
    "pre-trained"
  )


def _completed(part: Part) -> dict:
  """The config with the keys that the schema has got since."""
  return to_dict(resolve(ConfigDict(part.config)))


def _differences(
  wanted: dict, found: dict, ignored: tuple[str, ...]
) -> Iterator[str]:
  if wanted["data"]["examples"] is None:
    ignored = (*ignored, "data.examples")  # as many as there are
  yield from diff_configs(wanted, found, ignored=ignored)
