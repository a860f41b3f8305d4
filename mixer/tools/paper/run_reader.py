# SPDX-License-Identifier: Apache-2.0
"""Reads results, log, provenance and cost from the folder of a run or sweep."""

import collections
import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence

from etils import epath
from ml_collections import ConfigDict

from mixer import schema
from mixer.config_check import to_dict
from mixer.errors import UserError
from mixer.storage import storage_errors, storage_path
from mixer.tools.paper.results_store import EVALUATION, RUN, SWEEP
from mixer.tools.sweep.report import JSON as SWEEP_FILE
from mixer.training.metrics import Number, read_rows
from mixer.training.run_dir import EVALUATION as EVALUATION_FILE
from mixer.training.run_dir import (
  read_json,
  resolve_known,
  validate_config,
  wrap_read_errors,
)
from mixer.weights import RUN_FILE

_SECONDS_PER_DAY = 86_400.0
# Of updates before the first start in a provenance.json that was lost once.
_UNKNOWN = {"device_kind": "unknown device", "devices": 1}


@dataclasses.dataclass(frozen=True)
class RunResult:
  """Results of a run, of a sweep on one data set, or of an evaluation.

  kind: RUN, SWEEP or EVALUATION.
  config: resolved, in JSON's types.
  means: result -> "mean" (accuracies 0 to 1), "deviation" (None for one run),
    "runs".
  starts: date, commit and devices of each start.
  learning_rate: of a run, or chosen by a sweep.
  by_seed: the same results of each final run of a sweep.
  device_days: of a run, kind of device -> device-days of its updates.
  sha256: of the file that was evaluated; None if not known.
  """

  folder: epath.Path
  kind: str
  config: dict
  means: dict[str, dict]
  starts: list[dict]
  learning_rate: float | None = None
  by_seed: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
  device_days: dict[str, float] = dataclasses.field(default_factory=dict)
  sha256: str | None = None


def read_results(workdir: str | os.PathLike) -> dict[str, RunResult]:
  """Reads the folder of a run, a sweep or an evaluation.

  Returns:
    Data set -> results of a sweep on several; else one result, of "".

  Raises:
    UserError: it has no results yet, or a file in it is damaged.
  """
  with open_folder(workdir) as folder:
    if (folder / SWEEP_FILE).is_file():
      names = read_json(folder / SWEEP_FILE).get("data_sets")
      if names is None:
        return {"": _read_sweep(folder)}
      return {name: _read_sweep(folder / name) for name in names}
    if (folder / "config.json").is_file():
      return {"": _read_run(folder)}
    if (folder / EVALUATION_FILE).is_file():
      return {"": _read_evaluation(folder)}
    if any(folder.glob("*/config.json")) or any(folder.glob(f"*/{SWEEP_FILE}")):
      raise UserError(
        f"The sweep in {folder} has not ended: give its command again, which "
        "goes on, or name the folder of one of its runs."
      )
    raise UserError(
      f"{folder} has no results, neither of a run nor of a sweep: name the "
      "folder that train.py or python -m mixer sweep was given as --workdir."
    )


def _read_run(folder: epath.Path) -> RunResult:
  file = folder / "config.json"
  config = _resolve(read_json(file), file)
  rows = read_log(folder)
  step = rows[-1]["step"] if rows else 0
  with wrap_read_errors(file):
    total = schema.resolve_steps(
      config, "total", batch=config.batch, examples=config.data.examples
    )
  if step != total or not (folder / RUN_FILE).is_file():
    raise UserError(
      f"The run in {folder} has come to step {step:,} of {total or 0:,}: let "
      "it finish, the same command goes on."
    )
  file = folder / "provenance.json"
  starts = read_starts(file)
  if not starts:
    raise UserError(
      f"{file} is missing, or has no starts: bring it back, no number is "
      "recorded without the code and the devices that it came from."
    )
  return RunResult(
    folder,
    RUN,
    to_dict(config),
    single_means(rows[-1]),
    starts,
    learning_rate=config.optimizer.learning_rate,
    device_days=device_days(rows, starts, config.batch),
  )


