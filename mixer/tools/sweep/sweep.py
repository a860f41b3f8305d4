# SPDX-License-Identifier: Apache-2.0
"""The paper's fine-tuning protocol: best learning rate, final runs, report."""

import contextlib
import json
import signal
import socket
import statistics
from collections.abc import Callable, Iterator

from etils import epath
from ml_collections import ConfigDict

from mixer.cli import EX_OK, EX_TEMPFAIL, sigterm_to_keyboard_interrupt
from mixer.config_check import to_dict
from mixer.errors import UserError
from mixer.jax_setup import configure_xla
from mixer.storage import atomic_write, storage_errors, storage_path
from mixer.tools.sweep.plan import (
  Outcome,
  SweepPlan,
  SweepRun,
  choose,
  describe,
  plan_sweep,
  read_outcome,
  run_one,
)
from mixer.tools.table import render
from mixer.training import run_dir
from mixer.training.lock import locked
from mixer.training.preemption import SIGNALS


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
    print(write_report(plan, grid, best, finals))
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
      outcome = run_one(run, total_steps, accept_changes=accept_changes)
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
    f"{outcome.run.folder.name}: {reason(outcome, result)}"
    for outcome in outcomes
  )
  raise AllFailedError(
    f"No run in {outcomes[0].run.folder.parent} has come to {result}: try "
    f"lower rates in config.sweep.learning_rates.\n  {reasons}"
  )


JSON, MARKDOWN = "sweep.json", "sweep.md"


def write_report(
  plan: SweepPlan, grid: list[Outcome], best: Outcome, finals: list[Outcome]
) -> str:
  """Writes both files and returns the text."""
  means = {
    name: _mean(finals, name)
    for name in _result_names(finals)
    if any(outcome.value(name) is not None for outcome in finals)
  }
  provenance = run_dir.provenance()
  found = {
    "learning_rate": best.run.learning_rate,
    "metric": plan.config.sweep.metric,
    "report": plan.config.sweep.report,
    "means": means,
    "learning_rates": [outcome.run.learning_rate for outcome in grid],
    "grid": [_to_json(outcome) for outcome in grid],
    "final": [_to_json(outcome) for outcome in finals],
    "date": provenance["date"],
    "git_commit": provenance["git_commit"],
    "config": to_dict(plan.config),
    "provenance": provenance,
  }
  text = _text(plan, grid, best, finals, means)
  write_files(plan.folder, found, text)
  return text


def write_files(folder: epath.Path, found: dict, text: str):
  for name, content in (
    (MARKDOWN, text),
    (JSON, json.dumps(found, indent=2)),
  ):
    with atomic_write(folder / name) as aside:
      aside.write_text(f"{content}\n")


def reason(outcome: Outcome, result: str) -> str:
  """Why a run does not have a result; "" if it has."""
  if outcome.failure or outcome.value(result) is not None:
    return outcome.failure
  return f"{result} is {outcome.results.get(result, 'not there')}"


def mean_text(mean: dict) -> str:
  """A mean and the deviation of single runs from it."""
  if mean["deviation"] is None:
    return f"{mean['mean']:.5f}"
  return f"{mean['mean']:.5f} ± {mean['deviation']:.5f}"


def _mean(outcomes: list[Outcome], result: str) -> dict:
  """Mean and sample standard deviation over the runs that have the result."""
  values = [outcome.value(result) for outcome in outcomes]
  values = [value for value in values if value is not None]
  return {
    "mean": statistics.fmean(values),
    "deviation": statistics.stdev(values) if len(values) > 1 else None,
    "runs": len(values),
  }


def _result_names(outcomes: list[Outcome]) -> list[str]:
  """All results, in the order in which runs write them."""
  return list(dict.fromkeys(k for each in outcomes for k in each.results))


def _to_json(outcome: Outcome) -> dict:
  run = outcome.run
  return {
    "folder": run.folder.name,
    "learning_rate": run.learning_rate,
    "seed": run.seed,
    "results": outcome.results,
    "failure": outcome.failure or None,
  }


def _text(
  plan: SweepPlan,
  grid: list[Outcome],
  best: Outcome,
  finals: list[Outcome],
  means: dict[str, dict],
) -> str:
  options, data = plan.config.sweep, plan.whole.config.data
  mean, rate = means[options.report], best.run.learning_rate
  start = plan.config.init or "random weights"
  return "\n".join(
    [
      f"# {plan.config.model.name} from {start} on {data.name}",
      "",
      f"{options.report} **{mean_text(mean)}**: mean and sample standard "
      f"deviation of {mean['runs']} runs on {data.split} with learning rate "
      f"{rate:g}.",
      "",
      f"The best of {len(grid)} learning rates by {options.metric}, of runs on "
      f"{plan.config.data.split}, seed {plan.config.seed}:",
      "",
      _runs_table(grid, options.metric, "learning rate", best),
      "",
      "The final runs:",
      "",
      _runs_table(finals, options.report, "seed", means=means),
    ]
  )


def _runs_table(
  outcomes: list[Outcome],
  result: str,
  key: str,
  best: Outcome | None = None,
  means: dict[str, dict] | None = None,
) -> str:
  """A row for each run, its key, the result first, then the others.

  What would make it too wide to read is in the JSON file alone.
  """
  names = [
    name
    for name in _result_names(outcomes)
    if name == result or not name.endswith(("/loss", "_std"))
  ]
  names.sort(key=lambda name: name != result)

  def number(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"

  rows = []
  for outcome in outcomes:
    run, why = outcome.run, reason(outcome, result)
    rows.append(
      (
        str(run.seed) if key == "seed" else f"{run.learning_rate:g}",
        *(number(outcome.value(name)) for name in names),
        run.folder.name,
        f"failed: {why.partition(':')[0]}"
        if why
        else "chosen"
        if outcome is best
        else "",
      )
    )
  if means:
    for name in "mean", "deviation":
      numbers = (number(means.get(each, {}).get(name)) for each in names)
      rows.append((name, *numbers, "", ""))
  return render((key, *names, "folder", ""), rows)


@contextlib.contextmanager
def listen_for_signals() -> Iterator[Callable[[], bool]]:
  """Yields whether a stop has been asked for since the beginning.

  A run hears of signals itself, saves and says so; but one that comes after
  its last step, while it writes its weights, is of no use to it, and the next
  run is not to begin. Python tells a socket of every signal, whoever handles
  it. Between runs, where there is nothing to save, a signal is Ctrl-C.
  """
  listener, teller = socket.socketpair()
  listener.setblocking(False)
  teller.setblocking(False)

  def asked() -> bool:
    try:
      received = listener.recv(4096, socket.MSG_PEEK)
    except BlockingIOError:
      return False
    return any(number in received for number in SIGNALS)

  told_before = signal.set_wakeup_fd(teller.fileno(), warn_on_full_buffer=False)
  try:
    with sigterm_to_keyboard_interrupt():
      yield asked
  finally:
    signal.set_wakeup_fd(told_before)
    listener.close()
    teller.close()
