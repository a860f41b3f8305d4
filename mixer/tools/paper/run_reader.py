# SPDX-License-Identifier: Apache-2.0
"""Reads the folder of a run, a sweep or an evaluation."""

import collections
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping

from etils import epath
from ml_collections import ConfigDict

from mixer import schema
from mixer.config_check import to_dict
from mixer.errors import UserError
from mixer.storage import storage_path
from mixer.tools.paper.results_store import EVALUATION, RUN, SWEEP
from mixer.tools.sweep.report import JSON as SWEEP_FILE
from mixer.training.metrics import Number, read_rows
from mixer.training.run_dir import EVALUATION as EVALUATION_FILE
from mixer.training.run_dir import read_config, read_json, resolve_known
from mixer.weights import RUN_FILE

Series = tuple[list[int], list[float]]  # steps and values
# Of updates before the first start in a provenance.json that was lost once.
_UNKNOWN = {"device_kind": "unknown device", "devices": 1}


def find_folder(workdir: str | os.PathLike) -> epath.Path:
  """Returns a folder on a disk or in a bucket; UserError if there is none."""
  folder = storage_path(workdir)
  if not folder.is_dir():
    raise UserError(
      f"There is no folder {folder}: name one that train.py or python -m mixer "
      "sweep was given as --workdir."
    )
  return folder


@dataclasses.dataclass(frozen=True)
class Run:
  """A run: finished, in progress or broken off."""

  folder: epath.Path
  config: dict  # resolved, in JSON's types
  rows: list[dict[str, Number]]  # of metrics.jsonl, by step; may be empty
  starts: list[dict]  # of provenance.json, the first one first; may be empty
  total_steps: int | None  # None: epochs of a data set of unknown size

  @property
  def step(self) -> int:
    """Last step in the log."""
    return self.rows[-1]["step"] if self.rows else 0

  @property
  def is_done(self) -> bool:
    """Returns whether the run has its weights, and its log all steps."""
    has_all_steps = self.total_steps is None or self.step >= self.total_steps
    return has_all_steps and (self.folder / RUN_FILE).is_file()

  @property
  def evaluation_names(self) -> list[str]:
    """Names such as "eval/test/accuracy", in the order of the log."""
    names = dict.fromkeys(name for row in self.rows for name in row)
    return [name for name in names if name.startswith("eval/")]

  def series(self, name: str) -> Series:
    """Returns steps and values where the log has a finite number."""
    finite = [r for r in self.rows if math.isfinite(r.get(name, math.nan))]
    return [r["step"] for r in finite], [r[name] for r in finite]

  def update_seconds(self) -> Iterator[tuple[int, float]]:
    """Yields steps, and the seconds of the updates since the one before.

    Without evaluation, saving and compilation. A row's images per second are
    those of the updates since the row before. Rows without them, of an
    evaluation or soon after a start, are passed over.
    """
    before = 0
    for step, rate in zip(*self.series("images_per_second"), strict=True):
      if rate:
        yield step, (step - before) * self.config["batch"] / rate
        before = step

  def device_days(self) -> dict[str, float]:
    """Sums devices x days over all updates, by kind of device.

    A run may continue on other devices. One TPUv3 core is one device.
    """
    days = collections.Counter()
    for step, seconds in self.update_seconds():
      # A later start drops the rows after its first step.
      earlier = [x for x in self.starts if x["from_step"] < step]
      start = earlier[-1] if earlier else _UNKNOWN
      days[start["device_kind"]] += start["devices"] * seconds / 86_400
    return dict(days)


def read_run(folder: epath.Path) -> Run:
  """Reads a run's folder, which has a config.json."""
  config = read_config(folder / "config.json")
  options = ConfigDict(config)
  try:
    total_steps = schema.resolve_steps(
      options, "total", batch=options.batch, examples=options.data.examples
    )
  except schema.EpochLengthError:
    total_steps = None
  rows, starts = read_rows(folder), _read_starts(folder)
  return Run(folder, config, rows, starts, total_steps)


def _read_starts(folder: epath.Path) -> list[dict]:
  file = folder / "provenance.json"
  return read_json(file)["starts"] if file.is_file() else []


@dataclasses.dataclass(frozen=True)
class RunResult:
  """Results of a run, of a sweep on one data set, or of an evaluation."""

  folder: epath.Path
  kind: str  # RUN, SWEEP or EVALUATION
  config: dict  # resolved, in JSON's types
  # Result -> "mean" (accuracies 0 to 1), "deviation" (None for one), "runs".
  means: dict[str, dict]
  starts: list[dict]  # date, commit and devices of each start
  learning_rate: float | None = None  # of a run, or chosen by a sweep
  # The same results of each final run of a sweep.
  by_seed: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
  # Of a run: kind of device -> device-days of its updates.
  device_days: dict[str, float] = dataclasses.field(default_factory=dict)
  sha256: str | None = None  # of the file that was evaluated, if known


def read_results(workdir: str | os.PathLike) -> dict[str, RunResult]:
  """Reads the folder of a run, a sweep or an evaluation.

  Returns:
    Data set -> results of a sweep on several; else one result, of "".

  Raises:
    UserError: there are none, or not yet.
  """
  folder = find_folder(workdir)
  if (folder / SWEEP_FILE).is_file():
    names = read_json(folder / SWEEP_FILE).get("data_sets")
    if names is None:
      return {"": _read_sweep(folder)}
    return {name: _read_sweep(folder / name) for name in names}
  if (folder / "config.json").is_file():
    return {"": _read_finished(folder)}
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


def _read_finished(folder: epath.Path) -> RunResult:
  run = read_run(folder)
  if not run.is_done:
    raise UserError(
      f"The run in {folder} has come to step {run.step:,} of "
      f"{run.total_steps or 0:,}: let it finish, the same command goes on."
    )
  if not run.starts:
    raise UserError(
      f"{folder / 'provenance.json'} is missing, or has no starts: bring it "
      "back, no number is recorded without the code and the devices that it "
      "came from."
    )
  return results_of(run, run.rows[-1])


def results_of(run: Run, results: Mapping[str, Number]) -> RunResult:
  """Returns a run with the given results of its evaluators."""
  config = resolve_known(run.config)
  return RunResult(
    run.folder,
    RUN,
    to_dict(config),
    _single_means(results),
    run.starts,
    learning_rate=config.optimizer.learning_rate,
    device_days=run.device_days(),
  )


def _read_evaluation(folder: epath.Path) -> RunResult:
  content = read_json(folder / EVALUATION_FILE)
  # Checkpoints in the folder are evaluated instead of config.init.
  config = content["config"] | {"init": content["evaluated"]}
  return RunResult(
    folder,
    EVALUATION,
    to_dict(resolve_known(config)),
    _single_means(content["results"]),
    [content],
    sha256=content.get("sha256"),
  )


def _read_sweep(folder: epath.Path) -> RunResult:
  content = read_json(folder / SWEEP_FILE)
  final = content["final"]
  starts = [x for run in final for x in _read_starts(folder / run["folder"])]
  return RunResult(
    folder,
    SWEEP,
    to_dict(resolve_known(content["config"])),
    content["means"],
    starts or [content["provenance"]],  # runs may have been moved away
    learning_rate=content["learning_rate"],
    by_seed={run["seed"]: run["results"] for run in final},
  )


def _single_means(results: Mapping[str, Number]) -> dict[str, dict]:
  """Returns the evaluators' results of one run as means over one run."""
  return {
    name: {"mean": value, "deviation": None, "runs": 1}
    for name, value in results.items()
    if name.startswith("eval/")
  }
