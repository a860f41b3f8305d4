# SPDX-License-Identifier: Apache-2.0
"""Markdown table of the side-by-side measurements."""

from collections.abc import Iterable, Sequence

from benchmarks.cells import DTYPES, cell_of, sort_rows
from benchmarks.harness import format_speed, list_versions
from benchmarks.step.implementations import NAMES, OURS
from mixer.chips import peak_flops
from mixer.tools.table import render

GIB, TERA = 2**30, 1e12
HEAD = (
  "model | pass | dtype | batch | by | images/s | ours is | TFLOP/s | share | "
  "MFU"
).split(" | ")


def page(device: dict, rows: Sequence[dict]) -> str:
  """Renders the table, with notes on its numbers.

  Args:
    device: device, from `device.describe`.
    rows: rows of the file.
  """
  memory = "process" if device["platform"] == "cpu" else "device"
  notes = [f"{device['device']}; {list_versions(rows or [device])}."]
  if yardsticks := list(_yardsticks(rows)):
    notes.append(
      "The share is of the fastest square product in the same dtype, on the "
      f"same device in the same run: {'; '.join(yardsticks)}."
    )
  rows = sort_rows(rows, NAMES)
  notes += _environments(rows)
  ours = {cell_of(row): row for row in rows if row["implementation"] == OURS}
  peak = peak_flops(device["device"])
  lines = (_line(row, ours.get(cell_of(row)), peak) for row in rows)
  head = (*HEAD, f"peak GiB, {memory}", "compile s")
  return "\n\n".join([" ".join(notes), render(head, lines)])


def _line(row: dict, ours: dict | None, peak: float | None) -> Iterable[str]:
  first = *vars(cell_of(row)).values(), row["implementation"]
  speed = row["images_per_second"]
  if speed is None:
    return *first, row["why"], *[""] * 6
  flops = row["flops_per_second"]
  ours_is = ours and ours["images_per_second"]
  return (
    *first,
    format_speed(speed),
    f"{ours_is / speed:.2f} x" if ours_is and ours is not row else "",
    f"{flops / TERA:.3g}",
    f"{100 * flops / row['matmul']['flops_per_second']:.0f} %",
    f"{100 * flops / peak:.0f} %" if peak else "",
    f"{row['peak_bytes'] / GIB:.2f}",
    f"{row['compile_seconds']:.1f}",
  )


def _yardsticks(rows: Sequence[dict]) -> Iterable[str]:
  """Yields the range of the fastest products over runs, for each dtype."""
  for dtype in DTYPES:
    products = [
      row["matmul"]
      for row in rows
      if row["dtype"] == dtype and row["images_per_second"]
    ]
    if not products:
      continue
    best = max(products, key=lambda product: product["flops_per_second"])
    lowest = min(x["flops_per_second"] for x in products) / TERA
    highest = best["flops_per_second"] / TERA
    between = f"{lowest:.3g} to " if lowest < 0.995 * highest else ""
    yield (
      f"{dtype} {between}{highest:.3g} TFLOP/s "
      f"({best['size']} x {best['size']}, {best['by']})"
    )


def _environments(rows: Sequence[dict]) -> Iterable[str]:
  """Names the environment variables that were set, and the cells."""
  cells = {}
  for row in rows:
    for name, value in row.get("environment", {}).items():
      labels = cells.setdefault(f"{name}={value}", {})
      labels[cell_of(row).label] = None
  for variable, labels in cells.items():
    yield f"With {variable}: {'; '.join(labels)}."
