# SPDX-License-Identifier: Apache-2.0
"""A run's folder as a report reads it: of a run done, going on, broken off."""

import dataclasses
import json
import math
import os
import re

from etils import epath
from ml_collections import ConfigDict

from mixer import schema
from mixer.errors import UserError, format_list
from mixer.tools.paper.run_reader import (
  open_folder,
  read_log,
  read_starts,
  update_seconds,
)
from mixer.tools.sweep.report import JSON as SWEEP_FILE
from mixer.tools.sweep.report import MARKDOWN as SWEEP_TABLE
from mixer.training.metrics import Number
from mixer.training.plots import collect
from mixer.training.run_dir import read_config, wrap_read_errors
from mixer.weights import RUN_FILE

Series = tuple[list[int], list[float]]  # steps and values


@dataclasses.dataclass(frozen=True)
class Record:
  """What a run's folder holds.

  Attributes:
    folder: of the run.
    config: resolved, in JSON's types.
    rows: of metrics.jsonl, by step; perhaps none.
    starts: of provenance.json, the first one first; perhaps none.
    skipped: of skipped.jsonl; perhaps none.
    total_steps: updates that make the run whole; None if the config does not
      tell, since it counts epochs of a data set of unknown size.
    parameters: their number; None if not known.
  """

  folder: epath.Path
  config: dict = dataclasses.field(repr=False)
  rows: list[dict[str, Number]] = dataclasses.field(repr=False)
  starts: list[dict] = dataclasses.field(repr=False)
  skipped: list[dict] = dataclasses.field(repr=False)
  total_steps: int | None
  parameters: int | None

  @property
  def name(self) -> str:
    return self.folder.resolve().name

  @property
  def step(self) -> int:
    """The last one that there is a row of."""
    return self.rows[-1]["step"] if self.rows else 0

  @property
  def is_done(self) -> bool:
    return (self.folder / RUN_FILE).is_file() and (
      self.total_steps is None or self.step >= self.total_steps
    )

  @property
  def evaluation_names(self) -> list[str]:
    """Such as "eval/test/accuracy", in the order in which they were written."""
    names = dict.fromkeys(name for row in self.rows for name in row)
    return [name for name in names if name.startswith("eval/")]

  def series(self, name: str) -> Series:
    """Steps and values where the log has this name and a finite number."""
    steps, values = collect(self.rows, name)
    pairs = [p for p in zip(steps, values, strict=True) if math.isfinite(p[1])]
    return [step for step, _ in pairs], [value for _, value in pairs]

  def not_finite(self, name: str) -> list[int]:
    """Steps of which the log has this name, but no finite number."""
    steps, values = collect(self.rows, name)
    return [
      s for s, v in zip(steps, values, strict=True) if not math.isfinite(v)
    ]

  @property
  def seconds(self) -> float | None:
    """What the updates took, by the run's own clock.

    That leaves out evaluation, saving and compiling; and updates before the
    first row that has a rate.
    """
    updates = update_seconds(self.rows, self.config["batch"])
    return sum(seconds for _, seconds in updates) or None


def read(workdir: str | os.PathLike) -> Record:
  """Reads a run's folder.

  Raises:
    UserError: it is none, or a file in it is damaged.
  """
  with open_folder(workdir) as folder:
    return _read(folder)


def _read(folder: epath.Path) -> Record:
  file = folder / "config.json"
  if not file.is_file():
    raise UserError(_other_folder(folder))
  config = read_config(file)
  with wrap_read_errors(file):
    total_steps = _total_steps(ConfigDict(config))
  return Record(
    folder=folder,
    config=config,
    rows=read_log(folder),
    starts=read_starts(folder / "provenance.json"),
    skipped=_skipped(folder / "skipped.jsonl"),
    total_steps=total_steps,
    parameters=_parameters(folder / "parameters.txt"),
  )


def _other_folder(folder: epath.Path) -> str:
  """What a folder is that is not a run's, and what to name in its place."""
  runs = sorted(
    (path.parent.name for path in folder.glob("*/config.json")),
    # The final runs of a sweep are what it was made for.
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
  """Length of the run in updates."""
  try:
    return schema.resolve_steps(
      options, "total", batch=options.batch, examples=options.data.examples
    )
  except UserError:  # in epochs of a data set whose size is not recorded
    return None


def _skipped(file: epath.Path) -> list[dict]:
  if not file.is_file():
    return []
  with wrap_read_errors(file):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
      if not isinstance(row.get("examples", []), list):
        raise ValueError(f"examples = {row['examples']!r}")
    return rows


def _parameters(file: epath.Path) -> int | None:
  """The total at the end of parameters.txt."""
  if not file.is_file():
    return None
  with wrap_read_errors(file):
    total = re.search(r"^Total: ([\d,]+)", file.read_text(), re.MULTILINE)
    return int(total[1].replace(",", "")) if total else None
