# SPDX-License-Identifier: Apache-2.0
"""A sweep resolved: its runs, their plans, and all complaints at once."""

import collections
import dataclasses
import math
from collections.abc import Iterator

import jax
from etils import epath
from ml_collections import ConfigDict

from mixer import train, weights
from mixer.cli import EX_TEMPFAIL
from mixer.config_check import resolve, validate
from mixer.data_plan import Complaints, known_results
from mixer.errors import UserError, did_you_mean, format_list
from mixer.plan import Plan, make_plan, plan_summary
from mixer.storage import atomic_write
from mixer.training import run_dir
from mixer.training.checkpoint import Checkpoints
from mixer.training.metrics import read_rows
from mixer.training.nonfinite import DivergedError
from mixer.training.run_dir import CHECKPOINTS

FAILED = "failed.txt"  # in a run's folder: why it came to nothing


@dataclasses.dataclass(frozen=True)
class SweepRun:
  """One run of a sweep; it is in its folder that it is finished or not."""

  folder: epath.Path
  config: ConfigDict = dataclasses.field(repr=False)

  @property
  def learning_rate(self) -> float:
    return self.config.optimizer.learning_rate

  @property
  def seed(self) -> int:
    return self.config.seed

  @property
  def has_failed(self) -> bool:
    return (self.folder / FAILED).exists()

  @property
  def steps_saved(self) -> int:
    """Where it would go on; 0 where it would begin."""
    return max(Checkpoints(self.folder / CHECKPOINTS).steps, default=0)

  @property
  def needs_start(self) -> bool:
    """Whether config.init is still to be read for it."""
    return not self.has_failed and not self.steps_saved


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of a run: results at its last step, or the reason for none."""

  run: SweepRun
  results: dict[str, float] = dataclasses.field(default_factory=dict)
  failure: str = ""

  def value(self, result: str) -> float | None:
    """A result, None where the run has failed or it is not a number."""
    value = self.results.get(result, math.nan)
    return value if math.isfinite(value) else None


def grid_runs(config: ConfigDict, folder: epath.Path) -> list[SweepRun]:
  """One run for each learning rate, in their order."""
  rates = sorted(config.sweep.learning_rates)
  return [_run(config, folder / f"lr_{rate:g}", rate) for rate in rates]


def final_runs(
  config: ConfigDict, folder: epath.Path, rate: float
) -> list[SweepRun]:
  """One run with this rate for each seed, on all the images there are.

  The rate is in the folders' names: a longer grid may lead to another one.
  """
  seeds = [config.seed + i for i in range(config.sweep.seeds)]
  return [
    _run(config, folder / f"final_lr_{rate:g}_seed_{seed}", rate, seed)
    for seed in seeds
  ]


def _run(
  config: ConfigDict, folder: epath.Path, rate: float, seed: int | None = None
) -> SweepRun:
  config = config.copy_and_resolve_references()
  config.optimizer.learning_rate = float(rate)
  if seed is not None:
    config.seed = seed
  return SweepRun(folder, config)


def full_train_config(config: ConfigDict, judge: str | None) -> ConfigDict:
  """The config of the final runs.

  Args:
    config: of the sweep.
    judge: the evaluator that the learning rate is chosen by; left out where
      the final runs have another split, because they train on its images.
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


def read_outcome(run: SweepRun, total_steps: int) -> Outcome | None:
  """What came of a run, None if it has not come to its end."""
  if run.has_failed:
    return Outcome(run, failure=(run.folder / FAILED).read_text().strip())
  if not (run.folder / weights.RUN_FILE).exists():  # it is written last
    return None
  rows = read_rows(run.folder)
  if not rows or rows[-1]["step"] != total_steps:
    return None
  results = {k: v for k, v in rows[-1].items() if k.startswith("eval/")}
  return Outcome(run, results)


def run_one(
  run: SweepRun, total_steps: int, *, accept_changes: bool
) -> Outcome | None:
  """Trains to the end; None if a stop was asked for before, all is saved.

  Raises:
    UserError: for any reason but the run's own divergence.
  """
  config = run.config.copy_and_resolve_references()
  try:
    code = train.train(config, str(run.folder), accept_changes=accept_changes)
  except DivergedError as error:
    with atomic_write(run.folder / FAILED) as aside:
      aside.write_text(f"{error}\n")
  else:
    if code == EX_TEMPFAIL:
      return None
  finally:
    # The next run compiles its own programs; those of many would add up.
    jax.clear_caches()
  outcome = read_outcome(run, total_steps)
  if outcome is None:
    raise UserError(
      f"{run.folder} has no results of step {total_steps:,} although the run "
      "is done: move the folder away and start again."
    )
  return outcome


