# SPDX-License-Identifier: Apache-2.0
"""Measured numbers of the tables' rows: results/tables/ROW.json.

A file holds records, each of one run's or sweep's folder: its cells, and whence
they come. A cell is in one record only, the newest that has it.
"""

import dataclasses
import json
from pathlib import Path

from mixer.errors import UserError
from mixer.paper.numbers import Row
from mixer.whole_file import whole_file

TABLES = "tables"  # in the folder of results
# What cells hold; "core_days" is something else, see `Cell`.
ACCURACIES = "imagenet", "real", "average5", "vtab"
CORE_DAYS = "core_days"
# What a record is of.
RUN, SWEEP, SWEEPS = "run", "sweep", "sweeps"
EVALUATION = "evaluation"  # by eval.py, of weights
_ORIGIN = "folder", "kind", "date", "git_commits", "git_changes", "devices"


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
  try:
    for record in _records(file, row):
      for key in _ORIGIN:
        record[key]  # no number without the run that it came from
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
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{file} is damaged ({type(error).__name__}: {error}): move it away, and "
      f"write it with python -m mixer.paper record {row.name} --workdir=RUN."
    ) from error
  return cells


def add(results: Path, row: Row, records: list[dict]) -> Path:
  """Adds records, whose cells take the place of older ones.

  Returns:
    The file.
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
  with whole_file(file) as aside:
    aside.write_text(json.dumps(content, indent=1) + "\n")
  return file


def _records(file: Path, row: Row) -> list[dict]:
  if not file.is_file():
    return []
  content = json.loads(file.read_text())
  if content["row"] != row.name:
    raise ValueError(f"it is of the row {content['row']}")
  return list(content["records"])
