# SPDX-License-Identifier: Apache-2.0
"""What was measured side by side, in Markdown."""

import collections
from collections.abc import Iterable, Sequence

from benchmarks.step.measure import NAMES, OURS
from benchmarks.throughput.cells import DTYPES, PASSES
from benchmarks.throughput.device_file import versions
from mixer import models
from mixer.tools.table import render

GIB, TERA = 2**30, 1e12


def page(device: dict, rows: Sequence[dict]) -> str:
  """The table with what its numbers are.

  Args:
    device: as `machine.describe` has it.
    rows: as `results` has them.
  """
  memory = "process" if device["platform"] == "cpu" else "device"
  said = [f"{device['device']}; {versions(rows or [device])}."]
  if yardsticks := list(_yardsticks(rows)):
    said.append(
      "The share is of the fastest square product in the same dtype, on the "
      f"same device in the same run: {'; '.join(yardsticks)}."
    )
  said += _started_with(rows)
  head = (
    "model",
    "pass",
    "dtype",
    "batch",
    "by",
    "images/s",
    "ours is",
    "TFLOP/s",
    "share",
    f"peak GiB, {memory}",
    "compile s",
  )
  rows = sorted(rows, key=_place)
  ours = {_cell(row): row for row in rows if row["implementation"] == OURS}
  lines = (_line(row, ours.get(_cell(row))) for row in rows)
  return "\n\n".join([" ".join(said), render(head, lines)])


def _line(row: dict, ours: dict | None) -> Iterable[str]:
  said = *map(str, _cell(row)), row["implementation"]
  speed = row["images_per_second"]
  if speed is None:
    return *said, row["why"], *[""] * 5
  flops = row["flops_per_second"]
  ours_is = ours and ours["images_per_second"]
  return (
    *said,
    f"{speed:,.0f}" if speed >= 1000 else f"{speed:.3g}",
    f"{ours_is / speed:.2f} x" if ours_is and ours is not row else "",
    f"{flops / TERA:.3g}",
    f"{100 * flops / row['matmul']['flops_per_second']:.0f} %",
    f"{row['peak_bytes'] / GIB:.2f}",
    f"{row['compile_seconds']:.1f}",
  )


def _yardsticks(rows: Sequence[dict]) -> Iterable[str]:
  """The range of what runs found, for each dtype."""
  for dtype in DTYPES:
    found = [
      row["matmul"]
      for row in rows
      if row["dtype"] == dtype and row["images_per_second"]
    ]
    if not found:
      continue
    best = max(found, key=lambda one: one["flops_per_second"])
    lowest = min(one["flops_per_second"] for one in found) / TERA
    highest = best["flops_per_second"] / TERA
    between = f"{lowest:.3g} to " if lowest < 0.995 * highest else ""
    yield (
      f"{dtype} {between}{highest:.3g} TFLOP/s "
      f"({best['size']} x {best['size']}, {best['by']})"
    )


def _started_with(rows: Sequence[dict]) -> Iterable[str]:
  """The variables that were set, and for which cells."""
  cells = collections.defaultdict(dict)
  for row in sorted(rows, key=_place):
    for name, value in row.get("environment", {}).items():
      cells[f"{name}={value}"][", ".join(map(str, _cell(row)))] = None
  for variable, under in cells.items():
    yield f"With {variable}: {'; '.join(under)}."


def _cell(row: dict) -> tuple:
  return row["model"], row["passes"], row["dtype"], row["batch"]


def _place(row: dict) -> tuple:
  return (
    models.names().index(row["model"]),
    PASSES.index(row["passes"]),
    DTYPES.index(row["dtype"]),
    row["batch"],
    NAMES.index(row["implementation"]),
  )
