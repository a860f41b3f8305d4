# SPDX-License-Identifier: Apache-2.0
"""The paper's fine-tuning protocol: best learning rate, final runs, report."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import jax
from ml_collections import ConfigDict

from mixer import train
from mixer.cli import EX_OK, EX_TEMPFAIL, sigterm_to_keyboard_interrupt
from mixer.errors import UserError, format_list
from mixer.jax_setup import configure_xla
from mixer.storage import make_folder, storage_errors, storage_path, write_text
from mixer.tools.sweep.plan import (
  FAILED,
  Outcome,
  SweepRun,
  best_outcome,
  plan_sweep,
  read_outcome,
)
from mixer.tools.sweep.report import describe, failure_reason, write_report
from mixer.training.lock import LockedError, locked
from mixer.training.nonfinite import DivergedError
from mixer.training.preemption import SIGNALS

REPORT_WAIT = 120.0  # seconds for another process to write the same report


class AllFailedError(UserError):
  """No run of a sweep has a result; sweeps on other data sets may have."""


def sweep(
  config: ConfigDict,
  workdir: str | None,
  *,
  accept_changes: bool = False,
  parallel: bool = False,
  should_stop: Callable[[], bool] = lambda: False,
) -> int:
  """Chooses a learning rate, makes the final runs, writes the report.

  Args:
    config: from a recipe.
    workdir: the sweep's folder; finished runs in it are not repeated.
    accept_changes: accept existing runs although the config has changed.
    parallel: share the runs with other processes that sweep in this folder.
    should_stop: if it returns True, the next run is not started.

  Returns:
    The exit code: EX_OK, or EX_TEMPFAIL if it was stopped, after saving, or if
    other processes still train runs that this one needs.

  Raises:
    UserError: something for the user to change; nothing was lost.
  """
  configure_xla(deterministic=config.get("deterministic_operations"))
  with contextlib.ExitStack() as stack:
    stack.enter_context(storage_errors(workdir))
    folder = make_folder(workdir)
    if not parallel:
      stack.enter_context(locked(folder))
    plan = plan_sweep(config, folder, accept_changes=accept_changes)
    plan.complaints.raise_all()
    print(describe(plan), flush=True)
    options = {
      "accept_changes": accept_changes,
      "parallel": parallel,
      "should_stop": should_stop,
    }
    metric, schedule = plan.config.sweep.metric, plan.grid_plan.schedule
    grid = run_all(plan.grid, schedule.total_steps, **options)
    if grid is None:
      return EX_TEMPFAIL
    _raise_if_failed(grid, metric)
    best = best_outcome(plan.config, grid)
    rate, value = best.run.learning_rate, best.value(metric)
    equals = sum(each.value(metric) == value for each in grid)
    lowest = f", the lowest of {equals} equals" if equals > 1 else ""
    print(
      f"\nBest of {len(grid)} learning rates: {rate:g}{lowest}, with {metric} "
      f"= {value:.5f}.",
      flush=True,
    )
    schedule = plan.final_plan.schedule
    finals = run_all(plan.finals(rate), schedule.total_steps, **options)
    if finals is None:
      return EX_TEMPFAIL
    _raise_if_failed(finals, plan.config.sweep.report)
    if parallel:
      stack.enter_context(locked(folder, wait=REPORT_WAIT))
    print(write_report(plan, grid, best, finals))
  return EX_OK


def dry_run(
  config: ConfigDict, workdir: str | None, *, accept_changes: bool = False
) -> int:
  """Prints the plan of a sweep; raises UserError with all complaints."""
  if not workdir:
    raise UserError("Name the sweep's folder: --workdir=DIR.")
  with storage_errors(workdir):
    folder = storage_path(workdir)
    plan = plan_sweep(config, folder, accept_changes=accept_changes)
  print(describe(plan))
  plan.complaints.raise_all()
  print("Nothing is missing: without --dry_run this trains.")
  return EX_OK


def run_all(
  runs: list[SweepRun],
  total_steps: int,
  *,
  accept_changes: bool,
  parallel: bool,
  should_stop: Callable[[], bool],
) -> list[Outcome] | None:
  """Trains the runs that have not ended, one after the other.

  Returns:
    Their outcomes; None after a stop, or if other processes train some.
  """
  for i, run in enumerate(runs, start=1):
    outcome = read_outcome(run, total_steps)
    if outcome is None:
      if should_stop():
        print("Stopped between two runs. The same command goes on.")
        return None
      print(f"\nRun {i} of {len(runs)}: {run.folder.name}", flush=True)
      try:
        outcome = run_one(run, total_steps, accept_changes=accept_changes)
      except LockedError:
        if not parallel:
          raise
        print("Another process trains it.", flush=True)
        continue
      if outcome is None:
        return None
    if outcome.failure:
      print(f"{run.folder.name} failed: {outcome.failure}", flush=True)
  outcomes = {run.folder.name: read_outcome(run, total_steps) for run in runs}
  if busy := [name for name, outcome in outcomes.items() if outcome is None]:
    print(
      f"\nOther processes train {format_list(busy, 3)}: the sweep goes on when "
      "they have ended.",
      flush=True,
    )
    return None
  return list(outcomes.values())


def run_one(
  run: SweepRun, total_steps: int, *, accept_changes: bool
) -> Outcome | None:
  """Trains to the end; None if it was stopped before, after saving.

  Raises:
    UserError: for any reason but the run's own divergence.
  """
  config = run.config.copy_and_resolve_references()
  try:
    code = train.train(config, str(run.folder), accept_changes=accept_changes)
  except DivergedError as error:
    write_text(run.folder / FAILED, f"{error}\n")
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


def _raise_if_failed(outcomes: list[Outcome], result: str):
  """Raises AllFailedError if no run has the result."""
  if any(outcome.value(result) is not None for outcome in outcomes):
    return
  reasons = "\n  ".join(
    f"{outcome.run.folder.name}: {failure_reason(outcome, result)}"
    for outcome in outcomes
  )
  raise AllFailedError(
    f"No run in {outcomes[0].run.folder.parent} has a finite {result}: try "
    f"lower rates in config.sweep.learning_rates.\n  {reasons}"
  )


@contextlib.contextmanager
def listen_for_signals() -> Iterator[Callable[[], bool]]:
  """Yields `should_stop()`: True after a signal to stop.

  A run handles signals itself, but one that arrives after its last step, while
  it writes its weights, must keep the next run from starting. Python writes
  every signal to a socket, whoever handles it. Between runs, where there is
  nothing to save, a signal raises KeyboardInterrupt.
  """
  reader, writer = socket.socketpair()
  reader.setblocking(False)
  writer.setblocking(False)

  def should_stop() -> bool:
    try:
      received = reader.recv(4096, socket.MSG_PEEK)
    except BlockingIOError:
      return False
    return any(number in received for number in SIGNALS)

  before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
  try:
    with sigterm_to_keyboard_interrupt():
      yield should_stop
  finally:
    signal.set_wakeup_fd(before)
    reader.close()
    writer.close()
