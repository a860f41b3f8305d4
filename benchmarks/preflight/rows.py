# SPDX-License-Identifier: Apache-2.0
"""Reports of preflight as rows of one table."""

from collections.abc import Iterator

from mixer.chips import GIB
from mixer.tools.table import render

HEAD = (
  "model, slice",
  "images a device",
  "peak, GiB",
  "of",
  "TFLOP",
  "GB moved",
  "all-reduce, MB",
  "at best, ms",
  "compiler, ms",
  "hours",
  "device-days",
  "paper",
)


def table(cells: dict[str, dict]) -> str:
  """Markdown; "device-days" of v3 are the paper's core-days."""
  return render(HEAD, _rows(cells)) + "\n"


def _rows(cells: dict[str, dict]) -> Iterator[tuple]:
  for cell in cells.values():
    at_once = f"{cell['per_device']}"
    if cell["accumulation"] > 1:
      at_once += f" x {cell['accumulation']}"
    parts = cell["training"], cell["evaluation"]
    peak = max(part["peak_beside_all"] for part in parts if part)
    memory = f"{peak / GIB:.2f}", f"{cell['memory_per_device'] / GIB:.2f}"
    name = f"{cell['model']}, {cell['topology']}"
    found = cell.get("estimate")
    if not found:
      yield (name, at_once, *memory, *("does not fit", *[""] * 7))
      continue
    summed = sum(
      each["bytes"]
      for each in cell["training"]["collectives"]
      if each["kind"] != "collective-permute"
    )
    expected = found["compiler_seconds"]
    paper = cell["paper_core_days"]
    yield (
      name,
      at_once,
      *memory,
      f"{found['flops'] / 1e12:.3g}",
      f"{found['bytes_moved'] / 1e9:.3g}",
      f"{summed / 1e6:.4g}",
      f"{1e3 * found['roofline']['step']:.3g}",
      f"{1e3 * expected:.3g}" if expected else "unknown",
      f"{found['run_seconds'] / 3600:.3g}",
      f"{found['device_seconds'] / 86_400:.3g}",
      f"{paper:g}" if paper else "",
    )
