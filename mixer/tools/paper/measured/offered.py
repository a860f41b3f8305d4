# SPDX-License-Identifier: Apache-2.0
"""What a run's or a sweep's folder has to offer to the tables."""

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence

from etils import epath
from ml_collections import ConfigDict

from mixer import schema
from mixer.errors import UserError
from mixer.tools.paper.results_store import EVALUATION, RUN, SWEEP, SWEEPS
from mixer.tools.paper.run_files import (
  device_days,
  open_folder,
  read_log,
  read_starts,
)
from mixer.tools.sweep.report import JSON
from mixer.training.run_dir import EVALUATION as EVALUATION_FILE
from mixer.training.run_dir import (
  read_config,
  read_json,
  validate_config,
  wrap_read_errors,
)
from mixer.weights import RUN_FILE

# No number without these of the start that it came from.
_ORIGIN = "date", "git_commit", "git_changes", "devices", "device_kind"


@dataclasses.dataclass(frozen=True)
class Part:
  """What a run, or a sweep on one data set, has come to.

  Attributes:
    config: resolved, in JSON's types.
    means: result -> "mean" (of accuracies 0 to 1), "deviation", "runs".
    by_seed: the same results of each final run of a sweep.
    learning_rate: that a sweep chose.
  """

  config: dict
  means: dict[str, dict]
  by_seed: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
  learning_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Offered:
  """A folder with results.

  Attributes:
    folder: of the run or the sweep.
    kind: RUN, SWEEP, SWEEPS on several data sets, or EVALUATION.
    parts: data set -> its part; one part, of name "", but for SWEEPS.
    without: data sets on which SWEEPS have no result.
    origin: "date", "git_commits", "git_changes" and "devices", as recorded.
    device_days: of a RUN, device kind -> device-days of its updates.
    sha256: of the file of weights that an EVALUATION is of, None if not known.
  """

  folder: epath.Path
  kind: str
  parts: dict[str, Part]
  origin: dict
  without: tuple[str, ...] = ()
  device_days: dict[str, float] = dataclasses.field(default_factory=dict)
  sha256: str | None = None


def read(workdir: str | os.PathLike) -> Offered:
  """Reads a folder.

  Raises:
    UserError: it has no results, or not yet, or a file of it is damaged; with
      what to do.
  """
  with open_folder(workdir) as folder:
    return _read(folder)


def _read(folder: epath.Path) -> Offered:
  if (folder / JSON).is_file():
    found = read_json(folder / JSON)
    with wrap_read_errors(folder / JSON):
      return _several(folder, found) if "data_sets" in found else _sweep(folder)
  if (folder / "config.json").is_file():
    return _run(folder)
  if (folder / EVALUATION_FILE).is_file():
    with wrap_read_errors(folder / EVALUATION_FILE):
      return _evaluation(folder)
  if any(folder.glob("*/config.json")) or any(folder.glob(f"*/{JSON}")):
    raise UserError(
      f"The sweep in {folder} has not ended: give its command again, which "
      "goes on, or name the folder of one of its runs."
    )
  raise UserError(
    f"{folder} has no results, neither of a run nor of a sweep: name the "
    "folder that train.py or python -m mixer sweep was given as --workdir."
  )


def _run(folder: epath.Path) -> Offered:
  config = read_config(folder / "config.json")
  rows = read_log(folder)
  step = rows[-1]["step"] if rows else 0
  options = ConfigDict(config)
  with wrap_read_errors(folder / "config.json"):
    total = schema.resolve_steps(
      options, "total", batch=options.batch, examples=options.data.examples
    )
  if step != total or not (folder / RUN_FILE).is_file():
    raise UserError(
      f"The run in {folder} has come to step {step:,} of {total or 0:,}: let "
      "it finish, the same command goes on."
    )
  with wrap_read_errors(folder / "metrics.jsonl"):
    means = _of_one(rows[-1])
  starts = read_starts(folder / "provenance.json", _ORIGIN)
  if not starts:
    raise UserError(
      f"{folder / 'provenance.json'} is missing, or has no starts: bring it "
      "back, no number is recorded without the code and the devices that it "
      "came from."
    )
  return Offered(
    folder,
    RUN,
    {"": Part(config, means, learning_rate=options.optimizer.learning_rate)},
    _origin(starts),
    device_days=device_days(rows, starts, options.batch),
  )


