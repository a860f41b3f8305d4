# SPDX-License-Identifier: Apache-2.0
"""Texts about a sweep: its plan, and its report in sweep.md and sweep.json."""

import json
import statistics
from collections.abc import Iterator

from etils import epath

from mixer.config_check import to_dict
from mixer.plan import plan_summary
from mixer.storage import write_text
from mixer.tools.sweep.plan import Outcome, SweepPlan, SweepRun, read_outcome
from mixer.tools.table import render
from mixer.training import run_dir

JSON, MARKDOWN = "sweep.json", "sweep.md"


def describe(sweep: SweepPlan) -> str:
  """Returns the plan as lines of text: a run, the counts, existing runs."""
  options, data = sweep.config.sweep, sweep.final_plan.config.data
  grid, seeds = sweep.grid, sweep.seeds
  rates = ", ".join(f"{run.learning_rate:g}" for run in grid)
  examples = f" ({data.examples:,} examples)" if data.examples else ""
  lines = [
    plan_summary(sweep.grid_plan),
    f"grid          {len(grid)} runs, learning rates {rates or 'not given'}; "
    f"the best by {options.metric or '?'} at the end",
    f"final         {len(seeds)} runs on {data.split}{examples} with that "
    f"rate, seeds {', '.join(map(str, seeds))}; mean of {options.report}",
  ]
  grid_steps = sweep.grid_plan.schedule.total_steps
  final_steps = sweep.final_plan.schedule.total_steps
  if grid_steps and final_steps:
    steps = len(grid) * grid_steps + len(seeds) * final_steps
    lines.append(
      f"in total      {len(grid) + len(seeds)} runs, {steps:,} steps, "
      f"{steps * sweep.config.batch:,} images"
    )
    lines += _existing_runs(grid, grid_steps)
    lines += _existing_runs(sweep.possible_finals, final_steps)
  return "\n".join(lines)


def _existing_runs(runs: list[SweepRun], total_steps: int) -> Iterator[str]:
  for run in runs:
    if outcome := read_outcome(run, total_steps):
      state = "failed" if outcome.failure else "finished"
    elif steps := run.steps_saved:
      state = f"at step {steps:,}"
    else:
      continue
    yield f"exists        {run.folder.name}: {state}"


def write_report(
  plan: SweepPlan, grid: list[Outcome], best: Outcome, finals: list[Outcome]
) -> str:
  """Writes sweep.md for people and sweep.json for programs; returns the text.

  Args:
    plan: of the sweep.
    grid: outcome of each learning rate, from the lowest on.
    best: the one of them that the final runs continue.
    finals: outcome of each seed.
  """
  means = {
    name: _mean(finals, name)
    for name in _result_names(finals)
    if any(outcome.value(name) is not None for outcome in finals)
  }
  options, data = plan.config.sweep, plan.final_plan.config.data
  rate, mean = best.run.learning_rate, means[options.report]
  runs, same = "one run", ""
  if mean["runs"] > 1:
    runs = f"mean and sample standard deviation of {mean['runs']} runs"
  if options.report == options.metric:
    same = " The same images chose that rate, so the result is optimistic."
  content = {
    "learning_rate": rate,
    "metric": options.metric,
    "report": options.report,
    "means": means,
    "learning_rates": [outcome.run.learning_rate for outcome in grid],
    "grid": [_to_json(outcome) for outcome in grid],
    "final": [_to_json(outcome) for outcome in finals],
    "config": to_dict(plan.config),
  }
  text = "\n".join(
    [
      f"# {plan.config.model.name} from "
      f"{plan.config.init or 'random weights'} on {data.name}",
      "",
      f"{options.report} **{mean_text(mean)}**: {runs} on {data.split} with "
      f"learning rate {rate:g}.{same}",
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
  write_files(plan.folder, content, text)
  return text


def write_files(folder: epath.Path, content: dict, text: str):
  """Writes a report as Markdown and, with its provenance, as JSON."""
  content |= {"provenance": run_dir.provenance()}
  for name, file in ((MARKDOWN, text), (JSON, json.dumps(content, indent=2))):
    write_text(folder / name, f"{file}\n")


def failure_reason(outcome: Outcome, result: str) -> str:
  """Says why a run does not have a result; "" if it has."""
  if outcome.failure or outcome.value(result) is not None:
    return outcome.failure
  return f"{result} is {outcome.results.get(result, 'not there')}"


def mean_text(mean: dict) -> str:
  """Formats a mean, and the deviation of single runs from it."""
  if mean["deviation"] is None:
    return f"{mean['mean']:.5f}"
  return f"{mean['mean']:.5f} ± {mean['deviation']:.5f}"


def _mean(outcomes: list[Outcome], result: str) -> dict:
  """Returns mean and sample deviation over the runs that have the result."""
  values = [outcome.value(result) for outcome in outcomes]
  values = [value for value in values if value is not None]
  return {
    "mean": statistics.fmean(values),
    "deviation": statistics.stdev(values) if len(values) > 1 else None,
    "runs": len(values),
  }


def _result_names(outcomes: list[Outcome]) -> list[str]:
  """Lists all results, in the order in which runs write them."""
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


def _runs_table(
  outcomes: list[Outcome],
  result: str,
  key: str,
  best: Outcome | None = None,
  means: dict[str, dict] | None = None,
) -> str:
  """Makes one row per run: its key, the result, then the other results.

  Losses and deviations, which would make it too wide, are only in sweep.json.
  """
  names = [
    name
    for name in _result_names(outcomes)
    if name == result or not name.endswith(("/loss", "_std"))
  ]
  names.sort(key=lambda name: name != result)

  def cells(values):
    return ("" if x is None else f"{x:.5f}" for x in values)

  rows = []
  for outcome in outcomes:
    run, reason = outcome.run, failure_reason(outcome, result)
    note = "chosen" if outcome is best else ""
    if reason:
      note = f"failed: {reason.partition(':')[0]}"
    label = str(run.seed) if key == "seed" else f"{run.learning_rate:g}"
    rows.append(
      (label, *cells(map(outcome.value, names)), run.folder.name, note)
    )
  if means:
    for name in "mean", "deviation":
      values = (means.get(each, {}).get(name) for each in names)
      rows.append((name, *cells(values), "", ""))
  return render((key, *names, "folder", ""), rows)
