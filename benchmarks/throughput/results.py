# SPDX-License-Identifier: Apache-2.0
"""results/throughput/DEVICE.json: what was measured on a device.

"rows", of inference, the paper's column, and "training_rows" of a device's file
(see `device_file`). A row has "model", "image_size", "dtype", "batch",
"images_per_second", "spread" (highest less lowest timing, as a part of the
median), "bytes" (that the program needs), "date", "git_commit"; or
images_per_second null and the reason in "why", which then holds for larger
batches, too.
"""

import dataclasses
from pathlib import Path

from benchmarks.throughput.cells import INFERENCE, TRAINING, Part
from benchmarks.throughput.device_file import DeviceFile

ROWS = {INFERENCE: "rows", TRAINING: "training_rows"}


class Results:
  """What is known of a device; see `DeviceFile`, also for the errors."""

  def __init__(self, folder: Path, device: dict, command: str):
    """Opens the device's file in the folder of results, or begins one."""
    self._file = DeviceFile(
      folder / "throughput", device, command, ROWS.values()
    )
    self.file = self._file.path

  @property
  def rows(self) -> dict[str, list[dict]]:
    """Rows by pass."""
    return {passes: self._file.lists[key] for passes, key in ROWS.items()}

  def missing(self, part: Part) -> Part:
    """The part with the batch sizes that nothing is known of yet."""
    known = [row for row in self.rows[part.passes] if part.is_of(row)]
    too_large = min(
      (row["batch"] for row in known if row["images_per_second"] is None),
      default=float("inf"),
    )
    done = {row["batch"] for row in known}
    return dataclasses.replace(
      part,
      batches=[b for b in part.batches if b not in done and b < too_large],
    )

  def forget(self, part: Part):
    """Takes out what is known of a part's batch sizes."""
    self._file.lists[ROWS[part.passes]] = [
      row
      for row in self.rows[part.passes]
      if not (part.is_of(row) and row["batch"] in part.batches)
    ]

  def add(self, part: Part, found: dict):
    """Adds a row and writes the file."""
    row = {
      "model": part.model,
      "image_size": part.image_size,
      "dtype": part.dtype,
      **found,
    }
    self._file.add(ROWS[part.passes], [row])
