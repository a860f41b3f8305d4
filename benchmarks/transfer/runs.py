# SPDX-License-Identifier: Apache-2.0
"""Runs and sweeps of configs/transfer.py, and features before any update."""

import importlib.util
import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from mixer.evaluators.runner import EvalRunner
from mixer.plan import make_plan
from mixer.training.setup import create_optimizer, initial_state
from mixer.training.sharding import replicate

ACCURACY = "eval/test/accuracy"
PROBES = {5: "eval/fewshot/others/5shot", 10: "eval/fewshot/others/10shot"}


def recipe(arg: str) -> ConfigDict:
  spec = importlib.util.spec_from_file_location("recipe", "configs/transfer.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


def probe_at_start(arg: str, init: Path | None) -> dict[str, float]:
  """Few-shot accuracy on 5 to 9 of the parameters that a run begins with.

  Args:
    arg: of the recipe.
    init: a run's folder, or None for random parameters.
  """
  config = recipe(arg)
  if init is None:
    config.init_head, config.init_growth = "auto", "none"
  else:
    config.init = str(init)
  plan = make_plan(config)
  plan.complaints.raise_all()
  _, optimizer = create_optimizer(plan)
  devices = jax.local_devices()
  params = replicate(initial_state(plan, optimizer).params, devices)
  return EvalRunner(plan, Path(), devices).run(["others"], params)


def swept(folder: Path) -> dict:
  """What a sweep has found."""
  return json.loads((folder / "sweep.json").read_text())


def percent(mean: float, deviation: float) -> str:
  return f"{100 * mean:.1f} ± {100 * deviation:.1f}"


def probed(results: dict[str, float], shots: int) -> str:
  return percent(results[PROBES[shots]], results[f"{PROBES[shots]}_std"])


def trained(folder: Path) -> str:
  """Accuracy of a sweep's final runs."""
  mean = swept(folder)["means"][ACCURACY]
  return percent(mean["mean"], mean["deviation"])
