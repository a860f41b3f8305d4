# SPDX-License-Identifier: Apache-2.0
"""What a run's or a sweep's folder has to offer to the tables."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mixer import config as schema
from mixer.errors import UserError
from mixer.paper.measured.device_days import device_days
from mixer.paper.measured.records import EVALUATION, RUN, SWEEP, SWEEPS
from mixer.sweep.report import JSON
from mixer.training import run_folder
from mixer.training.log import read_rows
from mixer.weights import RUN_FILE


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
  """

  folder: Path
  kind: str
  parts: dict[str, Part]
  origin: dict
  without: tuple[str, ...] = ()
  device_days: dict[str, float] = dataclasses.field(default_factory=dict)


def read(workdir: str | os.PathLike) -> Offered:
  """Reads a folder.

  Raises:
    UserError: it has no results, or not yet; with what to do.
  """
  folder = Path(workdir).expanduser()
  if not folder.is_dir():
    raise UserError(
      f"There is no folder {workdir}: name one that train.py or python -m "
      "mixer.sweep was given as --workdir."
    )
  if (folder / JSON).is_file():
    with _reading(folder / JSON):
      found = _json(folder / JSON)
      return _several(folder, found) if "data_sets" in found else _sweep(folder)
  if (folder / "config.json").is_file():
    with _reading(folder / "config.json"):
      return _run(folder)
  if (folder / run_folder.EVALUATION).is_file():
    with _reading(folder / run_folder.EVALUATION):
      return _evaluation(folder)
  if any(folder.glob("*/config.json")) or any(folder.glob(f"*/{JSON}")):
    raise UserError(
      f"The sweep in {folder} has not ended: give its command again, which "
      "goes on, or name the folder of one of its runs."
    )
  raise UserError(
    f"{folder} has no results, neither of a run nor of a sweep: name the "
    "folder that train.py or python -m mixer.sweep was given as --workdir."
  )


def _run(folder: Path) -> Offered:
  config = _json(folder / "config.json")
  rows = read_rows(folder)
  step = rows[-1]["step"] if rows else 0
  options = ConfigDict(config)
  total = schema.steps(
    options, "total", batch=options.batch, examples=options.data.examples
  )
  if step != total or not (folder / RUN_FILE).is_file():
    raise UserError(
      f"The run in {folder} has come to step {step:,} of {total or 0:,}: let "
      "it finish, the same command goes on."
    )
  means = _of_one(rows[-1])
  starts = _starts(folder)
  return Offered(
    folder,
    RUN,
    {"": Part(config, means, learning_rate=options.optimizer.learning_rate)},
    _origin(starts),
    device_days=device_days(rows, starts, options.batch),
  )


def _evaluation(folder: Path) -> Offered:
  found = _json(folder / run_folder.EVALUATION)
  # Of a folder with checkpoints it may not have been what config.init names.
  config = found["config"] | {"init": found["evaluated"]}
  part = Part(config, _of_one(found["results"]))
  return Offered(folder, EVALUATION, {"": part}, _origin([found]))


def _of_one(results: dict[str, float]) -> dict[str, dict]:
  return {
    name: {"mean": value, "deviation": None, "runs": 1}
    for name, value in results.items()
    if name.startswith("eval/")
  }


def _sweep(folder: Path) -> Offered:
  part, starts = _read_sweep(folder)
  return Offered(folder, SWEEP, {"": part}, _origin(starts))


def _several(folder: Path, found: dict) -> Offered:
  parts, starts = {}, []
  for name in found["data_sets"]:
    parts[name], own = _read_sweep(folder / name)
    starts += own
  without = (*found["left_out"], *found["failures"])
  return Offered(folder, SWEEPS, parts, _origin(starts), without)


def _read_sweep(folder: Path) -> tuple[Part, list[dict]]:
  """The sweep's part, and the starts of the runs that it reports."""
  found = _json(folder / JSON)
  starts = [
    start for run in found["final"] for start in _starts(folder / run["folder"])
  ]
  part = Part(
    found["config"],
    found["means"],
    {run["seed"]: run["results"] for run in found["final"]},
    found["learning_rate"],
  )
  # Runs may have been moved away since.
  return part, starts or [found["provenance"]]


def _starts(folder: Path) -> list[dict]:
  file = folder / "provenance.json"
  return list(_json(file)["starts"]) if file.is_file() else []


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


def _json(file: Path) -> dict:
  return dict(json.loads(file.read_text()))


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
  """Makes one message of what damaged files raise."""
  try:
    yield
  except UserError:
    raise
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{file}, or a file beside it, is damaged ({type(error).__name__}: "
      f"{error}): bring the folder back from where it is whole."
    ) from error
