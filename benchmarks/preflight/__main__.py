# SPDX-License-Identifier: Apache-2.0
"""Preflight of the ImageNet-21k recipes on slices of TPUs, and on GPUs.

python -m benchmarks.preflight [--models=Mixer-S/32,ViT-B/16,BiT-R50x1]
  [--topologies=v3-128]

Needs libtpu, for gpu:h100x8 and gpu:h200x8 jax's CUDA plugin, and 1 to 3
minutes and up to 9 GB a cell on two cores. Goes on where it left off: a cell
that is in results/preflight.json is not compiled again. Writes
results/preflight.md beside it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.preflight.rows import table
from mixer.atomic_write import atomic_write
from mixer.cli import EX_OK, EX_USAGE, run_cli
from mixer.errors import UserError
from mixer.models.mixer import VARIANTS
from mixer.tools.preflight.compiler import check_installed
from mixer.tools.preflight.topology import parse

MIXERS = ",".join(VARIANTS)
# The paper's batch of 4,096 is 32, 64 and 64 images a device on these.
SLICES = "v3-128,v4-128,v5e-64"
RECIPE = "configs/pretrain_i21k.py"
RESULTS = Path("results")


def main() -> int:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.preflight",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--models", default=MIXERS)
  parser.add_argument("--topologies", default=SLICES)
  parser.add_argument("--results", type=Path, default=RESULTS)
  given = parser.parse_args()
  return run_cli(
    fill,
    names=given.models.split(","),
    slices=given.topologies.split(","),
    folder=given.results,
  )


def fill(names: list[str], slices: list[str], folder: Path) -> str:
  """Compiles what is not there yet; returns the table."""
  machines = [parse(each) for each in slices]
  for machine in machines:
    check_installed(machine)
  file = folder / "preflight.json"
  folder.mkdir(parents=True, exist_ok=True)
  cells = json.loads(file.read_text()) if file.exists() else {}
  for topology in [machine.name for machine in machines]:
    for name in names:
      cell = f"{name}, {topology}"
      if cell in cells:
        continue
      print(cell, file=sys.stderr, flush=True)
      cells[cell] = preflight(name, topology)
      with atomic_write(file) as aside:
        aside.write_text(json.dumps(cells, indent=1) + "\n")
      with atomic_write(file.with_suffix(".md")) as aside:
        aside.write_text(table(cells))
  return table(cells).strip()


def preflight(name: str, topology: str, *flags: str) -> dict:
  """One cell, in a process of its own: a compiler's memory goes with it."""
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


if __name__ == "__main__":
  sys.exit(main())
