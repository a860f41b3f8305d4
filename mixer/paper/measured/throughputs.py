# SPDX-License-Identifier: Apache-2.0
"""Throughput measured here: results/throughput/DEVICE.json."""

import dataclasses
import json
from pathlib import Path

from mixer.errors import UserError

FOLDER = "throughput"  # in the folder of results
COMMAND = "python -m benchmarks.throughput"


@dataclasses.dataclass(frozen=True)
class Throughput:
  """The best over batch sizes of a model on a device, as in the paper.

  file: where it stands, from the folder of results on.
  batch: images at once, with which it was the best of those measured.
  """

  images_per_second: float
  batch: int
  device: str
  file: str
  date: str
  git_commit: str | None


# (model, image size in pixels) -> of each device, the fastest first.
Throughputs = dict[tuple[str, int], list[Throughput]]


def read(results: Path) -> Throughputs:
  """Reads the files of all devices.

  Raises:
    UserError: one is damaged.
  """
  best = {}
  for file in sorted((results / FOLDER).glob("*.json")):
    for key, each in _read_file(file, str(file.relative_to(results.parent))):
      of_devices = best.setdefault(key, {})
      before = of_devices.get(each.device)
      if not before or each.images_per_second > before.images_per_second:
        of_devices[each.device] = each
  return {
    key: sorted(of_devices.values(), key=lambda x: -x.images_per_second)
    for key, of_devices in best.items()
  }


def _read_file(
  file: Path, name: str
) -> list[tuple[tuple[str, int], Throughput]]:
  try:
    content = json.loads(file.read_text())
    return [
      (
        (row["model"], row["image_size"]),
        Throughput(
          images_per_second=row["images_per_second"],
          batch=row["batch"],
          device=content["device"],
          file=name,
          date=content["date"][:10],
          git_commit=content["git_commit"],
        ),
      )
      for row in content["rows"]
      if row["images_per_second"]  # None where it does not fit
    ]
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{file} is damaged ({type(error).__name__}: {error}): measure anew with "
      f"{COMMAND}."
    ) from error