def _evaluation(folder: epath.Path) -> Offered:
  file = folder / EVALUATION_FILE
  found = read_json(file)
  # Of a folder with checkpoints it may not have been what config.init names.
  config = validate_config(found["config"] | {"init": found["evaluated"]}, file)
  part = Part(config, _of_one(found["results"]))
  origin, sha256 = _origin([found]), found.get("sha256")
  if not isinstance(sha256, str | None):
    raise ValueError(f"sha256 = {sha256!r}")
  return Offered(folder, EVALUATION, {"": part}, origin, sha256=sha256)


def _of_one(results: dict[str, float]) -> dict[str, dict]:
  _check_results(results)
  return {
    name: {"mean": value, "deviation": None, "runs": 1}
    for name, value in results.items()
    if name.startswith("eval/")
  }


def _check_results(results: dict[str, float]):
  """Raises ValueError for an accuracy that no evaluation comes to."""
  for name, value in results.items():
    if not isinstance(value, int | float):
      raise ValueError(f"{name} = {value!r} is not a number")
    if name.endswith("/accuracy") and not 0 <= value <= 1:
      raise ValueError(f"{name} = {value!r} is not 0 to 1")


def _check_mean(name: str, mean: dict):
  """Raises ValueError for what is no mean over runs."""
  _check_results({name: mean["mean"]})
  deviation, runs = mean["deviation"], mean["runs"]
  if deviation is not None and not 0 <= deviation < math.inf:
    raise ValueError(f"deviation of {name} = {deviation!r}")
  if not isinstance(runs, int) or runs < 1:
    raise ValueError(f"runs of {name} = {runs!r}")


def _sweep(folder: epath.Path) -> Offered:
  part, starts = _read_sweep(folder)
  return Offered(folder, SWEEP, {"": part}, _origin(starts))


def _several(folder: epath.Path, found: dict) -> Offered:
  parts, starts = {}, []
  for name in found["data_sets"]:
    with wrap_read_errors(folder / name / JSON):
      parts[name], own = _read_sweep(folder / name)
    starts += own
  without = (*found["left_out"], *found["failures"])
  return Offered(folder, SWEEPS, parts, _origin(starts), without)


def _read_sweep(folder: epath.Path) -> tuple[Part, list[dict]]:
  """The sweep's part, and the starts of the runs that it reports."""
  found = read_json(folder / JSON)
  starts = []
  for run in found["final"]:
    starts += read_starts(folder / run["folder"] / "provenance.json", _ORIGIN)
    _check_results(run["results"])
  for name, mean in found["means"].items():
    _check_mean(name, mean)
  if not starts:  # runs may have been moved away since
    starts = [found["provenance"]]
  part = Part(
    validate_config(found["config"], folder / JSON),
    found["means"],
    {run["seed"]: run["results"] for run in found["final"]},
    found["learning_rate"],
  )
  return part, starts


def _origin(starts: Sequence[dict]) -> dict:
  """When, by which code and on what, of all starts."""
  return {
    "date": max((each["date"][:10] for each in starts), default=None),
    "git_commits": _distinct(each["git_commit"] for each in starts),
    "git_changes": any(each["git_changes"] for each in starts),
    "devices": _distinct(
      f"{each['devices']} x {each['device_kind']}" for each in starts
    ),
  }


def _distinct(values: Iterable[str | None]) -> list[str]:
  return list(dict.fromkeys(filter(None, values)))
