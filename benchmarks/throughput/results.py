# SPDX-License-Identifier: Apache-2.0
"""results/throughput/DEVICE.json: what was measured on a device.

"rows", of inference, the paper's column, and "training_rows" of a device's file
(see `device_file`). A row has "model", "image_size", "dtype", "batch",
"images_per_second", "spread" (highest less lowest timing, as a part of the
median), "bytes" (that the program needs), "date", "git_commit"; or
images_per_second null and the reason in "why", which then holds for larger
batches, too; where that is time, "limit" says how many seconds were not enough.
"""

import dataclasses
import operator
from pathlib import Path

from benchmarks.throughput.cells import INFERENCE, TRAINING, Part
from benchmarks.throughput.device_file import DeviceFile, still_holds

ROWS = {INFERENCE: "rows", TRAINING: "training_rows"}


class Results:
  """What is known of a device; see `DeviceFile`, also for the errors."""

  def __init__(self, folder: Path, device: dict, command: str):
    """Opens the device's file in the folder of results, or begins one."""
    self._file = DeviceFile(
      folder / "throughput",
      device,
      command,
      ROWS.values(),
      operator.itemgetter("batch", "images_per_second"),
    )
    self.file = self._file.path

  @property
  def rows(self) -> dict[str, list[dict]]:
    """Rows by pass."""
    return {passes: self._file.lists[key] for passes, key in ROWS.items()}

  def missing(self, part: Part, limit: float) -> Part:
    """The part with the batch sizes that nothing is known of yet.

    Nor is anything of those that took too long, if `limit` is longer.
    """
    known = [
      row
      for row in self.rows[part.passes]
      if part.is_of(row) and still_holds(row, limit)
    ]
    too_large = min(
      (row["batch"] for row in known if row["images_per_second"] is None),
      default=float("inf"),
    )
    done = {row["batch"] for row in known}
    return dataclasses.replace(
      part,
      batches=[b for b in part.batches if b not in done and b < too_large],
    )

  def add(self, part: Part, found: dict):
    """Adds a row in the place of what was known, and writes the file.

    A number is not given up for a reason why there is none.
    """
    key = ROWS[part.passes]
    same = [
      row
      for row in self._file.lists[key]
      if part.is_of(row) and row["batch"] == found["batch"]
    ]
    if not found["images_per_second"] and any(
      row["images_per_second"] for row in same
    ):
      return
    self._file.lists[key] = [x for x in self._file.lists[key] if x not in same]
    row = {
      "model": part.model,
      "image_size": part.image_size,
      "dtype": part.dtype,
      **found,
    }
    self._file.add(key, [row])