@dataclasses.dataclass
class SweepPlan:
  """A sweep, resolved.

  Attributes:
    config: of the sweep.
    folder: of the sweep; its runs lie in it.
    part: plan of the runs that the learning rate is chosen by.
    whole: plan of the final runs.
    final_config: of the final runs, but for rate and seed.
    complaints: about the sweep and all of its runs.
  """

  config: ConfigDict
  folder: epath.Path
  part: Plan | None = None
  whole: Plan | None = None
  final_config: ConfigDict | None = None
  complaints: Complaints = dataclasses.field(default_factory=Complaints)

  @property
  def grid(self) -> list[SweepRun]:
    return grid_runs(self.config, self.folder)

  def finals(self, rate: float) -> list[SweepRun]:
    return final_runs(self.final_config, self.folder, rate)

  def outcomes(self) -> list[Outcome | None]:
    """Returns the outcome of each run of the grid; None for unfinished ones."""
    steps = self.part.schedule.total_steps
    return [read_outcome(run, steps) for run in self.grid]


def plan_sweep(
  config: ConfigDict, folder: epath.Path, *, accept_changes: bool = False
) -> SweepPlan:
  """Resolves a sweep and collects complaints about all of its runs.

  Args:
    config: as a recipe and the command line made it.
    folder: of the sweep.
    accept_changes: take runs that are there although the config has changed.

  Raises:
    UserError: keys that the schema does not have, or values out of their
      range; nothing else can be said about such a config.
  """
  sweep = SweepPlan(resolve(config), folder)
  if problems := list(validate(sweep.config)):
    raise UserError("\n".join(problems))
  if (folder / "config.json").exists() or (folder / CHECKPOINTS).exists():
    sweep.complaints.problems.append(
      f"{folder} holds a run, and no sweep: choose another --workdir."
    )
  _check_grid(sweep)
  sweep.part = _plan_runs(sweep, sweep.config, sweep.grid)
  judge = _check_result(sweep, sweep.part, sweep.grid, "metric")
  sweep.final_config = full_train_config(sweep.config, judge)
  finals = [run for rate in _rates(sweep) for run in sweep.finals(rate)]
  sweep.whole = _plan_runs(sweep, sweep.final_config, finals)
  _check_result(sweep, sweep.whole, finals, "report")
  # Every run reads its own weights: they are large.
  sweep.part, sweep.whole = map(_without_weights, (sweep.part, sweep.whole))
  _collect(sweep)
  if not accept_changes:
    sweep.complaints.problems += _other_configs(sweep.part, sweep.grid)
    sweep.complaints.problems += _other_configs(sweep.whole, finals)
  return sweep


def _without_weights(plan: Plan) -> Plan:
  model = dataclasses.replace(plan.model, initial_params=None)
  return dataclasses.replace(plan, model=model)


def _check_grid(sweep: SweepPlan):
  rates = sweep.config.sweep.learning_rates
  if not rates:
    sweep.complaints.problems.append(
      "config.sweep.learning_rates is empty: give the rates to choose from, "
      'such as --config.sweep.learning_rates="(0.003, 0.01)".'
    )
  if sweep.config.sweep.full_examples and not sweep.config.sweep.full_split:
    sweep.complaints.problems.append(
      "config.sweep.full_examples is set, but full_split is not, such as "
      "'train'."
    )
  names = [run.folder.name for run in sweep.grid]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    sweep.complaints.problems.append(
      f"config.sweep.learning_rates = {rates} has rates that are the same to "
      f"six digits ({', '.join(twice)}): leave one of them."
    )


def _rates(sweep: SweepPlan) -> list[float]:
  """Returns the learning rates that may still be chosen for the final runs."""
  if sweep.part.schedule.total_steps:
    outcomes = sweep.outcomes()
    if None not in outcomes:
      best = choose(sweep.config, outcomes)
      return [best.run.learning_rate] if best else []
  return [run.learning_rate for run in sweep.grid]


def choose(config: ConfigDict, outcomes: list[Outcome]) -> Outcome | None:
  """Returns the best outcome by config.sweep.metric, None if all have failed.

  Equal outcomes: the one with the lowest rate.

  Args:
    config: of the sweep.
    outcomes: of the grid, from the lowest rate on.
  """
  metric = config.sweep.metric
  sign = -1 if metric.endswith("/loss") else 1
  sound = [each for each in outcomes if each.value(metric) is not None]
  # The first one of several.
  return max(sound, key=lambda each: sign * each.value(metric), default=None)


