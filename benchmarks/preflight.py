# SPDX-License-Identifier: Apache-2.0
"""Memory and step time of the ImageNet-21k recipes on TPU slices and GPUs.

python -m benchmarks.preflight [--models=Mixer-S/32,ViT-B/16,BiT-R50x1]
  [--topologies=v3-128]

Needs libtpu (for gpu:h100x8 and gpu:h200x8 jax's CUDA plugin), and 1 to 3
minutes and up to 9 GB per cell on two cores. Cells in results/preflight.json
are not compiled again. Writes results/preflight.md next to it.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mixer.chips import GIB
from mixer.cli import EX_OK, EX_USAGE, create_parser, run_cli
from mixer.errors import UserError, notify
from mixer.models.mixer import VARIANTS
from mixer.storage import write_text
from mixer.tools.preflight.compiler import check_installed
from mixer.tools.preflight.topology import parse
from mixer.tools.table import render

MIXERS = ",".join(VARIANTS)
# The paper's batch of 4,096 is 32, 64 and 64 images per device on these.
SLICES = "v3-128,v4-128,v5e-64"
RECIPE = "configs/pretrain_i21k.py"
RESULTS = Path("results")
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


def main() -> int:
  parser = create_parser("benchmarks.preflight", __doc__)
  parser.add_argument("--models", default=MIXERS)
  parser.add_argument("--topologies", default=SLICES)
  parser.add_argument("--results", type=Path, default=RESULTS)
  options = parser.parse_args()
  return run_cli(
    fill,
    names=options.models.split(","),
    slices=options.topologies.split(","),
    folder=options.results,
  )


def fill(names: list[str], slices: list[str], folder: Path) -> str:
  """Compiles the missing cells and returns the table."""
  machines = [parse(each) for each in slices]
  for machine in machines:
    check_installed(machine)
  file = folder / "preflight.json"
  due = {
    f"{name}, {machine.name}": (name, machine.name)
    for machine in machines
    for name in names
  }
  text = table(fill_cells(file, due))
  write_text(file.with_suffix(".md"), text)
  return text.strip()


def fill_cells(file: Path, due: dict[str, tuple[str, ...]]) -> dict[str, dict]:
  """Compiles the cells missing from a file; returns all cells in it.

  Args:
    file: JSON of a report for each cell, written after each compilation.
    due: arguments of `preflight` for each cell.
  """
  file.parent.mkdir(parents=True, exist_ok=True)
  cells = json.loads(file.read_text()) if file.exists() else {}
  for cell, arguments in due.items():
    if cell in cells:
      continue
    notify(cell)
    cells[cell] = preflight(*arguments)
    write_text(file, json.dumps(cells, indent=1) + "\n")
  return cells


def preflight(name: str, topology: str, *flags: str) -> dict:
  """Runs preflight for one cell, in a process that frees all of its memory."""
  with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "report.json"
    command = [
      *(sys.executable, "-m", "mixer", "preflight"),
      *(f"--config={RECIPE}:{name}", f"--topology={topology}"),
      f"--json={file}",
      *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (EX_OK, EX_USAGE) or not file.exists():
      raise UserError(f"{' '.join(command)}\n{done.stderr.strip()}")
    return json.loads(file.read_text())


def table(cells: dict[str, dict]) -> str:
  """Returns Markdown; "device-days" of v3 are the paper's core-days."""
  return render(HEAD, _rows(cells)) + "\n"


def _rows(cells: dict[str, dict]) -> Iterator[tuple]:
  for cell in cells.values():
    at_once = f"{cell['per_device']}"
    if cell["accumulation"] > 1:
      at_once += f" x {cell['accumulation']}"
    programs = cell["training"], cell["evaluation"]
    peak = max(each["peak_beside_all"] for each in programs if each)
    memory = f"{peak / GIB:.2f}", f"{cell['memory_per_device'] / GIB:.2f}"
    name = f"{cell['model']}, {cell['topology']}"
    estimate = cell.get("estimate")
    if not estimate:
      yield (name, at_once, *memory, *("does not fit", *[""] * 7))
      continue
    reduced = sum(
      each["bytes"]
      for each in cell["training"]["collectives"]
      if each["kind"] != "collective-permute"
    )
    compiler_seconds = estimate["compiler_seconds"]
    paper = cell["paper_core_days"]
    yield (
      name,
      at_once,
      *memory,
      f"{estimate['flops'] / 1e12:.3g}",
      f"{estimate['bytes_moved'] / 1e9:.3g}",
      f"{reduced / 1e6:.4g}",
      f"{1e3 * estimate['roofline']['step']:.3g}",
      f"{1e3 * compiler_seconds:.3g}" if compiler_seconds else "unknown",
      f"{estimate['run_seconds'] / 3600:.3g}",
      f"{estimate['device_seconds'] / 86_400:.3g}",
      f"{paper:g}" if paper else "",
    )


if __name__ == "__main__":
  sys.exit(main())
