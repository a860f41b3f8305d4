# SPDX-License-Identifier: Apache-2.0
"""The same sweep on several data sets of a recipe, and the means over them.

Such a recipe takes an argument dataset= and has a dict DATA_SETS by its values;
it may name the mean over all (AVERAGE) and groups with means of their own
(GROUPS, name -> data sets). All sweeps share one process: their configs come
from the recipe itself, and a stop reaches the run that is under way.
"""

import dataclasses
import json
import runpy
import statistics
from collections.abc import Callable, Iterable, Sequence

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from mixer.cli import EX_OK
from mixer.errors import UserError, did_you_mean
from mixer.jax_setup import configure_xla
from mixer.storage import storage_path
from mixer.tools.sweep.plan import describe, plan_sweep
from mixer.tools.sweep.sweep import JSON, AllFailedError, mean_text, write_files
from mixer.tools.sweep.sweep import sweep as sweep_one
from mixer.tools.table import render
from mixer.training import run_dir
from mixer.training.lock import locked


@dataclasses.dataclass
class MultiDatasetSweep:
  """Data sets to sweep on.

  Attributes:
    folder: each one has a folder in it.
    configs: of each.
    average: what the mean over all is called.
    groups: name -> data sets; all those of the recipe are the last one.
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
      f"--datasets stands in the place of the recipe's dataset: leave it out "
      f"of {arg!r}, and write the others as key=value."
    )
  names = list(known) if list(names) == ["all"] else list(dict.fromkeys(names))
  for name in names:
    if name not in known:
      raise UserError(
        f"--datasets: {file} has no {name!r}{did_you_mean(name, known)}"
      )
  overrides = config_flags.get_override_values(flag)
  average = recipe.get("AVERAGE", "mean")
  return MultiDatasetSweep(
    storage_path(workdir),
    {
      name: _config(recipe["get_config"], arg, name, overrides)
      for name in names
    },
    average,
    dict(recipe.get("GROUPS", {})) | {average: tuple(known)},
  )


def _config(
  get_config: Callable, arg: str, name: str, overrides: dict
) -> ConfigDict:
  config = get_config(",".join(filter(None, (arg, f"dataset={name}"))))
  try:
    config.update_from_flattened_dict(overrides)
  except KeyError as error:
    raise UserError(f"The config for {name}: {error.args[0]}") from error
  return config


def dry_run(
  several: MultiDatasetSweep, *, skip_missing: bool, accept_changes: bool
) -> int:
  """Prints what the sweeps come to; raises UserError with what is missing."""
  _check(several, skip_missing=skip_missing, accept_changes=accept_changes)
  print("Nothing else is missing: without --dry_run this trains.")
  return EX_OK


def sweep(
  several: MultiDatasetSweep,
  *,
  skip_missing: bool,
  accept_changes: bool,
  stop_asked: Callable[[], bool],
) -> int:
  """Carries out the sweeps, one after the other, and writes the table.

  A data set on which no run has come to a result does not stop the others.
  """
  folder = run_dir.make_folder(str(several.folder))
  with locked(folder):
    there = _check(
      several, skip_missing=skip_missing, accept_changes=accept_changes
    )
    failures = {}
    for name in there:
      print(f"\n== {name} ==", flush=True)
      try:
        code = sweep_one(
          several.configs[name],
          str(folder / name),
          accept_changes=accept_changes,
          stop_asked=stop_asked,
        )
      except AllFailedError as error:
        failures[name] = str(error)
        print(error, flush=True)
      else:
        if code != EX_OK:
          return code
    print(_report(several, there, failures))
  if failures:
    raise UserError("\n".join(failures.values()))
  return EX_OK


def _check(
  several: MultiDatasetSweep, *, skip_missing: bool, accept_changes: bool
) -> list[str]:
  """Checks all sweeps, says what they come to and returns those to carry out.

  Raises:
    UserError: with everything that stands in the way of any of them.
  """
  there, missing, problems = [], {}, []
  for name, config in several.configs.items():
    configure_xla(deterministic=config.get("deterministic_operations"))
    plan = plan_sweep(
      config, several.folder / name, accept_changes=accept_changes
    )
    print(f"== {name} ==\n{describe(plan)}", flush=True)
    for problem in plan.complaints.problems:
      # Most are the same for all.
      if not any(problem in each for each in problems):
        problems.append(f"{name}: {problem}")
    if plan.complaints.missing:
      missing[name] = plan.complaints.missing
    else:
      there.append(name)
  complaints = list(dict.fromkeys(sum(missing.values(), [])))
  if missing and skip_missing and there and not problems:
    listed = "\n  ".join(complaints)
    print(f"\nLeaves out {', '.join(missing)}:\n  {listed}", flush=True)
  elif problems or missing:
    raise UserError("\n".join(complaints + problems))
  return there


def _report(
  several: MultiDatasetSweep, there: list[str], failures: dict[str, str]
) -> str:
  """Writes sweep.md and sweep.json for all, and returns the text."""
  found = {}
  for name in there:
    if name not in failures:
      file = several.folder / name / JSON
      each = json.loads(file.read_text())
      found[name] = {
        "folder": name,
        "learning_rate": each["learning_rate"],
        "report": each["report"],
        **each["means"][each["report"]],
      }
  means = {
    group: _mean(found, names)
    for group, names in several.groups.items()
    if all(name in found for name in names)
  }
  text = _table(several, found, means, failures)
  if several.average not in means and found:
    over = means["mean of these"] = _mean(found, found)
    all_names = several.groups[several.average]
    text += (
      f"\n\nMean of these {len(found)}: {over:.5f}. It is not the paper's, "
      f"which is over {len(all_names)} data sets: {', '.join(all_names)}."
    )
  provenance = run_dir.provenance()
  content = {
    "means": means,
    "data_sets": found,
    "left_out": [name for name in several.configs if name not in there],
    "failures": failures,
    "date": provenance["date"],
    "git_commit": provenance["git_commit"],
    "provenance": provenance,
  }
  write_files(several.folder, content, text)
  return f"\n{text}"


def _mean(found: dict[str, dict], names: Iterable[str]) -> float:
  return statistics.fmean(found[name]["mean"] for name in names)


def _table(
  several: MultiDatasetSweep,
  found: dict[str, dict],
  means: dict[str, float],
  failures: dict[str, str],
) -> str:
  """A row for each data set, then one for each mean."""
  rows = []
  for name in several.configs:
    if each := found.get(name):
      rate, runs = f"{each['learning_rate']:g}", str(each["runs"])
      rows.append((name, rate, mean_text(each), runs, each["report"]))
    else:
      why = "failed" if name in failures else "left out: not there"
      rows.append((name, "", why, "", ""))
  rows += [(group, "", f"{mean:.5f}", "", "") for group, mean in means.items()]
  header = ("data set", "learning rate", "mean ± deviation", "runs", "result")
  return render(header, rows)
