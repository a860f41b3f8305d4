# SPDX-License-Identifier: Apache-2.0
"""From a grid of learning rates to a mean and a deviation over seeds."""

import contextlib
from collections.abc import Callable

from ml_collections import ConfigDict

from mixer.cli import EX_OK, EX_TEMPFAIL
from mixer.errors import UserError
from mixer.jax_setup import configure_xla
from mixer.storage import storage_errors, storage_path
from mixer.tools.sweep import report
from mixer.tools.sweep.plan import SweepPlan, choose, describe, plan_sweep
from mixer.tools.sweep.runs import Outcome, SweepRun, carry_out, read_outcome
from mixer.training import run_dir
from mixer.training.lock import locked


class AllFailedError(UserError):
  """No run of a sweep has a result; others may have."""


def sweep(
  config: ConfigDict,
  workdir: str | None,
  *,
  accept_changes: bool = False,
  stop_asked: Callable[[], bool] = lambda: False,
) -> int:
  """Chooses a learning rate, makes the final runs, reports.

  Args:
    config: from a recipe.
    workdir: the sweep's folder; goes on where it left off.
    accept_changes: take runs that are there although the config has changed.
    stop_asked: whether the next run is not to begin.

  Returns:
    The process's exit code: EX_OK, or EX_TEMPFAIL after saving.

  Raises:
    UserError: something for the user to change; nothing was lost.
  """
  configure_xla(deterministic=config.get("deterministic_operations"))
  with contextlib.ExitStack() as stack:
    stack.enter_context(storage_errors(workdir))
    folder = run_dir.make_folder(workdir)
    stack.enter_context(locked(folder))
    plan = plan_sweep(config, folder, accept_changes=accept_changes)
    plan.complaints.raise_all()
    print(describe(plan), flush=True)
    how = {"accept_changes": accept_changes, "stop_asked": stop_asked}
    grid = _carry_out_all(plan.grid, plan.part.schedule.total_steps, **how)
    if grid is None:
      return EX_TEMPFAIL
    best = _choose(plan, grid)
    finals = plan.finals(best.run.learning_rate)
    finals = _carry_out_all(finals, plan.whole.schedule.total_steps, **how)
    if finals is None:
      return EX_TEMPFAIL
    _raise_if_failed(finals, plan.config.sweep.report)
    print(report.write(plan, grid, best, finals))
  return EX_OK


def dry_run(
  config: ConfigDict, workdir: str | None, *, accept_changes: bool = False
) -> int:
  """Prints what a sweep comes to; raises UserError with what is missing."""
  if not workdir:
    raise UserError("Name the sweep's folder: --workdir=DIR.")
  with storage_errors(workdir):
    folder = storage_path(workdir)
    plan = plan_sweep(config, folder, accept_changes=accept_changes)
  print(describe(plan))
  plan.complaints.raise_all()
  print("Nothing is missing: without --dry_run this trains.")
  return EX_OK


def _carry_out_all(
  runs: list[SweepRun],
  total_steps: int,
  *,
  accept_changes: bool,
  stop_asked: Callable[[], bool],
) -> list[Outcome] | None:
  """Carries out what is not done yet; None if a stop was asked for."""
  outcomes = []
  for i, run in enumerate(runs):
    outcome = read_outcome(run, total_steps)
    if outcome is None:
      if stop_asked():
        print("Stopped between two runs. The same command goes on.")
        return None
      print(f"\nRun {i + 1} of {len(runs)}: {run.folder.name}", flush=True)
      outcome = carry_out(run, total_steps, accept_changes=accept_changes)
      if outcome is None:
        return None
    if outcome.failure:
      print(f"{run.folder.name} failed: {outcome.failure}", flush=True)
    outcomes.append(outcome)
  return outcomes


def _choose(plan: SweepPlan, grid: list[Outcome]) -> Outcome:
  metric = plan.config.sweep.metric
  _raise_if_failed(grid, metric)
  best = choose(plan.config, grid)
  rates = [outcome.run.learning_rate for outcome in grid]
  rate = best.run.learning_rate
  print(
    f"\nBest of {len(rates)} learning rates: {rate:g}, with {metric} = "
    f"{best.value(metric):.5f}.",
    flush=True,
  )
  return best


def _raise_if_failed(outcomes: list[Outcome], result: str):
  """Raises AllFailedError if none has the result."""
  if any(outcome.value(result) is not None for outcome in outcomes):
    return
  reasons = "\n  ".join(
    f"{outcome.run.folder.name}: {report.reason(outcome, result)}"
    for outcome in outcomes
  )
  raise AllFailedError(
    f"No run in {outcomes[0].run.folder.parent} has come to {result}: try "
    f"lower rates in config.sweep.learning_rates.\n  {reasons}"
  )
