# SPDX-License-Identifier: Apache-2.0
"""Training and inference side by side with timm's and the authors' code.

python -m benchmarks.step [--models=Mixer-B/*] [--batches=32] [--authors=PATH]

For every Mixer at 224 px, on this machine's first device: images/s, TFLOP/s,
their share of the speed of a large square product and, as MFU, of the data
sheet's bfloat16 peak, peak memory, seconds of compilation. Implementations:

  ours        this project's models and training step; not by default:
    ours-layers, ours-mosaic  by layers, by kernels of Mosaic GPU
    ours-remat                with remat=token_mixing
  timm        timm through PyTorch, by torch.compile; has no H/14
  timm-eager  the same without it
  authors     vit_jax/models_mixer.py of google-research/vision_transformer in
              the folder --authors, with optax (needs einops)

All compute on the same random images and on random weights. A training step is
forward and backward pass of the sigmoid loss, clipping to 1, Adam and decoupled
decay of matrices; parameters are float32, products --dtype. Each implementation
is measured in processes of its own, in turns; absent ones are named and left
out. A cell, which is a model, pass, dtype and batch size, is measured as a
whole: adding an implementation measures the present ones again.

Rows in results/step/DEVICE.json are not measured again without --again; all of
them are printed as a Markdown table. They keep the environment variables of
their measurement, such as GLIBC_TUNABLES, which the table names. A cell takes 2
to 10 minutes on two cores, most of them for torch.compile.
"""

import dataclasses
import itertools
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from benchmarks import cells, harness
from benchmarks.cells import Cell
from benchmarks.device import environment
from benchmarks.harness import ChildError, Results
from benchmarks.step.implementations import NAMES, OURS, VARIANTS
from benchmarks.step.table import page
from mixer import models as families
from mixer.cli import run_cli
from mixer.errors import UserError, notify

# Batches, dtypes and sides of the square matrices.
DEFAULTS = {"cpu": ("1,16", "float32", "1024,2048,4096")}
OTHERS = "32,128,512", "bfloat16,float32", "2048,4096,8192,16384"
MODULE = "benchmarks.step.implementations"
START_LIMIT = 600.0  # seconds; libraries may be on a network disk


def main() -> int:
  parser = cells.create_speed_parser(
    "step",
    __doc__,
    on_cpu=DEFAULTS["cpu"],
    elsewhere=OTHERS,
    limit=300.0,
    counts={
      "rounds": (2, "of all, in turns"),
      "repeats": (5, "timings a round"),
    },
  )
  default = [name for name in NAMES if name == OURS or name not in VARIANTS]
  for flag, every in ("passes", cells.PASSES), ("implementations", default):
    every = ",".join(every)
    parser.add_argument(f"--{flag}", default=every, help=f"default: {every}")
  parser.add_argument("--authors", type=Path, help="checkout of their code")
  parser.add_argument("--products", help=f"sides; default: {OTHERS[2]}")
  flags = vars(parser.parse_args())
  # This process only counts; the device is for the children.
  jax.config.update("jax_platforms", "cpu")
  return run_cli(fill, **flags)


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
  **timing: float,
) -> str:
  """Measures the cells that are due; returns the table. For args see flags."""
  chosen = cells.choose(models, families.names("Mixer"))
  cells.check_timing(**timing)
  chosen_passes = cells.split_words("passes", passes, cells.PASSES)
  names = cells.split_words("implementations", implementations, NAMES)
  device = harness.describe_device()
  defaults = DEFAULTS.get(device["platform"], OTHERS)
  grid = [
    Cell(*each)
    for each in itertools.product(
      chosen,
      chosen_passes,
      cells.split_words("dtype", dtype or defaults[1], cells.DTYPES),
      cells.split_numbers("batches", batches or defaults[0]),
    )
  ]
  sides = cells.split_numbers("products", products or defaults[2])
  children = Children(device["platform"], authors and str(authors), **timing)
  present = _probe(children, names, device)
  if not present:
    raise UserError(
      f"None of --implementations={implementations} is here: add {OURS}."
    )
  known = Results(results, "step", device, limit=timing["limit"], again=again)
  # Cell -> implementations that it has rows of.
  measured = {
    cell: [row["implementation"] for row in known.select(vars(cell))]
    for cell in grid
    if any(known.is_due(_key(cell, name)) for name in present)
  }
  others = {*itertools.chain(*measured.values())} - {*present}
  still_present = _probe(children, sorted(others), device)
  if absent := sorted(others - {*still_present}):
    raise UserError(
      f"{known.path} has rows of {', '.join(absent)}, not here, for "
      "cells to be measured again: they would be lost. Bring what is missing, "
      "or name another folder by --results."
    )
  multiply = [name for name in (OURS, "timm") if name in present] or present
  yardsticks = {}
  for cell, old in measured.items():
    if cell.dtype not in yardsticks:
      yardsticks[cell.dtype] = children.best_product(
        multiply, cell.dtype, sides
      )
    names = [*present, *(name for name in still_present if name in old)]
    fitting = [name for name in names if known.fits(_key(cell, name))]
    rows = []
    for row in children.measure(cell, fitting):
      harness.log_speed(f"{cell.label}, {row['implementation']}", row)
      how = {"matmul": yardsticks[cell.dtype], "environment": environment()}
      rows.append(row | how)
    if rows:
      known.put(vars(cell), rows)
  return f"{page(device, known.lists[harness.ROWS])}\n\n{known.path}"


