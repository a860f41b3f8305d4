# SPDX-License-Identifier: Apache-2.0
"""What was measured of all ways, in Markdown.

A row of results/inference/DEVICE.json is as `benchmarks.step.results` says,
with a way as "implementation"; in the place of what a step has it has
"median_ms" and "p95_ms" of so many "calls", "load_seconds" and "first_seconds".
"""

from collections.abc import Iterable, Sequence

from benchmarks.inference.ways import NAMES
from benchmarks.throughput.cells import DTYPES
from benchmarks.throughput.device_file import versions
from benchmarks.throughput.tables import rounded
from mixer import models
from mixer.tools.table import render

MEASURED = "median_ms", "p95_ms", "load_seconds", "first_seconds"
HEAD = (
  "model",
  "dtype",
  "batch",
  "by",
  "median ms",
  "95 % within ms",
  "images/s",
  "of jitted's time",
  "load s",
  "first result s",
)


def page(device: dict, rows: Sequence[dict]) -> str:
  """The table with what its numbers are.

  Args:
    device: as `machine.describe` has it.
    rows: as described above.
  """
  said = (
    f"{device['device']}; {versions(rows or [device])}. A call is from uint8 "
    "images on the host to results on the host."
  )
  jitted = {
    _cell(row): row for row in rows if row["implementation"] == "jitted"
  }
  lines = (_line(row, jitted[_cell(row)]) for row in sorted(rows, key=_place))
  return f"{said}\n\n{render(HEAD, lines)}"


def _line(row: dict, jitted: dict) -> Iterable[str]:
  said = *map(str, _cell(row)), row["implementation"]
  if row["images_per_second"] is None:
    return *said, row["why"], *[""] * (len(HEAD) - 5)
  return (
    *said,
    rounded(row["median_ms"]),
    rounded(row["p95_ms"]),
    rounded(row["images_per_second"]),
    "" if row is jitted else f"{row['median_ms'] / jitted['median_ms']:.2f} x",
    f"{row['load_seconds']:.2f}",
    f"{row['first_seconds']:.2f}",
  )


def _cell(row: dict) -> tuple:
  return row["model"], row["dtype"], row["batch"]


def _place(row: dict) -> tuple:
  return (
    models.names().index(row["model"]),
    DTYPES.index(row["dtype"]),
    row["batch"],
    NAMES.index(row["implementation"]),
  )
