# SPDX-License-Identifier: Apache-2.0
"""One sweep on several data sets of a recipe, and the means over them.

Such a recipe takes an argument dataset= and has a dict DATA_SETS by its values;
it may name the mean over all (AVERAGE) and groups with means of their own
(GROUPS, name -> data sets).
"""

import contextlib
import dataclasses
import json
import runpy
import statistics
from collections.abc import Callable, Iterable, Sequence

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from mixer.cli import EX_OK, EX_TEMPFAIL
from mixer.errors import UserError, did_you_mean
from mixer.jax_setup import configure_xla
from mixer.storage import make_folder, storage_path
from mixer.tools.sweep import sweep as single
from mixer.tools.sweep.plan import plan_sweep
from mixer.tools.sweep.report import JSON, describe, mean_text, write_files
from mixer.tools.table import render
from mixer.training.lock import locked


@dataclasses.dataclass
class MultiDatasetSweep:
  """One sweep per data set.

  Attributes:
    folder: has a folder for each data set.
    configs: by data set.
    average: name of the mean over all data sets.
    groups: name -> data sets; all those of the recipe are the last group.
  """

  folder: epath.Path
  configs: dict[str, ConfigDict]
  average: str
  groups: dict[str, Sequence[str]]


def choose(
  flag: flags.Flag, names: Sequence[str], workdir: str | None
) -> MultiDatasetSweep:
  """Resolves the recipe for each data set.

  Args:
    flag: of config_flags, parsed.
    names: of data sets, or "all".
    workdir: the folder for all of them.

  Raises:
    UserError: the recipe does not take data sets, or not these.
  """
  if not workdir:
    raise UserError("Name the folder for all sweeps: --workdir=DIR.")
  file, _, arg = config_flags.get_config_filename(flag).partition(":")
  recipe = runpy.run_path(file)
  known = recipe.get("DATA_SETS")
  if not known:
    raise UserError(
      f"{file} has no DATA_SETS: --datasets is for recipes that take dataset=, "
      "such as configs/finetune.py. Leave it out."
    )
  parts = arg.split(",") if arg else []
  if any("=" not in x or x.startswith("dataset=") for x in parts):
    raise UserError(
      f"--datasets replaces the recipe's dataset: leave it out of {arg!r}, and "
      "write the others as key=value."
    )
  names = list(known) if list(names) == ["all"] else list(dict.fromkeys(names))
  overrides = config_flags.get_override_values(flag)
  configs = {}
  for name in names:
    if name not in known:
      raise UserError(
        f"--datasets: {file} has no {name!r}{did_you_mean(name, known)}"
      )
    config = recipe["get_config"](",".join([*parts, f"dataset={name}"]))
    try:
      config.update_from_flattened_dict(overrides)
    except KeyError as error:
      raise UserError(f"The config for {name}: {error.args[0]}") from error
    configs[name] = config
  average = recipe.get("AVERAGE", "mean")
  groups = dict(recipe.get("GROUPS", {})) | {average: tuple(known)}
  return MultiDatasetSweep(storage_path(workdir), configs, average, groups)


def dry_run(
  multi: MultiDatasetSweep, *, skip_missing: bool, accept_changes: bool
) -> int:
  """Prints the plans of the sweeps; raises UserError with all complaints."""
  available = _check(
    multi, skip_missing=skip_missing, accept_changes=accept_changes
  )
  more = " else" if len(available) < len(multi.configs) else ""
  print(f"Nothing{more} is missing: without --dry_run this trains.")
  return EX_OK


