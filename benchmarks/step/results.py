# SPDX-License-Identifier: Apache-2.0
"""results/step/DEVICE.json: what was measured side by side on a device.

"rows" of a device's file (see `benchmarks.throughput.device_file`), whose
"versions" are the peers', too. A row has "model", "passes", "dtype", "batch",
"implementation", "images_per_second" (of the median timing), "spread" (highest
less lowest timing, as a part of the median), "flops_per_second" (of the model's
products by arithmetic), "peak_bytes", "compile_seconds", "matmul"
("flops_per_second", "size" and "by" of the yardstick measured in the same run),
"environment" (what was set of `benchmarks.throughput.machine.VARIABLES`) and
"timings" (how many; neither is in older rows), "versions" (of the
implementation's packages), "date", "git_commit"; or images_per_second null and
the reason in "why", which then holds for larger batches, too; where that is
time, "limit" says how many seconds were not enough.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.step.cell import Cell
from benchmarks.throughput.cells import DTYPES, PASSES
from benchmarks.throughput.device_file import DeviceFile, still_holds
from mixer import models

ROWS = "rows"
MEASURED = "flops_per_second", "peak_bytes", "compile_seconds", "matmul"


class Results:
  """What is known of a device; see `DeviceFile`, also for the errors.

  The rows of a cell are of one run, or they would not be side by side: they are
  written together, and together replaced.
  """

  def __init__(
    self,
    folder: Path,
    device: dict,
    command: str,
    *,
    limit: float,
    again: bool = False,
    subject: str = "step",
    measured: Sequence[str] = MEASURED,
  ):
    """Opens the device's file in the folder of results, or begins one.

    What took too long counts as unknown, if `limit` seconds are more; with
    `again` so does all that is in the file. Rows with a speed have what is
    `measured`, too.
    """
    check = functools.partial(_check, measured=measured)
    self._file = DeviceFile(folder / subject, device, command, [ROWS], check)
    self.file = self._file.path
    # Rows of what need not be measured.
    self._known = [
      row for row in self.rows if not again and still_holds(row, limit)
    ]

  @property
  def rows(self) -> list[dict]:
    return self._file.lists[ROWS]

  def missing(self, cell: Cell, implementations: Iterable[str]) -> list[str]:
    """Those that nothing is known of."""
    known = {row["implementation"] for row in _of(cell, self._known)}
    return [
      each for each in self.fitting(cell, implementations) if each not in known
    ]

  def fitting(self, cell: Cell, implementations: Iterable[str]) -> list[str]:
    """Those that did not fail at a smaller batch."""
    too_large = {
      row["implementation"]
      for row in self._known
      if row["images_per_second"] is None
      and row["batch"] < cell.batch
      and _cell(row) == dataclasses.replace(cell, batch=row["batch"])
    }
    return [each for each in implementations if each not in too_large]

  def measured(self, cell: Cell) -> list[str]:
    """The implementations that a cell has rows of."""
    return [row["implementation"] for row in _of(cell, self.rows)]

  def replace(self, cell: Cell, rows: Iterable[dict]):
    """Puts rows in the place of the cell's own, and writes the file."""
    rows = [dataclasses.asdict(cell) | row for row in rows]
    self._known = [row for row in self._known if _cell(row) != cell] + rows
    self._file.lists[ROWS] = [row for row in self.rows if _cell(row) != cell]
    self._file.add(ROWS, rows)


def _of(cell: Cell, rows: Iterable[dict]) -> list[dict]:
  return [row for row in rows if _cell(row) == cell]


def _check(row: dict, measured: Sequence[str]):
  """Raises KeyError or ValueError if something is missing or unknown."""
  known = {"model": models.names(), "passes": PASSES, "dtype": DTYPES}
  for field, values in known.items():
    if row[field] not in values:
      raise ValueError(f"{field} {row[field]!r}")
  always = "batch", "implementation", "images_per_second"
  has_speed = row["images_per_second"] is not None
  for field in (*always, *(measured if has_speed else ["why"])):
    row[field]


def _cell(row: dict) -> Cell:
  return Cell(row["model"], row["passes"], row["dtype"], row["batch"])
