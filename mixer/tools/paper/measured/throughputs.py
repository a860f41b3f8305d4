# SPDX-License-Identifier: Apache-2.0
"""Throughput measured here: results/throughput/DEVICE.json."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from mixer.errors import UserError
from mixer.tools.paper.numbers import SpeedRatio

FOLDER = "throughput"  # in the folder of results
COMMAND = "python -m benchmarks.throughput"

# (model, image size in pixels, dtype)
Key = tuple[str, int, str]


@dataclasses.dataclass(frozen=True)
class Throughput:
  """The best over batch sizes of a model in a dtype, as in the paper.

  images_per_second: None where no batch size was measured.
  dtype: of the products.
  batch: images at once, with which it was the best.
  batches: all that were measured.
  beyond: the smallest batch that was not, nor any larger one, and why.
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
  """All that was measured on a device.

  file: where it stands, from the folder of results on.
  """

  name: str
  best: dict[Key, Throughput]
  file: str

  @property
  def dtypes(self) -> list[str]:
    """Those with any number, the one of most models first, then by name."""
    counts = {}
    for (_, _, dtype), each in self.best.items():
      if each.images_per_second:
        counts[dtype] = counts.get(dtype, 0) + 1
    return sorted(counts, key=lambda dtype: (-counts[dtype], dtype))


def best_of(rows: Iterable[dict]) -> dict[Key, Throughput]:
  """The best over batch sizes, in the order in which they were measured.

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


def pair_of(
  best: Mapping[Key, Throughput], pair: SpeedRatio, dtype: str
) -> tuple[Throughput, Throughput] | None:
  """The Mixer's and the ViT's throughput; None unless both were measured.

  Both in one dtype, or their ratio would be of dtypes as well as of models.
  """
  two = [best.get((x, pair.resolution, dtype)) for x in (pair.mixer, pair.vit)]
  if not all(each and each.images_per_second for each in two):
    return None
  return tuple(two)


def ratio(one: Throughput, other: Throughput) -> float:
  return one.images_per_second / other.images_per_second


def fastest(
  devices: Iterable[Device], model: str, image_size: int
) -> tuple[Device, Throughput] | None:
  """The most images a second of any device and dtype, and where."""
  found = [
    (device, each)
    for device in devices
    for (name, size, _), each in device.best.items()
    if (name, size) == (model, image_size) and each.images_per_second
  ]
  return max(found, key=lambda x: x[1].images_per_second, default=None)


def read(results: Path) -> list[Device]:
  """Reads the files of all devices.

  Raises:
    UserError: one is damaged.
  """
  return [
    _read_file(file, str(file.relative_to(results.parent)))
    for file in sorted((results / FOLDER).glob("*.json"))
  ]


def _read_file(file: Path, name: str) -> Device:
  try:
    content = json.loads(file.read_text())
    return Device(
      name=content["device"],
      best=best_of(content["rows"]),
      file=name,
    )
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{file} is damaged ({type(error).__name__}: {error}): measure anew with "
      f"{COMMAND}."
    ) from error