def sweep(
  multi: MultiDatasetSweep,
  *,
  skip_missing: bool,
  accept_changes: bool,
  parallel: bool = False,
  should_stop: Callable[[], bool] = lambda: False,
) -> int:
  """Makes the sweeps, one after the other, and writes the table.

  If all runs on a data set fail, the others go on.

  Args:
    multi: the sweeps.
    skip_missing: leave out data sets that are not on this machine.
    accept_changes, parallel, should_stop: see `mixer.tools.sweep.sweep.sweep`.

  Returns:
    The exit code, as of a single sweep.
  """
  folder = make_folder(str(multi.folder))
  failures, is_unfinished = {}, False
  with contextlib.ExitStack() as stack:
    if not parallel:
      stack.enter_context(locked(folder))
    available = _check(
      multi, skip_missing=skip_missing, accept_changes=accept_changes
    )
    for name in available:
      print(f"\n== {name} ==", flush=True)
      try:
        code = single.sweep(
          multi.configs[name],
          str(folder / name),
          accept_changes=accept_changes,
          parallel=parallel,
          should_stop=should_stop,
        )
      except single.AllFailedError as error:
        failures[name] = str(error)
        print(error, flush=True)
      else:
        if code != EX_OK and (should_stop() or not parallel):
          return code
        is_unfinished |= code != EX_OK  # other processes train its runs
    if is_unfinished:
      return EX_TEMPFAIL
    if parallel:
      stack.enter_context(locked(folder, wait=single.REPORT_WAIT))
    print(_report(multi, available, failures))
  if failures:
    raise UserError("\n".join(failures.values()))
  return EX_OK


def _check(
  multi: MultiDatasetSweep, *, skip_missing: bool, accept_changes: bool
) -> list[str]:
  """Prints the plans of all sweeps and returns the available data sets.

  Raises:
    UserError: lists the problems of all sweeps, and missing data sets unless
      they may be left out.
  """
  available, missing, problems = [], {}, []
  for name, config in multi.configs.items():
    configure_xla(deterministic=config.get("deterministic_operations"))
    plan = plan_sweep(
      config, multi.folder / name, accept_changes=accept_changes
    )
    print(f"== {name} ==\n{describe(plan)}", flush=True)
    for problem in plan.complaints.problems:
      # Most are the same for all.
      if not any(problem in each for each in problems):
        problems.append(f"{name}: {problem}")
    if plan.complaints.missing:
      missing[name] = plan.complaints.missing
    else:
      available.append(name)
  complaints = list(dict.fromkeys(sum(missing.values(), [])))
  if missing and skip_missing and available and not problems:
    listed = "\n  ".join(complaints)
    print(f"\nLeaves out {', '.join(missing)}:\n  {listed}", flush=True)
  elif problems or missing:
    raise UserError("\n".join(complaints + problems))
  return available


def _report(
  multi: MultiDatasetSweep, available: list[str], failures: dict[str, str]
) -> str:
  """Writes sweep.md and sweep.json for all, and returns the text."""
  results = {}
  for name in available:
    if name not in failures:
      report = json.loads((multi.folder / name / JSON).read_text())
      results[name] = {
        "folder": name,
        "learning_rate": report["learning_rate"],
        "report": report["report"],
        **report["means"][report["report"]],
      }

  def mean(names: Iterable[str]) -> float:
    return statistics.fmean(results[name]["mean"] for name in names)

  means = {
    group: mean(names)
    for group, names in multi.groups.items()
    if all(name in results for name in names)
  }
  rows = []
  for name in multi.configs:
    if each := results.get(name):
      rate, runs = f"{each['learning_rate']:g}", str(each["runs"])
      rows.append((name, rate, mean_text(each), runs, each["report"]))
    else:
      note = "failed" if name in failures else "left out: not available"
      rows.append((name, "", note, "", ""))
  rows += [(group, "", f"{x:.5f}", "", "") for group, x in means.items()]
  text = render(
    ("data set", "learning rate", "mean ± deviation", "runs", "result"), rows
  )
  if multi.average not in means and results:
    means["mean of these"] = mean(results)
    names = multi.groups[multi.average]
    text += (
      f"\n\nMean of these {len(results)}: {mean(results):.5f}. It is not the "
      f"paper's, which is over {len(names)} data sets: {', '.join(names)}."
    )
  content = {
    "means": means,
    "data_sets": results,
    "left_out": [name for name in multi.configs if name not in available],
    "failures": failures,
  }
  write_files(multi.folder, content, text)
  return f"\n{text}"
