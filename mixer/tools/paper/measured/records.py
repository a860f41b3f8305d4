# SPDX-License-Identifier: Apache-2.0
"""Measured numbers of the tables' rows: results/tables/ROW.json.

A file holds records, each of one run's or sweep's folder: its cells, and whence
they come. A cell is in one record only, the newest that has it.
"""

import dataclasses
import json
import math
from pathlib import Path

from mixer.atomic_write import atomic_write
from mixer.errors import UserError
from mixer.tools.paper.numbers import Row

TABLES = "tables"  # in the folder of results
# What cells hold; "core_days" is something else, see `Cell`.
ACCURACIES = "imagenet", "real", "average5", "vtab"
CORE_DAYS = "core_days"
# What a record is of.
RUN, SWEEP, SWEEPS = "run", "sweep", "sweeps"
EVALUATION = "evaluation"  # by eval.py, of weights
# No number without the run that it came from: these are there, and not empty,
# but for commits, of which there are none outside a repository.
_ORIGIN = {"folder": str, "kind": str, "date": str, "devices": list}
UNCHECKED = "unchecked"  # weights, which are the published ones by name alone
_SOURCES = "published", "folder"  # what a run began from
_CODE = {"git_commits": list, "git_changes": bool}


@dataclasses.dataclass(frozen=True)
class Cell:
  """A measured number, and the record that it is of.

  Attributes:
    value: in per cent; of core-days, devices x days.
    record: as in the file.
    file: where it stands, from the folder of results on.
    deviation: of single runs, in per cent; None of one run.
    runs: over which `value` is the mean.
    device_days: of core-days, by the kind of device.
  """

  value: float
  record: dict
  file: str
  deviation: float | None = None
  runs: int = 1
  device_days: dict[str, float] = dataclasses.field(default_factory=dict)


def path(results: Path, row: Row) -> Path:
  return results / TABLES / f"{row.name}.json"


def read(results: Path, row: Row) -> dict[str, Cell]:
  """The measured cells of a row, none if there is no file.

  Raises:
    UserError: the file is damaged, or of another row.
  """
  file = path(results, row)
  cells = {}
  for record in _records(file, row):
    for name, cell in record["cells"].items():
      days = cell.get("device_days", {})
      cells[name] = Cell(
        value=sum(days.values()) if name == CORE_DAYS else cell["value"],
        record=record,
        file=str(file.relative_to(results.parent)),
        deviation=cell.get("deviation"),
        runs=cell.get("runs", 1),
        device_days=days,
      )
  return cells


def add(results: Path, row: Row, records: list[dict]) -> Path:
  """Adds records, whose cells take the place of older ones.

  Returns:
    The file.

  Raises:
    UserError: it is damaged, or of another row, or cannot be written.
  """
  file = path(results, row)
  new = {name for record in records for name in record["cells"]}
  kept = []
  for record in _records(file, row):
    record["cells"] = {
      name: cell for name, cell in record["cells"].items() if name not in new
    }
    if record["cells"]:
      kept.append(record)
  content = {"row": row.name, "records": kept + records}
  file.parent.mkdir(parents=True, exist_ok=True)
  with atomic_write(file) as aside:
    aside.write_text(json.dumps(content, indent=1) + "\n")
  return file


def _records(file: Path, row: Row) -> list[dict]:
  if not file.is_file():
    return []
  try:
    content = json.loads(file.read_text())
    if content["row"] != row.name:
      raise ValueError(f"it is of the row {content['row']}")
    for record in content["records"]:
      _check(record)
    return list(content["records"])
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{file} is damaged ({type(error).__name__}: {error}): move it away, and "
      f"write it with python -m mixer paper record {row.name} --workdir=RUN."
    ) from error


def _check(record: dict):
  """Raises ValueError, or what reading it raises, for what `add` never writes.

  That is what the tables show, beside the config.
  """
  for key, kind in (_ORIGIN | _CODE).items():
    value = record[key]
    is_right = isinstance(value, kind) and (value or key in _CODE)
    if kind is list:
      is_right = is_right and all(isinstance(each, str) for each in value)
    if not is_right:
      raise ValueError(f"{key} = {value!r}")
  for key, names in ("upstream", _SOURCES), ("weights", _SOURCES[:1]):
    if source := record.get(key):
      if not any(isinstance(source.get(name), str) for name in names):
        raise ValueError(f"{key} = {source!r}")
  for name, cell in record["cells"].items():
    days, deviation = cell.get("device_days", {}), cell.get("deviation")
    if name == CORE_DAYS:
      is_right = days and all(0 < x < math.inf for x in days.values())
    else:
      is_right = (
        name in ACCURACIES
        and 0 <= cell["value"] <= 100
        and (deviation is None or 0 <= deviation <= 100)
        and isinstance(cell.get("runs", 1), int)
      )
    if not is_right:
      raise ValueError(f"{name} = {cell!r}")
