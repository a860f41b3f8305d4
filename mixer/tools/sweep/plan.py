# SPDX-License-Identifier: Apache-2.0
"""A sweep resolved: its runs, their plans, and all complaints at once."""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterator

from etils import epath
from ml_collections import ConfigDict

from mixer import weights
from mixer.config import is_lower_better
from mixer.config_check import Complaints, resolve, validate
from mixer.data_plan import known_results
from mixer.errors import UserError, did_you_mean, format_list
from mixer.plan import Plan, make_plan
from mixer.training import run_dir
from mixer.training.checkpoint import Checkpoints
from mixer.training.metrics import read_rows
from mixer.training.run_dir import CHECKPOINTS

FAILED = "failed.txt"  # in a run's folder: why it has no result


@dataclasses.dataclass(frozen=True)
class SweepRun:
  """One run of a sweep; its folder records its progress."""

  folder: epath.Path
  config: ConfigDict = dataclasses.field(repr=False)

  @property
  def learning_rate(self) -> float:
    return self.config.optimizer.learning_rate

  @property
  def seed(self) -> int:
    return self.config.seed

  @property
  def steps_saved(self) -> int:
    """Step of the newest checkpoint, 0 without any."""
    return max(Checkpoints(self.folder / CHECKPOINTS).steps, default=0)

  @property
  def needs_init(self) -> bool:
    """True if config.init is still to be read for it."""
    return not (self.folder / FAILED).exists() and not self.steps_saved


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Results of a run at its last step, or the reason why it has none."""

  run: SweepRun
  results: dict[str, float] = dataclasses.field(default_factory=dict)
  failure: str = ""

  def value(self, result: str) -> float | None:
    """Returns a result; None if the run failed or the value is not finite."""
    value = self.results.get(result, math.nan)
    return value if math.isfinite(value) else None


def read_outcome(run: SweepRun, total_steps: int) -> Outcome | None:
  """Reads the outcome of a run from its folder; None if it has not ended."""
  if (run.folder / FAILED).exists():
    return Outcome(run, failure=(run.folder / FAILED).read_text().strip())
  if not (run.folder / weights.RUN_FILE).exists():  # it is written last
    return None
  rows = read_rows(run.folder)
  if not rows or rows[-1]["step"] != total_steps:
    return None
  results = {k: v for k, v in rows[-1].items() if k.startswith("eval/")}
  return Outcome(run, results)


def best_outcome(config: ConfigDict, outcomes: list[Outcome]) -> Outcome | None:
  """Returns the best outcome by config.sweep.metric, None if all have failed.

  Args:
    config: of the sweep.
    outcomes: of the grid, from the lowest learning rate on; the lowest of
      equally good ones is the best.
  """
  metric = config.sweep.metric
  sign = -1 if is_lower_better(metric) else 1
  finite = [each for each in outcomes if each.value(metric) is not None]
  return max(finite, key=lambda each: sign * each.value(metric), default=None)


def grid_runs(config: ConfigDict, folder: epath.Path) -> list[SweepRun]:
  """Returns one run per learning rate, from the lowest on."""
  # Rates that are the same to six digits are one run.
  rates = {f"lr_{rate:g}": rate for rate in sorted(config.sweep.learning_rates)}
  return [_make_run(config, folder / name, rates[name]) for name in rates]


def _make_run(
  config: ConfigDict, folder: epath.Path, rate: float, seed: int | None = None
) -> SweepRun:
  config = config.copy_and_resolve_references()
  config.optimizer.learning_rate = float(rate)
  if seed is not None:
    config.seed = seed
  return SweepRun(folder, config)


def full_train_config(config: ConfigDict, judge: str | None) -> ConfigDict:
  """Returns the config of the final runs.

  Args:
    config: of the sweep.
    judge: the evaluator that the learning rate is chosen by; left out if the
      final runs have another split, because they train on its images.
  """
  config = config.copy_and_resolve_references()
  if config.sweep.full_split in (None, "", config.data.split):
    return config
  config.data.split = config.sweep.full_split
  config.data.examples = config.sweep.full_examples
  if judge in config.evals:
    with config.unlocked():
      del config.evals[judge]
    if judge in config.checkpoint.best.split("/"):
      config.checkpoint.best = ""
  return config


@dataclasses.dataclass
class SweepPlan:
  """A sweep, resolved.

  Attributes:
    config: of the sweep.
    folder: of the sweep; its runs are in it.
    load_init: whether the plans of its runs read config.init.
    complaints: about the sweep and all of its runs.
    grid_plan: plan of the runs by which the learning rate is chosen.
    final_plan: plan of the final runs.
    final_config: of the final runs, except for learning rate and seed.
    possible_finals: final runs of every learning rate that may be chosen.
  """

  config: ConfigDict
  folder: epath.Path
  load_init: bool = True
  complaints: Complaints = dataclasses.field(default_factory=Complaints)
  grid_plan: Plan | None = None
  final_plan: Plan | None = None
  final_config: ConfigDict | None = None
  possible_finals: list[SweepRun] = dataclasses.field(default_factory=list)

  @functools.cached_property
  def grid(self) -> list[SweepRun]:
    return grid_runs(self.config, self.folder)

  @property
  def seeds(self) -> list[int]:
    return [self.config.seed + i for i in range(self.config.sweep.seeds)]

  def finals(self, rate: float) -> list[SweepRun]:
    """Returns one run per seed with this learning rate.

    The rate is in the folders' names: a longer grid may lead to another one.
    """
    stem = f"final_lr_{rate:g}_seed_"
    return [
      _make_run(self.final_config, self.folder / f"{stem}{seed}", rate, seed)
      for seed in self.seeds
    ]


def plan_sweep(
  config: ConfigDict,
  folder: epath.Path,
  *,
  accept_changes: bool = False,
  load_init: bool = True,
) -> SweepPlan:
  """Resolves a sweep and collects complaints about all of its runs.

  Args:
    config: from a recipe and the command line.
    folder: of the sweep.
    accept_changes: accept existing runs although the config has changed.
    load_init: False does without config.init.

  Raises:
    UserError: keys that the schema does not have, or values out of range; no
      other check runs then.
  """
  sweep = SweepPlan(resolve(config), folder, load_init)
  problems = sweep.complaints.problems
  if invalid := list(validate(sweep.config)):
    raise UserError("\n".join(invalid))
  if (folder / "config.json").exists() or (folder / CHECKPOINTS).exists():
    problems.append(
      f"{folder} holds a run, and no sweep: choose another --workdir."
    )
  problems += _check_grid(sweep)
  sweep.grid_plan = _plan_runs(sweep, sweep.config, sweep.grid)
  judge = _check_result(sweep, sweep.grid_plan, sweep.grid, "metric")
  sweep.final_config = full_train_config(sweep.config, judge)
  finals = sweep.possible_finals = _possible_finals(sweep)
  sweep.final_plan = _plan_runs(sweep, sweep.final_config, finals)
  _check_result(sweep, sweep.final_plan, finals, "report")
  # Every run reads its own weights: they are large.
  sweep.grid_plan = _without_weights(sweep.grid_plan)
  sweep.final_plan = _without_weights(sweep.final_plan)
  _collect(sweep)
  if not accept_changes:
    problems += _changed_configs(sweep.grid_plan, sweep.grid)
    problems += _changed_configs(sweep.final_plan, finals)
  return sweep


def _check_grid(sweep: SweepPlan) -> Iterator[str]:
  options = sweep.config.sweep
  if not options.learning_rates:
    yield (
      "config.sweep.learning_rates is empty: give the rates to choose from, "
      'such as --config.sweep.learning_rates="(0.003, 0.01)".'
    )
  if options.full_examples and not options.full_split:
    yield (
      "config.sweep.full_examples is set, but full_split is not, such as "
      "'train'."
    )


def _plan_runs(
  sweep: SweepPlan, config: ConfigDict, runs: list[SweepRun]
) -> Plan:
  """Makes the plan that the runs share, except for rate and seed."""
  config = config.copy_and_resolve_references()
  load_init = sweep.load_init and any(run.needs_init for run in runs)
  grid_plan = sweep.grid_plan
  if grid_plan is not None and grid_plan.model.initial_params is not None:
    # The grid's plan has read and checked the same weights.
    config.model.gelu, load_init = grid_plan.config.model.gelu, False
  elif not load_init and runs:
    run_dir.inherit_gelu(runs[0].folder, config)
  return make_plan(config, load_init=load_init)


def _possible_finals(sweep: SweepPlan) -> list[SweepRun]:
  """Returns the final runs of every learning rate that may be chosen."""
  steps = sweep.grid_plan.schedule.total_steps
  outcomes = [steps and read_outcome(run, steps) for run in sweep.grid]
  rates = [run.learning_rate for run in sweep.grid]
  if all(outcomes):
    best = best_outcome(sweep.config, outcomes)
    rates = [best.run.learning_rate] if best else []
  return [run for rate in rates for run in sweep.finals(rate)]


def _without_weights(plan: Plan) -> Plan:
  model = dataclasses.replace(plan.model, initial_params=None)
  return dataclasses.replace(plan, model=model)


def _check_result(
  sweep: SweepPlan, plan: Plan, runs: list[SweepRun], key: str
) -> str | None:
  """Returns the evaluator of config.sweep.KEY; complains if there is none."""
  result, problems = sweep.config.sweep[key], sweep.complaints.problems
  evaluators = known_results(plan.data.evals, plan.config.model.num_classes)
  if result in evaluators:
    steps = plan.schedule.total_steps
    for run in runs:
      outcome = steps and read_outcome(run, steps)
      if outcome and not outcome.failure and result not in outcome.results:
        problems.append(
          f"The run in {run.folder} ended without {result}, which is "
          f"config.sweep.{key}: take one of {', '.join(outcome.results)}, or "
          "move the folder away to run it again."
        )
    return evaluators[result]
  if not plan.data.evals and plan.complaints.problems:
    return None  # the plan ended before the evaluators
  owner = "final runs have" if key == "report" else "config has"
  problem = (
    f"config.sweep.{key}, the result that runs are judged by, is not set"
  )
  if result:
    problem = (
      f"config.sweep.{key} = {result!r} is a result of no evaluator that the "
      f"{owner}"
    )
  problems.append(
    problem + (did_you_mean(result, evaluators) if evaluators else ".")
  )
  return None


def _collect(sweep: SweepPlan):
  """Adds the complaints about both kinds of runs, each part's once."""
  grid, final = sweep.grid_plan.complaints, sweep.final_plan.complaints
  sweep.complaints.problems += grid.problems
  parts = {problem.partition(": ")[0] for problem in grid.problems}
  sweep.complaints.problems += [
    "In the final runs: "
    + problem.replace("config.data.examples", "config.sweep.full_examples")
    for problem in final.problems
    if problem.partition(": ")[0] not in parts
  ]
  sweep.complaints.missing += dict.fromkeys(grid.missing + final.missing)


def _changed_configs(plan: Plan, runs: list[SweepRun]) -> Iterator[str]:
  """Compares with the existing runs; yields one complaint per difference."""
  if not plan.config.data.examples:
    return  # there is a complaint about it already
  folders = collections.defaultdict(list)
  for run in runs:
    config = plan.config.copy_and_resolve_references()
    config.optimizer.learning_rate, config.seed = run.learning_rate, run.seed
    try:
      run_dir.inherit_gelu(run.folder, config)
      run_dir.check_config(run.folder, config, accept_changes=False)
    except UserError as error:
      message = str(error).replace(str(run.folder), "{}")
      folders[message].append(str(run.folder))
  for message, (first, *others) in folders.items():
    also = f"\n  The same holds for {format_list(others, 3)}." if others else ""
    yield message.replace("{}", first) + also