def _plan_runs(
  sweep: SweepPlan, config: ConfigDict, runs: list[SweepRun]
) -> Plan:
  """Makes the plan that the runs share, except for rate and seed."""
  config = config.copy_and_resolve_references()
  load_init = any(run.needs_start for run in runs)
  if sweep.part is not None and sweep.part.model.initial_params is not None:
    # Those of the part, which has read and judged the same weights.
    config.model.gelu, load_init = sweep.part.config.model.gelu, False
  elif not load_init and runs:
    run_dir.inherit_gelu(runs[0].folder, config)
  return make_plan(config, load_init=load_init)


def _collect(sweep: SweepPlan):
  """Adds the complaints about both kinds of runs, each once."""
  sweep.complaints.problems += sweep.part.complaints.problems
  sweep.complaints.problems += [
    "In the final runs: "
    + problem.replace("config.data.examples", "config.sweep.full_examples")
    for problem in sweep.whole.complaints.problems
    if problem not in sweep.part.complaints.problems
  ]
  sweep.complaints.missing += dict.fromkeys(
    sweep.part.complaints.missing + sweep.whole.complaints.missing
  )


def _check_result(
  sweep: SweepPlan, plan: Plan, runs: list[SweepRun], key: str
) -> str | None:
  """Returns the evaluator that config.sweep.KEY is a result of."""
  given = sweep.config.sweep[key]
  evaluators = known_results(plan.data.evals)
  if given in evaluators:
    _check_results_there(sweep, plan, runs, key)
    return evaluators[given]
  if not plan.data.evals and plan.complaints.problems:
    return None  # it has not come to the evaluators
  if not given:
    sweep.complaints.problems.append(
      f"config.sweep.{key}, the result that runs are judged by, is not set"
      f"{did_you_mean('', evaluators)}"
    )
    return None
  which = "final runs have" if key == "report" else "config has"
  sweep.complaints.problems.append(
    f"config.sweep.{key} = {given!r} is a result of no evaluator that the "
    f"{which}" + (did_you_mean(given, evaluators) if evaluators else ".")
  )
  return None


def _check_results_there(
  sweep: SweepPlan, plan: Plan, runs: list[SweepRun], key: str
):
  """Complains of finished runs without the result that they are judged by."""
  wanted = sweep.config.sweep[key]
  for run in runs:
    steps = plan.schedule.total_steps
    outcome = steps and read_outcome(run, steps)
    if outcome and not outcome.failure and wanted not in outcome.results:
      sweep.complaints.problems.append(
        f"The run in {run.folder} ended without {wanted}, which is "
        f"config.sweep.{key}: take one of {', '.join(outcome.results)}, or "
        "move the folder away to run it again."
      )


def _other_configs(plan: Plan, runs: list[SweepRun]) -> Iterator[str]:
  """Compares with the finished runs; yields one complaint per difference."""
  if not plan.config.data.examples:
    return  # the runs know how many there are; here it is complained of
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


def describe(sweep: SweepPlan) -> str:
  """Returns the plan as lines of text: a run, and the number of runs."""
  options = sweep.config.sweep
  lines = [plan_summary(sweep.part)]
  grid = sweep.grid
  seeds = [sweep.config.seed + i for i in range(options.seeds)]
  rates = ", ".join(f"{run.learning_rate:g}" for run in grid)
  lines.append(
    f"grid          {len(grid)} runs, learning rates {rates or 'not given'}; "
    f"the best by {options.metric or '?'} at the end"
  )
  data = sweep.whole.config.data
  examples = f" ({data.examples:,} examples)" if data.examples else ""
  lines.append(
    f"final         {len(seeds)} runs on {data.split}{examples} with that "
    f"rate, seeds {', '.join(map(str, seeds))}; mean of {options.report}"
  )
  lengths = sweep.part.schedule.total_steps, sweep.whole.schedule.total_steps
  if all(lengths):
    steps = len(grid) * lengths[0] + len(seeds) * lengths[1]
    lines.append(
      f"in total      {len(grid) + len(seeds)} runs, {steps:,} steps, "
      f"{steps * sweep.config.batch:,} images"
    )
    lines += _there(sweep)
  return "\n".join(lines)


def _there(sweep: SweepPlan) -> list[str]:
  """Returns lines about the runs that the folder holds already."""
  finals = [run for rate in _rates(sweep) for run in sweep.finals(rate)]
  lines = []
  for plan, runs in (sweep.part, sweep.grid), (sweep.whole, finals):
    for run in runs:
      outcome = read_outcome(run, plan.schedule.total_steps)
      if outcome:
        state = "failed" if outcome.failure else "finished"
      elif saved := run.steps_saved:
        state = f"at step {saved:,}"
      else:
        continue
      lines.append(f"there is      {run.folder.name}: {state}")
  return lines
