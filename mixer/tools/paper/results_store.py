# SPDX-License-Identifier: Apache-2.0
"""Measured numbers in the folder of results.

tables/ROW.json has the measured cells of a row of table 2 or 3, in records: one
for each run's or sweep's folder, with its origin. A cell is only in the newest
record that has it. throughput/DEVICE.json is written by
`python -m benchmarks.throughput`.
"""

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from mixer.errors import UserError
from mixer.storage import atomic_write
from mixer.tools.paper.numbers import Row

PROJECT = Path(__file__).parents[3]
RESULTS = PROJECT / "results"
TABLES, THROUGHPUT = "tables", "throughput"  # folders in it
THROUGHPUT_COMMAND = "python -m benchmarks.throughput"
CORE_DAYS = "core_days"  # name of the cell of cost
# Kinds of folders that records come from.
RUN, SWEEP, SWEEPS, EVALUATION = "run", "sweep", "sweeps", "evaluation"
# Marks published weights that only their file's name identifies.
UNCHECKED = "unchecked"


@dataclasses.dataclass(frozen=True)
class Measured:
  """A measured cell of a row, and the record that has it.

  value: in per cent; of core-days, devices x days.
  record: as in the file.
  file: relative to the parent of the folder of results.
  deviation: between single runs, in per cent; None for one run.
  runs: number of runs that `value` is the mean of.
  device_days: kind of device -> device-days; only of core-days.
  """

  value: float
  record: dict
  file: str
  deviation: float | None = None
  runs: int = 1
  device_days: dict[str, float] = dataclasses.field(default_factory=dict)


def row_file(results: Path, row: Row) -> Path:
  return results / TABLES / f"{row.name}.json"


def read_row(results: Path, row: Row) -> dict[str, Measured]:
  """Returns the measured cells of a row, none if there is no file.

  Raises:
    UserError: the file is damaged, or of another row.
  """
  file = row_file(results, row)
  cells = {}
  for record in _read_records(file, row):
    for name, cell in record["cells"].items():
      days = cell.get("device_days", {})
      cells[name] = Measured(
        value=sum(days.values()) if name == CORE_DAYS else cell["value"],
        record=record,
        file=str(file.relative_to(results.parent)),
        deviation=cell.get("deviation"),
        runs=cell.get("runs", 1),
        device_days=days,
      )
  return cells


def add_records(results: Path, row: Row, records: list[dict]) -> Path:
  """Adds records to a row's file; their cells replace older ones.

  Returns:
    The file.

  Raises:
    UserError: it is damaged, or of another row, or cannot be written.
  """
  file = row_file(results, row)
  replaced = {name for record in records for name in record["cells"]}
  older = _read_records(file, row)
  for record in older:
    record["cells"] = {
      name: cell
      for name, cell in record["cells"].items()
      if name not in replaced
    }
  content = {
    "row": row.name,
    "records": [record for record in older if record["cells"]] + records,
  }
  file.parent.mkdir(parents=True, exist_ok=True)
  with atomic_write(file) as aside:
    aside.write_text(json.dumps(content, indent=1) + "\n")
  return file


def _read_records(file: Path, row: Row) -> list[dict]:
  if not file.is_file():
    return []
  try:
    content = json.loads(file.read_text())
    if content["row"] != row.name:
      raise ValueError(f"it is of the row {content['row']}")
    return list(content["records"])
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{file} is damaged ({type(error).__name__}: {error}): move it away, and "
      f"write it with python -m mixer paper record {row.name} --workdir=RUN."
    ) from error


# Throughput. A key: model, image size in pixels, dtype.
Key = tuple[str, int, str]


@dataclasses.dataclass(frozen=True)
class Throughput:
  """The best throughput of a model in a dtype over batch sizes.

  images_per_second: None where no batch size was measured.
  dtype: of the matrix products.
  batch: images per step at the best throughput.
  batches: all batch sizes that were measured.
  beyond: the smallest batch that was too large to measure, and the reason.
  date, git_commit: of the best one's measurement; "" where none was.
  """

  images_per_second: float | None
  dtype: str
  batch: int | None
  batches: tuple[int, ...]
  beyond: tuple[int, str] | None
  date: str
  git_commit: str | None


@dataclasses.dataclass(frozen=True)
class Device:
  """All throughputs of a device.

  file: relative to the parent of the folder of results.
  """

  name: str
  best: dict[Key, Throughput]
  file: str

  @property
  def dtypes(self) -> list[str]:
    """Measured dtypes, the one with the most models first, then by name."""
    counts = collections.Counter(
      dtype
      for (_, _, dtype), each in self.best.items()
      if each.images_per_second
    )
    return sorted(counts, key=lambda dtype: (-counts[dtype], dtype))


def best_throughputs(rows: Iterable[dict]) -> dict[Key, Throughput]:
  """Takes the best over batch sizes, in the order of measurement.

  Args:
    rows: of one pass on one device, as in the file.
  """
  by_key = {}
  for row in rows:
    key = row["model"], row["image_size"], row["dtype"]
    by_key.setdefault(key, []).append(row)
  return {key: _best(of_key) for key, of_key in by_key.items()}


def _best(rows: list[dict]) -> Throughput:
  rows = sorted(rows, key=lambda row: row["batch"])
  done = [row for row in rows if row["images_per_second"]]
  largest = done[-1]["batch"] if done else 0
  beyond = [row for row in rows if row["batch"] > largest]
  best = max(done, key=lambda row: float(row["images_per_second"]), default={})
  return Throughput(
    images_per_second=best.get("images_per_second"),
    dtype=rows[0]["dtype"],
    batch=best.get("batch"),
    batches=tuple(row["batch"] for row in done),
    beyond=(beyond[0]["batch"], beyond[0]["why"]) if beyond else None,
    date=best.get("date", "")[:10],
    git_commit=best.get("git_commit"),
  )


def speed_ratio(
  best: Mapping[Key, Throughput], models: tuple[str, str, int], dtype: str
) -> float | None:
  """Divides two models' throughputs; None unless both were measured.

  Both in one dtype: otherwise the ratio would compare dtypes as well.

  Args:
    best: from `best_throughputs`.
    models: a key of SPEED_RATIOS.
    dtype: of both.
  """
  *names, resolution = models
  mixer, vit = (best.get((name, resolution, dtype)) for name in names)
  if not (mixer and mixer.images_per_second and vit and vit.images_per_second):
    return None
  return mixer.images_per_second / vit.images_per_second


def fastest(
  devices: Iterable[Device], model: str, image_size: int
) -> tuple[Device, Throughput] | None:
  """Returns the highest throughput of any device and dtype, with the device."""
  measured = [
    (device, each)
    for device in devices
    for (name, size, _), each in device.best.items()
    if (name, size) == (model, image_size) and each.images_per_second
  ]
  return max(measured, key=lambda x: x[1].images_per_second, default=None)


def read_devices(results: Path) -> list[Device]:
  """Reads the throughput of all devices.

  Raises:
    UserError: a file is damaged.
  """
  devices = []
  for file in sorted((results / THROUGHPUT).glob("*.json")):
    try:
      content = json.loads(file.read_text())
      best = best_throughputs(content["rows"])
      name = str(file.relative_to(results.parent))
      devices.append(Device(content["device"], best, name))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise UserError(
        f"{file} is damaged ({type(error).__name__}: {error}): measure again "
        f"with {THROUGHPUT_COMMAND}."
      ) from error
  return devices