def _read_evaluation(folder: epath.Path) -> RunResult:
  file = folder / EVALUATION_FILE
  content = read_json(file)
  with wrap_read_errors(file):
    # Checkpoints in the folder are evaluated instead of config.init.
    config = content["config"] | {"init": content["evaluated"]}
    return RunResult(
      folder,
      EVALUATION,
      to_dict(_resolve(config, file)),
      single_means(content["results"]),
      [content],
      sha256=content.get("sha256"),
    )


def _read_sweep(folder: epath.Path) -> RunResult:
  file = folder / SWEEP_FILE
  content = read_json(file)
  with wrap_read_errors(file):
    starts = []
    for run in content["final"]:
      starts += read_starts(folder / run["folder"] / "provenance.json")
    return RunResult(
      folder,
      SWEEP,
      to_dict(_resolve(content["config"], file)),
      content["means"],
      starts or [content["provenance"]],  # runs may have been moved away
      learning_rate=content["learning_rate"],
      by_seed={run["seed"]: run["results"] for run in content["final"]},
    )


def _resolve(config: dict, file: epath.Path) -> ConfigDict:
  return resolve_known(validate_config(config, file))


def single_means(results: dict[str, Number]) -> dict[str, dict]:
  """Returns the evaluators' results of one run as means over one run."""
  return {
    name: {"mean": value, "deviation": None, "runs": 1}
    for name, value in results.items()
    if name.startswith("eval/")
  }


@contextlib.contextmanager
def open_folder(workdir: str | os.PathLike) -> Iterator[epath.Path]:
  """Yields a folder on a disk or in a bucket, to read it.

  Raises:
    UserError: there is none, or its bucket refuses.
    RetryableError: its bucket cannot be reached.
  """
  with storage_errors(workdir):
    folder = storage_path(workdir)
    if not folder.is_dir():
      raise UserError(
        f"There is no folder {folder}: name one that train.py or python -m "
        "mixer sweep was given as --workdir."
      )
    yield folder


def read_starts(file: epath.Path) -> list[dict]:
  """Reads the starts in provenance.json, the first one first.

  Args:
    file: a missing one has no starts.

  Raises:
    UserError: it is damaged.
  """
  if not file.is_file():
    return []
  with wrap_read_errors(file):
    return [dict(start) for start in read_json(file)["starts"]]


def read_log(folder: epath.Path) -> list[dict[str, Number]]:
  """Reads the rows of metrics.jsonl.

  Raises:
    UserError: it is damaged, or missing although the run is done.
  """
  rows = read_rows(folder)
  if not rows and (folder / RUN_FILE).is_file():
    raise UserError(f"{folder / 'metrics.jsonl'} is missing: bring it back.")
  return rows


def device_days(
  rows: Sequence[dict], starts: Sequence[dict], batch: int
) -> dict[str, float]:
  """Sums devices x days over all updates, by kind of device.

  The run's clock excludes evaluation, saving and compilation.

  Args:
    rows: of metrics.jsonl.
    starts: of provenance.json; a run may continue on other devices.
    batch: images per update.

  Returns:
    Kind of device -> device-days. One TPUv3 core is one device.
  """
  days = collections.Counter()
  for step, seconds in update_seconds(rows, batch):
    # A later start drops the rows after its first step.
    earlier = (x for x in reversed(starts) if x["from_step"] < step)
    start = next(earlier, _UNKNOWN)
    days[start["device_kind"]] += start["devices"] * seconds / _SECONDS_PER_DAY
  return dict(days)


def update_seconds(
  rows: Sequence[dict], batch: int
) -> Iterator[tuple[int, float]]:
  """Yields steps, and the seconds of the updates since the one before.

  A row's images per second are those of the updates since the row before. Rows
  without them, of an evaluation or soon after a start, are passed over.
  """
  before = 0
  for row in rows:
    rate = row.get("images_per_second")
    if rate and math.isfinite(rate):
      yield row["step"], (row["step"] - before) * batch / rate
      before = row["step"]
