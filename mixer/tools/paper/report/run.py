# SPDX-License-Identifier: Apache-2.0
"""Reads a run's folder for its report: finished, in progress or broken off."""

import csv
import dataclasses
import math
import os
import re

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from mixer import schema
from mixer.datasets import class_names
from mixer.errors import UserError, format_list
from mixer.tools.paper.record import match_row
from mixer.tools.paper.run_reader import (
  open_folder,
  read_log,
  read_starts,
  update_seconds,
)
from mixer.tools.sweep.report import JSON as SWEEP_FILE
from mixer.tools.sweep.report import MARKDOWN as SWEEP_TABLE
from mixer.training.metrics import Number, read_rows
from mixer.training.plots import collect
from mixer.training.run_dir import read_config, wrap_read_errors
from mixer.weights import RUN_FILE

Series = tuple[list[int], list[float]]  # steps and values
# Column of tables 2 and 3 -> evaluators of the recipes that measure it.
_EVALUATORS = {"imagenet": ("val", "test"), "real": ("real",)}


@dataclasses.dataclass(frozen=True)
class Confusion:
  """A confusion matrix: counts int [n, n] by label and prediction."""

  source: str
  names: tuple[str, ...]
  counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Mistake:
  """A misclassified image of predictions.csv."""

  path: str
  label: str
  guess: str
  probability: float


@dataclasses.dataclass(frozen=True)
class Published:
  """A published accuracy, 0 to 1, and its source, such as "paper, table 3"."""

  value: float
  source: str


@dataclasses.dataclass(frozen=True)
class Run:
  """The content of a run's folder.

  Attributes:
    folder: of the run.
    config: resolved, in JSON's types.
    rows: of metrics.jsonl, by step; may be empty.
    starts: of provenance.json, the first one first; may be empty.
    skipped: of skipped.jsonl; may be empty.
    total_steps: updates of the whole run; None if the config counts epochs of a
      data set of unknown size.
    is_done: the run has its weights, and its log all steps.
    parameters: their number; None if not known.
    confusions: of eval/*_confusion.csv and predictions.csv.
    mistakes: of predictions.csv, the most confident first.
  """

  folder: epath.Path
  config: dict = dataclasses.field(repr=False)
  rows: list[dict[str, Number]] = dataclasses.field(repr=False)
  starts: list[dict] = dataclasses.field(repr=False)
  skipped: list[dict] = dataclasses.field(repr=False)
  total_steps: int | None
  is_done: bool
  parameters: int | None
  confusions: list[Confusion] = dataclasses.field(repr=False)
  mistakes: list[Mistake] = dataclasses.field(repr=False)

  @property
  def name(self) -> str:
    return self.folder.resolve().name

  @property
  def step(self) -> int:
    """Last step in the log."""
    return self.rows[-1]["step"] if self.rows else 0

  @property
  def evaluation_names(self) -> list[str]:
    """Names such as "eval/test/accuracy", in the order of the log."""
    names = dict.fromkeys(name for row in self.rows for name in row)
    return [name for name in names if name.startswith("eval/")]

  def series(self, name: str) -> Series:
    """Returns steps and values where the log has a finite number."""
    steps, values = collect(self.rows, name)
    pairs = [p for p in zip(steps, values, strict=True) if math.isfinite(p[1])]
    return [step for step, _ in pairs], [value for _, value in pairs]

  def not_finite(self, name: str) -> list[int]:
    """Returns the steps where the log has a number that is not finite."""
    steps, values = collect(self.rows, name)
    return [
      s for s, v in zip(steps, values, strict=True) if not math.isfinite(v)
    ]

  @property
  def seconds(self) -> float | None:
    """Duration of the updates, without evaluation, saving and compilation."""
    updates = update_seconds(self.rows, self.config["batch"])
    return sum(seconds for _, seconds in updates) or None


def read(workdir: str | os.PathLike) -> Run:
  """Reads a run's folder.

  Raises:
    UserError: it is not a run's, or a file in it is damaged.
  """
  with open_folder(workdir) as folder:
    file = folder / "config.json"
    if not file.is_file():
      raise UserError(_explain_folder(folder))
    config = read_config(file)
    with wrap_read_errors(file):
      total_steps = _total_steps(ConfigDict(config))
    confusions = [
      _read_confusion(files[0], name)
      for name in config["evals"]
      if (files := _confusion_files(folder / "eval", name))
    ]
    mistakes = []
    file, classes = folder / "predictions.csv", folder / "classes.txt"
    if file.is_file() and classes.is_file():
      predictions, mistakes = _read_predictions(file, classes)
      # Of images that an evaluator saw, too, one matrix is enough.
      known = [each.counts.tolist() for each in confusions]
      if predictions.counts.any() and predictions.counts.tolist() not in known:
        confusions.append(predictions)
    rows = read_log(folder)
    step = rows[-1]["step"] if rows else 0
    has_all_steps = total_steps is None or step >= total_steps
    return Run(
      folder=folder,
      config=config,
      rows=rows,
      starts=read_starts(folder / "provenance.json"),
      skipped=[
        {"examples": []} | row for row in read_rows(folder, "skipped.jsonl")
      ],
      total_steps=total_steps,
      is_done=has_all_steps and (folder / RUN_FILE).is_file(),
      parameters=_read_parameters(folder / "parameters.txt"),
      confusions=confusions,
      mistakes=mistakes,
    )


