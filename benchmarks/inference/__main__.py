# SPDX-License-Identifier: Apache-2.0
"""Times images by `python -m mixer predict` and by an exported program.

python -m benchmarks.inference [--models=Mixer-S/16] [--batches=1,32]

Of a call, on this machine's first device, from uint8 images on the host to
results on the host: median, 95th percentile and images/s, by

  predict   the compiled function of `predict`
  exported  the program that `export` writes, read back and called
  jitted    the model's forward pass in jax.jit, to compare with

and for each the seconds until its file is loaded, and from there to the first
result. Weights and images are random. `predict` itself computes in float32;
for bfloat16 its function is given a model with such products. All three take
turns in one process a model, dtype and batch size. Goes on where it left off,
by results/inference/DEVICE.json, and prints all of it as a Markdown table. It
needs all of requirements.txt, as `predict` does.
"""

import itertools
import shlex
import sys
from pathlib import Path

from benchmarks.inference.measure import in_process
from benchmarks.inference.table import MEASURED, page
from benchmarks.inference.ways import NAMES
from benchmarks.step.cell import Cell
from benchmarks.step.results import Results
from benchmarks.throughput.cells import (
  DTYPES,
  IMAGE_SIZE,
  INFERENCE,
  check_timing,
  choose,
  whole_numbers,
  words,
)
from benchmarks.throughput.children import describe_device
from benchmarks.throughput.command_line import command_line
from mixer import models as families
from mixer.cli import run_cli

# Batches and dtypes.
DEFAULTS = {"cpu": ("1,16", "float32")}
OTHERS = "1,32", "float32,bfloat16"


def main() -> int:
  parser = command_line(
    "inference",
    __doc__,
    on_cpu=DEFAULTS["cpu"],
    elsewhere=OTHERS,
    limit=600.0,
    models="Mixer-S/16,Mixer-B/16",
  )
  parser.add_argument(
    "--rounds", type=int, default=3, help="of all, in turns; default: 3"
  )
  parser.add_argument(
    "--calls", type=int, default=20, help="timed, a round; default: 20"
  )
  return run_cli(fill, **vars(parser.parse_args()))


def fill(
  models: str,
  batches: str | None,
  dtype: str | None,
  results: Path,
  again: bool,
  **how: float,
) -> str:
  """Measures what is not there yet; returns the table.

  Args:
    models, batches, dtype, results, again: as the flags say.
    **how: of `in_process`.
  """
  known_models = [(name, IMAGE_SIZE) for name in families.names()]
  chosen = [name for name, _ in choose(models.split(","), known_models)]
  check_timing(**how)
  device = describe_device()
  defaults = DEFAULTS.get(device["platform"], OTHERS)
  dtypes = words("dtype", dtype or defaults[1], DTYPES)
  sizes = whole_numbers("batches", batches or defaults[0])
  command = shlex.join(["python", "-m", "benchmarks.inference", *sys.argv[1:]])
  known = Results(
    results,
    device,
    command,
    limit=how["limit"],
    again=again,
    subject="inference",
    measured=MEASURED,
  )
  for name, kind, batch in itertools.product(chosen, dtypes, sizes):
    cell = Cell(name, INFERENCE, kind, batch)
    if known.missing(cell, NAMES):
      known.replace(cell, _told(cell, in_process(cell, **how)))
  return f"{page(device, known.rows)}\n\n{known.file}"


def _told(cell: Cell, rows: list[dict]) -> list[dict]:
  for row in rows:
    said = row.get("why") or f"{row['median_ms']:,.4g} ms"
    print(
      f"{cell.label}, {row['implementation']}: {said}",
      file=sys.stderr,
      flush=True,
    )
  return rows


if __name__ == "__main__":
  sys.exit(main())
