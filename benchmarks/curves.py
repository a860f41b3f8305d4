# SPDX-License-Identifier: Apache-2.0
"""Experiments of several runs, and the file of their results.

An experiment is a list of curves, each with a recipe's argument. A curve is
trained once a seed, in folders of its own; finished runs are not repeated.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from scipy import stats

import mixer.train
from mixer.cli import EX_TEMPFAIL, create_parser
from mixer.config_check import beyond_defaults, to_dict
from mixer.errors import RetryableError, UserError
from mixer.plan import Plan, make_plan
from mixer.storage import write_text
from mixer.tools.data import prepare
from mixer.tools.paper.protocols import load_recipe
from mixer.training import run_dir
from mixer.training.metrics import read_rows
from mixer.training.setup import create_optimizer, initial_state

STAMP = "date", "git_commit", "git_changes"  # of provenance


@dataclasses.dataclass(frozen=True)
class Curve:
  """A line of a figure.

  about: labels for the results file, such as {"model": "mixer"}.
  recipe: name in configs/.
  arg: the recipe's argument, without the seed.
  """

  about: dict[str, str | int | float]
  recipe: str
  arg: str

  @property
  def folder(self) -> str:
    return "_".join(map(str, self.about.values())).replace("/", "_")


def create_experiment_parser(
  name: str, description: str, *, seeds: int = 3
) -> argparse.ArgumentParser:
  """Makes a parser with the flags that all experiments share."""
  flags.FLAGS.mark_as_parsed()  # training reads absl's flags
  parser = create_parser(f"benchmarks.{name}", description)
  workdir = Path("runs") / name
  parser.add_argument(
    "--workdir", type=Path, default=workdir, help=f"of runs; default: {workdir}"
  )
  parser.add_argument(
    "--seeds", type=int, default=seeds, help=f"at least 2; default: {seeds}"
  )
  parser.add_argument(
    "--results", type=Path, default=Path("results"), help="default: results"
  )
  return parser


def train(
  curves: Sequence[Curve],
  workdir: Path,
  seeds: Sequence[int],
  results: Sequence[str],
  changes: dict[str, object] | None = None,
) -> list[dict]:
  """Trains the runs that are not finished.

  Args:
    curves: curves of the experiment.
    workdir: folder of all its runs.
    seeds: seeds of each curve's runs.
    results: metrics to record, such as "eval/test/accuracy".
    changes: config keys to override in all runs, such as "total_steps".

  Returns:
    A dict for each curve: its labels, its recipe, the config keys that are not
    the schema's defaults, and its runs, each with the results at all steps.

  Raises:
    UserError: fewer than two seeds, or an error in a config.
    RetryableError: training was preempted, after saving.
  """
  if len(seeds) < 2:
    raise UserError("Two seeds at least: one cannot say what is chance.")
  configs = [
    [config(curve, seed, changes) for seed in seeds] for curve in curves
  ]
  for name in sorted({config.data.name for [config, *_] in configs}):
    prepare(name)
  runs = [[] for _ in curves]
  # Seed by seed, so that an early stop leaves runs of every curve.
  for i, seed in enumerate(seeds):
    for curve, of_seeds, done in zip(curves, configs, runs, strict=True):
      folder = workdir / f"{curve.folder}_seed_{seed}"
      done.append({"seed": seed} | finish(of_seeds[i], folder, results))
  return [
    curve.about
    | {"recipe": f"configs/{curve.recipe}.py:{curve.arg}"}
    | {"config": beyond_defaults(to_dict(config)), "runs": done}
    for curve, [config, *_], done in zip(curves, configs, runs, strict=True)
  ]


def config(curve: Curve, seed: int, changes: dict | None) -> ConfigDict:
  config = load_recipe(f"configs/{curve.recipe}.py:{curve.arg},seed={seed}")
  config.update_from_flattened_dict(changes or {})
  return config


def initial_params(config: ConfigDict) -> tuple[Plan, dict]:
  """Returns the plan of a run, and the parameters it begins with."""
  plan = make_plan(config)
  plan.complaints.raise_all()
  _, optimizer = create_optimizer(plan)
  return plan, initial_state(plan, optimizer).params


def finish(config: ConfigDict, folder: Path, results: Sequence[str]) -> dict:
  """Trains a run to the end; returns results with date, commit and device."""
  plan = make_plan(config)
  plan.complaints.raise_all()
  run_dir.check_config(folder, plan.config, accept_changes=False)
  rows = read_rows(folder)
  if not rows or rows[-1]["step"] != plan.schedule.total_steps:
    print(f"\n{folder}", flush=True)
    if mixer.train.train(config, str(folder)) == EX_TEMPFAIL:
      raise RetryableError("Stopped, all is saved. The same command goes on.")
    jax.clear_caches()  # the next run compiles its own programs
    rows = read_rows(folder)
  evaluated = [row for row in rows if results[0] in row]
  last = json.loads((folder / "provenance.json").read_text())["starts"][-1]
  return {
    **{key: last[key] for key in STAMP},
    "device": f"{last['devices']} x {last['device_kind']}",
    "steps": [row["step"] for row in evaluated],
    **{name: [round(row[name], 6) for row in evaluated] for name in results},
  }


def record(file: Path, content: dict) -> None:
  """Writes a results file, with command, device, commit and date."""
  made = run_dir.provenance()
  module = sys.modules["__main__"].__spec__.name.removesuffix(".__main__")
  head = {
    **{key: made[key] for key in STAMP},
    "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
    "devices": f"{made['devices']} x {made['device_kind']}",
    "versions": made["packages"],
  }
  file.parent.mkdir(parents=True, exist_ok=True)
  write_text(file, json.dumps(head | content, indent=1) + "\n")


def last_values(curve: dict, result: str) -> np.ndarray:
  """Returns a result at the end of each run, [seeds]."""
  return np.array([run[result][-1] for run in curve["runs"]])


def difference(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
  """Returns the mean of other - one over seeds [n], and half its 95 % interval.

  Runs of a seed are a pair: they share the order of the images.
  """
  each = other - one
  error = each.std(ddof=1) / np.sqrt(len(each))
  half = stats.t.ppf(0.975, len(each) - 1) * error
  return {"mean": float(each.mean()), "interval": float(half)}


def gains(
  trained: list[dict], label: str, baseline: str, result: str
) -> dict[str, dict]:
  """Subtracts a baseline's last result from each other curve's, over seeds.

  The verdict is better or worse if the 95 % interval excludes 0, else
  undecided, which does not mean equal.

  Args:
    trained: from `train`.
    label: key of the curves' names.
    baseline: name of one of them.
    result: metric, of which more is better.
  """
  ends = {each[label]: last_values(each, result) for each in trained}
  start = ends.pop(baseline)
  found = {}
  for name, values in ends.items():
    gain = difference(start, values)
    verdict = "undecided"
    if abs(gain["mean"]) > gain["interval"]:
      verdict = "better" if gain["mean"] > 0 else "worse"
    found[name] = gain | {"verdict": verdict}
  return found


def gain_cells(curve: dict, result: str, gain: dict | None) -> list[str]:
  """Formats a curve's last result; its gain and verdict, if it has one."""
  ends = last_values(curve, result)
  accuracy = percent(ends.mean(), ends.std(ddof=1))
  if gain is None:
    return [accuracy, "", ""]
  return [accuracy, percent(gain["mean"], gain["interval"]), gain["verdict"]]


def percent(mean: float, around: float) -> str:
  return f"{100 * mean:.1f} ± {100 * around:.1f}"