def _key(cell: Cell, implementation: str) -> dict:
  return vars(cell) | {"implementation": implementation}


def _probe(
  children: "Children", implementations: Sequence[str], device: dict
) -> list[str]:
  """Logs absent implementations; adds the others' versions to the device's."""
  present = []
  for name in implementations:
    row = children.probe(name)
    if "absent" in row:
      notify(f"{name} is left out: {row['absent']}")
    else:
      present.append(name)
      device["versions"] |= row["versions"]
  return present


@dataclasses.dataclass(frozen=True)
class Children:
  """Child processes of the implementations, one at a time.

  Each has the whole device, and frees it at its end: next to one another they
  would share its memory.

  platform: platform on which jax computes.
  authors: folder of the authors' code.
  repeats: timings of a program in a round.
  seconds: minimum length of a timing.
  limit: seconds of a process, compilation included.
  rounds: processes of an implementation for a cell.
  """

  platform: str
  authors: str | None
  repeats: int
  seconds: float
  limit: float
  rounds: int

  def probe(self, name: str) -> dict:
    """Returns the "versions" of an implementation, or why it is "absent"."""
    return self._run("probe", name, START_LIMIT)

  def best_product(
    self, names: Sequence[str], dtype: str, sizes: Sequence[int]
  ) -> dict:
    """Times square products by several libraries; returns the fastest.

    Returns:
      "flops_per_second", "size" and the implementation in "by".

    Raises:
      UserError: it takes too long, or too much memory.
    """
    rows = []
    for name in names:
      try:
        row = self._time("best_product", name, dtype=dtype, sizes=sizes)
      except ChildError as error:
        row = error.row
      if "why" in row:
        raise UserError(
          f"The products of {dtype} matrices ({name}): {row['why']}. Choose "
          "smaller ones by --products, or a higher --limit."
        )
      rows.append(row | {"by": name})
    best = max(rows, key=lambda row: row["flops_per_second"])
    notify(
      f"{dtype}, product of {best['size']} x {best['size']}: "
      f"{best['flops_per_second'] / 1e12:.3g} TFLOP/s ({best['by']})"
    )
    return best

  def measure(self, cell: Cell, names: Sequence[str]) -> Iterator[dict]:
    """Measures in turns; yields a row for each implementation."""
    rounds = {name: [] for name in names}
    for name in harness.turns(names, self.rounds):
      if not any("why" in row for row in rounds[name]):
        rounds[name].append(self._measure_once(cell, name))
    for name, rows in rounds.items():
      yield {"implementation": name} | _summarize(cell, rows)

  def _measure_once(self, cell: Cell, name: str) -> dict:
    try:
      return self._time("measure", name, cell=vars(cell))
    except ChildError as error:
      return error.row
    except UserError as error:
      if name in VARIANTS:
        raise
      # A crash of another implementation is a result, too.
      return {"why": str(error).splitlines()[-1][:200]}

  def _time(self, function: str, name: str, **arguments) -> dict:
    timing = {"repeats": self.repeats, "seconds": self.seconds}
    return self._run(function, name, self.limit, **arguments, **timing)

  def _run(self, function: str, name: str, limit: float, **arguments) -> dict:
    where = {"platform": self.platform, "authors": self.authors}
    [row] = harness.run_child(
      f"{MODULE}:{function}",
      limit,
      implementation={"name": name, **where},
      **arguments,
    )
    return row


def _summarize(cell: Cell, rounds: list[dict]) -> dict:
  """Makes one row of an implementation's rounds."""
  failed = [row for row in rounds if "why" in row]
  if failed:
    return {"images_per_second": None} | failed[0]
  timings = [timing for row in rounds for timing in row["timings"]]
  flops = cell.batch * cell.flops_per_image / statistics.median(timings)
  compiled = statistics.median(row["compile_seconds"] for row in rounds)
  return harness.speed(cell.batch, timings) | {
    "flops_per_second": harness.round_digits(flops),
    "peak_bytes": max(row["peak_bytes"] for row in rounds),
    "compile_seconds": round(compiled, 2),
    "timings": len(timings),
    "versions": rounds[-1]["versions"],
  }


if __name__ == "__main__":
  sys.exit(main())
