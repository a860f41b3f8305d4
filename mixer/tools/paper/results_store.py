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
from mixer.storage import write_text
from mixer.tools.paper.numbers import Row

PROJECT = Path(__file__).parents[3]
RESULTS = PROJECT / "results"
THROUGHPUT_COMMAND = "python -m benchmarks.throughput"
CORE_DAYS = "core_days"  # name of the cell of cost
# Kinds of folders that records come from.
RUN, SWEEP, SWEEPS, EVALUATION = "run", "sweep", "sweeps", "evaluation"
# Marks published weights that only their file's name identifies.
UNCHECKED = "unchecked"


def read_json(file: Path, command: str) -> dict:
  """Reads a file of results of `command`; UserError if it is not JSON."""
  try:
    return json.loads(file.read_text())
  except ValueError as error:
    raise UserError(
      f"{file} is damaged ({error}): move it away, and make it again with "
      f"{command}."
    ) from error


def row_file(results: Path, row: Row) -> Path:
  return results / "tables" / f"{row.name}.json"


def read_row(results: Path, row: Row) -> dict[str, tuple[dict, dict]]:
  """Returns a row's cells by name, each with its record; none without a file.

  A cell has its "value" in per cent, the "deviation" between single runs, None
  for one run, and the number of "runs"; the cell of cost has "device_days" by
  kind of device. A record's "file" is the row's. UserError if it is damaged.
  """
  file = str(row_file(results, row).relative_to(results.parent))
  return {
    name: (cell, record | {"file": file})
    for record in _read_records(results, row)
    for name, cell in record["cells"].items()
  }


def add_records(results: Path, row: Row, records: list[dict]) -> Path:
  """Adds records to a row's file, which it returns; UserError if damaged.

  Their cells replace older ones.
  """
  older = _read_records(results, row)
  for record in older:
    for name in {name for new in records for name in new["cells"]}:
      record["cells"].pop(name, None)
  older = [record for record in older if record["cells"]]
  content = {"row": row.name, "records": older + records}
  file = row_file(results, row)
  file.parent.mkdir(parents=True, exist_ok=True)
  write_text(file, json.dumps(content, indent=1) + "\n")
  return file


def _read_records(results: Path, row: Row) -> list[dict]:
  file = row_file(results, row)
  if not file.is_file():
    return []
  command = f"python -m mixer paper record {row.name} --workdir=RUN"
  return read_json(file, command)["records"]


# Throughput. A key: model, image size in pixels, dtype.
Key = tuple[str, int, str]


@dataclasses.dataclass(frozen=True)
class Throughput:
  """The best throughput of a model in a dtype over batch sizes."""

  images_per_second: float | None  # None where no batch size was measured
  dtype: str  # of the matrix products
  batch: int | None  # images per step at the best throughput
  batches: tuple[int, ...]  # all that were measured
  beyond: tuple[int, str] | None  # smallest one too large, and the reason
  date: str  # of the best one's measurement; "" where none was
  git_commit: str | None


@dataclasses.dataclass(frozen=True)
class Device:
  """The measured throughputs of a device."""

  name: str
  best: dict[Key, Throughput]
  dtypes: list[str]  # the one with the most models first, then by name
  file: str  # relative to the parent of the folder of results


def best_throughputs(rows: Iterable[dict]) -> dict[Key, Throughput]:
  """Takes the best over batch sizes of one pass's rows on one device."""
  by_key = collections.defaultdict(list)
  for row in rows:
    by_key[row["model"], row["image_size"], row["dtype"]].append(row)
  return {key: _best(of_key) for key, of_key in by_key.items()}


def _best(rows: list[dict]) -> Throughput:
  rows = sorted(rows, key=lambda row: row["batch"])
  done = [row for row in rows if row["images_per_second"]]
  largest = done[-1]["batch"] if done else 0
  beyond = [row for row in rows if row["batch"] > largest]
  best = max(done, key=lambda row: row["images_per_second"], default={})
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
  """Divides the throughputs of two models, a key of SPEED_RATIOS.

  Both in one dtype: otherwise the ratio would compare dtypes as well. None
  unless both were measured.
  """
  *names, resolution = models
  pair = [best.get((name, resolution, dtype)) for name in names]
  if not all(each and each.images_per_second for each in pair):
    return None
  mixer, vit = pair
  return mixer.images_per_second / vit.images_per_second


def fastest(
  devices: Iterable[Device], model: str, image_size: int
) -> tuple[Device, Throughput] | None:
  """Returns the highest throughput of any device and dtype, with the device."""
  measured = [
    (device, each)
    for device in devices
    for (name, size, _), each in device.best.items()
    if (name, size) == (model, image_size)
  ]
  return max(measured, key=lambda x: x[1].images_per_second, default=None)


def read_devices(results: Path) -> list[Device]:
  """Reads the throughput of all devices; UserError if a file is damaged."""
  devices = []
  for file in sorted((results / "throughput").glob("*.json")):
    content = read_json(file, THROUGHPUT_COMMAND)
    best = {
      key: each
      for key, each in best_throughputs(content["rows"]).items()
      if each.images_per_second
    }
    counts = collections.Counter(sorted(dtype for *_, dtype in best))
    dtypes = [dtype for dtype, _ in counts.most_common()]
    name = str(file.relative_to(results.parent))
    devices.append(Device(content["device"], best, dtypes, name))
  return devices