def _explain_folder(folder: epath.Path) -> str:
  """Describes a folder that is not a run's, and names a run if it has one."""
  runs = sorted(
    (path.parent.name for path in folder.glob("*/config.json")),
    # A sweep's results are its final runs.
    key=lambda name: (not name.startswith("final_"), name),
  )
  if (folder / SWEEP_FILE).is_file() and runs:
    return (
      f"{folder} holds a sweep, whose table is {folder / SWEEP_TABLE}: name "
      f"one of its runs, such as {folder / runs[0]}."
    )
  if runs:
    return (
      f"{folder} holds no run itself, but in the folders "
      f"{format_list(runs, 5)}: name one, such as {folder / runs[0]}."
    )
  return (
    f"{folder} is no run's folder, since it has no config.json: name one that "
    "train.py was given as --workdir."
  )


def _total_steps(options: ConfigDict) -> int | None:
  try:
    return schema.resolve_steps(
      options, "total", batch=options.batch, examples=options.data.examples
    )
  except UserError:  # in epochs of a data set whose size is not recorded
    return None


def _read_parameters(file: epath.Path) -> int | None:
  """Returns the total at the end of parameters.txt."""
  if not file.is_file():
    return None
  with wrap_read_errors(file):
    total = re.search(r"^Total: ([\d,]+)", file.read_text(), re.MULTILINE)
    return int(total[1].replace(",", "")) if total else None


def _confusion_files(folder: epath.Path, evaluator: str) -> list[epath.Path]:
  """Returns the files that an evaluator wrote, the most detailed first."""
  files = [folder / f"{evaluator}_{x}.csv" for x in ("confusion", "per_class")]
  return [file for file in files if file.is_file()]


def _read_confusion(file: epath.Path, evaluator: str) -> Confusion:
  """Reads an evaluator's NAME_confusion.csv or NAME_per_class.csv.

  Of the latter all mistakes are counted as one more class.
  """
  with wrap_read_errors(file):
    [_, *head], *rows = csv.reader(file.read_text("utf-8").splitlines())
    names = [row[0] for row in rows]
    counts = np.array([row[1:] for row in rows])
    if file.name.endswith("_per_class.csv"):
      examples, correct = counts[:, :2].astype(int).T
      counts = np.diag(np.append(correct, 0))
      counts[:-1, -1] = examples - correct
      names.append("another class")
    elif names != head:
      raise ValueError(f"it has rows {names} and columns {head}")
  source = f"the last pass of the evaluator {evaluator}"
  return Confusion(source, class_names.readable(names), counts.astype(int))


def _read_predictions(
  file: epath.Path, classes: epath.Path
) -> tuple[Confusion, list[Mistake]]:
  """Reads the table of `python -m mixer predict --out`.

  Images whose folders name no class are left out.

  Args:
    file: the table.
    classes: names of the run's classes, a line each.
  """
  with wrap_read_errors(file):
    rows = csv.DictReader(file.read_text("utf-8").splitlines())
    best = [row for row in rows if int(row["rank"]) == 1]
    guesses = [int(row["class"]) for row in best]
    names = class_names.readable(classes.read_text("utf-8").splitlines())
    folders = class_names.folder_classes(names)
    counts = np.zeros((len(names), len(names)), np.int64)
    mistakes = []
    for row, guess in zip(best, guesses, strict=True):
      label = class_names.true_class(row["image"], folders)
      if label is None:
        continue
      counts[label, guess] += 1
      if label != guess:
        probability = float(row["probability"])
        mistakes.append(
          Mistake(row["image"], names[label], names[guess], probability)
        )
  mistakes.sort(key=lambda mistake: -mistake.probability)
  return Confusion(file.name, names, counts), mistakes


def published_results(run: Run) -> dict[str, Published]:
  """Returns published accuracies by result, such as "eval/val/accuracy".

  They are the paper's if the run is one of its rows, by its config; else those
  that the config's evaluators state.
  """
  stated = {
    f"eval/{name}/accuracy": Published(options["published"], "by the config")
    for name, options in run.config["evals"].items()
    if options.get("published") is not None
  }
  return stated | _published_row(run)


def _published_row(run: Run) -> dict[str, Published]:
  """Returns the accuracies of the row of table 2 or 3 that a run is of."""
  results = {
    name: values[-1]
    for name in run.evaluation_names
    if (values := run.series(name)[1])
  }
  match = match_row(run.folder, run.config, results) if run.rows else None
  if match is None:
    return {}
  row, cells = match
  return {
    f"eval/{name}/accuracy": Published(
      getattr(row, cell) / 100, f"paper, table {row.table}"
    )
    for cell, names in _EVALUATORS.items()
    if cell in cells and getattr(row, cell) is not None
    for name in names
    if f"eval/{name}/accuracy" in results
  }
