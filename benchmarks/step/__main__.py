# SPDX-License-Identifier: Apache-2.0
"""Training and inference side by side with timm's and the authors' code.

python -m benchmarks.step [--models=Mixer-B/*] [--batches=32] [--authors=PATH]

For every Mixer at 224 px, on this machine's first device: images/s, TFLOP/s and
their share of what a large square product reaches here, peak memory, seconds of
compilation. Implementations:

  ours        this project's models and training step
  timm        timm through PyTorch, by torch.compile; has no H/14
  timm-eager  the same without it
  authors     vit_jax/models_mixer.py of google-research/vision_transformer in
              the folder --authors, with optax (needs einops)

All compute on the same random images and on random weights. A training step is
forward and backward pass of the sigmoid loss, clipping to 1, Adam and decoupled
decay of matrices; parameters are float32, products --dtype. Each implementation
is measured in processes of its own, in turns; one that is not here is named and
left out. A cell, which is a model, pass, dtype and batch size, is measured
whole: an implementation that is added is measured beside those that are there,
anew. Goes on where it left off, by results/step/DEVICE.json, and prints all of
it as a Markdown table. What is there stays with the variables it was measured
with, such as GLIBC_TUNABLES, which the table names, until --again. A cell takes
2 to 10 minutes on two cores, most of which is torch.compile's.
"""

import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from benchmarks.step.cell import Cell
from benchmarks.step.measure import NAMES, OURS
from benchmarks.step.processes import Processes
from benchmarks.step.results import Results
from benchmarks.step.table import page
from benchmarks.throughput.cells import (
  DTYPES,
  IMAGE_SIZE,
  PASSES,
  check_timing,
  choose,
  whole_numbers,
  words,
)
from benchmarks.throughput.children import describe_device
from benchmarks.throughput.command_line import command_line
from benchmarks.throughput.machine import environment
from mixer import models as families
from mixer.cli import run_cli
from mixer.errors import UserError

# Batches, dtypes and sides of the square matrices.
DEFAULTS = {"cpu": ("1,16", "float32", "1024,2048,4096")}
OTHERS = "32,128,512", "bfloat16,float32", "2048,4096,8192,16384"


def main() -> int:
  parser = command_line(
    "step",
    __doc__,
    on_cpu=DEFAULTS["cpu"],
    elsewhere=OTHERS,
    limit=300.0,
  )
  for flag, every in ("passes", PASSES), ("implementations", NAMES):
    every = ",".join(every)
    parser.add_argument(f"--{flag}", default=every, help=f"default: {every}")
  parser.add_argument("--authors", type=Path, help="checkout of their code")
  parser.add_argument("--products", help=f"sides; default: {OTHERS[2]}")
  parser.add_argument(
    "--rounds", type=int, default=2, help="of all, in turns; default: 2"
  )
  parser.add_argument(
    "--repeats", type=int, default=5, help="timings a round; default: 5"
  )
  parser.add_argument(
    "--seconds",
    type=float,
    default=0.5,
    help="at least, of a timing; default: 0.5",
  )
  given = vars(parser.parse_args())
  # This process only counts; the device is for those that are measured.
  jax.config.update("jax_platforms", "cpu")
  return run_cli(fill, **given)


def fill(
  models: str,
  batches: str | None,
  dtype: str | None,
  passes: str,
  implementations: str,
  authors: Path | None,
  products: str | None,
  results: Path,
  again: bool,
  **how: float,
) -> str:
  """Measures what is not there yet; returns the table.

  Args:
    models, batches, dtype, passes, implementations, authors, products, results,
      again: as the flags say.
    **how: of `Processes`.
  """
  mixers = [(name, IMAGE_SIZE) for name in families.names("Mixer")]
  chosen = [name for name, _ in choose(models.split(","), mixers)]
  check_timing(**how)
  chosen_passes = words("passes", passes, PASSES)
  names = words("implementations", implementations, NAMES)
  device = describe_device()
  defaults = DEFAULTS.get(device["platform"], OTHERS)
  cells = [
    Cell(*each)
    for each in itertools.product(
      chosen,
      chosen_passes,
      words("dtype", dtype or defaults[1], DTYPES),
      whole_numbers("batches", batches or defaults[0]),
    )
  ]
  sides = whole_numbers("products", products or defaults[2])
  processes = Processes(device["platform"], authors, **how)
  present = _probe(processes, names, device)
  if not present:
    raise UserError(
      f"None of --implementations={implementations} is here: add {OURS}."
    )
  command = shlex.join(["python", "-m", "benchmarks.step", *sys.argv[1:]])
  known = Results(results, device, command, limit=how["limit"], again=again)
  due = [cell for cell in cells if known.missing(cell, present)]
  others = {name for cell in due for name in known.measured(cell)}
  others = sorted(others - set(present))
  beside = _probe(processes, others, device)
  if absent := sorted(set(others) - set(beside)):
    raise UserError(
      f"{known.file} has rows of {', '.join(absent)}, not here, for "
      "cells to be measured anew: they would be lost. Bring what is missing, "
      "or name another folder by --results."
    )
  for cell, rows in _measure(processes, known, due, present, beside, sides):
    known.replace(cell, rows)
  return f"{page(device, known.rows)}\n\n{known.file}"


def _probe(
  processes: Processes, implementations: Sequence[str], device: dict
) -> list[str]:
  """Says what is absent; adds versions of what is not to the device's."""
  present = []
  for name in implementations:
    said = processes.probe(name)
    if "absent" in said:
      _say(f"{name} is left out: {said['absent']}")
    else:
      present.append(name)
      device["versions"] |= said["versions"]
  return present


def _measure(
  processes: Processes,
  known: Results,
  cells: Sequence[Cell],
  present: Sequence[str],
  beside: Sequence[str],
  sides: Sequence[int],
) -> Iterator[tuple[Cell, list[dict]]]:
  """Yields cells with their rows.

  Args:
    processes: that measure.
    known: so far.
    cells: what to measure.
    present: implementations to measure.
    beside: others, for the cells that have rows of them.
    sides: of the matrices whose product is the yardstick.
  """
  yardsticks = {}
  # One of each library.
  multiply = [name for name in (OURS, "timm") if name in present] or present
  for cell in cells:
    if cell.dtype not in yardsticks:
      yardsticks[cell.dtype] = best = processes.best_product(
        multiply, cell.dtype, sides
      )
      _say(
        f"{cell.dtype}, product of {best['size']} x {best['size']}: "
        f"{best['flops_per_second'] / 1e12:.3g} TFLOP/s ({best['by']})"
      )
    there = known.measured(cell)
    names = [*present, *(name for name in beside if name in there)]
    rows = []
    for row in processes.measure(cell, known.fitting(cell, names)):
      speed = row["images_per_second"]
      said = f"{speed:,.5g} images/s" if speed else row["why"]
      _say(f"{cell.label}, {row['implementation']}: {said}")
      how = {"matmul": yardsticks[cell.dtype], "environment": environment()}
      rows.append(row | how)
    if rows:
      yield cell, rows


def _say(line: str):
  print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
  sys.exit(main())
