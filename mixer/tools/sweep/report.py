# SPDX-License-Identifier: Apache-2.0
"""What a sweep has found: sweep.md for people, sweep.json for programs."""

import json
import statistics

from etils import epath

from mixer.atomic_write import atomic_write
from mixer.config_check import to_dict
from mixer.tools.sweep.plan import SweepPlan
from mixer.tools.sweep.runs import Outcome
from mixer.tools.table import render
from mixer.training import run_dir

JSON, MARKDOWN = "sweep.json", "sweep.md"


def write(
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
  write_both(plan.folder, found, text)
  return text


def write_both(folder: epath.Path, found: dict, text: str):
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
