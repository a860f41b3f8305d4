# SPDX-License-Identifier: Apache-2.0
"""Transfer of pre-training on the digits 0 to 4 to the digits 5 to 9.

Sweeps of configs/transfer.py, and linear probes before any update.
"""

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from benchmarks.curves import initial_params, percent
from mixer.cluster import ONE_HOST
from mixer.distributed import Hosts
from mixer.evaluators.runner import EvalRunner
from mixer.tools.paper.protocols import load_recipe
from mixer.training.sharding import replicate


def recipe(arg: str) -> ConfigDict:
  return load_recipe(f"configs/transfer.py:{arg}")


def probe_at_start(arg: str, init: Path | None) -> dict[str, float]:
  """Evaluates linear probes on 5 to 9 with a run's initial parameters.

  Args:
    arg: argument of the recipe.
    init: a run's folder, or None for random parameters.

  Returns:
    Few-shot accuracies and their deviations; see `format_probe`.
  """
  config = recipe(arg)
  if init is None:
    config.init_head, config.init_growth = "auto", "none"
  else:
    config.init = str(init)
  plan, params = initial_params(config)
  runner = EvalRunner(plan, Path(), Hosts(ONE_HOST))
  return runner.run(["others"], replicate(params, jax.local_devices()))


def read_sweep(folder: Path) -> dict:
  return json.loads((folder / "sweep.json").read_text())


def format_probe(results: dict[str, float], shots: int) -> str:
  key = f"eval/fewshot/others/{shots}shot"
  return percent(results[key], results[f"{key}_std"])


def format_sweep(folder: Path) -> str:
  """Formats the accuracy of a sweep's final runs."""
  accuracy = read_sweep(folder)["means"]["eval/test/accuracy"]
  return percent(accuracy["mean"], accuracy["deviation"])
