# SPDX-License-Identifier: Apache-2.0
"""Throughput of all models on this machine's first device, as in table 3.

python -m benchmarks.throughput [--models=Mixer-*,ViT-B/16] [--batches=1,2,4]

Images a second of inference (the paper's column: the best over batch sizes) and
of training, on random images. Every model is compiled and timed in a process of
its own, within --limit seconds; what does not fit or takes longer is noted and
the others go on. Goes on where it left off: what is in
results/throughput/DEVICE.json is not measured again without --again, nor what
took too long without a longer --limit. Prints the
table as Markdown. Runs with jax, flax and optax alone.
"""

import shlex
import sys
from pathlib import Path

from benchmarks.throughput.cells import (
  DTYPES,
  PASSES,
  Part,
  check_timing,
  choose,
  whole_numbers,
  words,
)
from benchmarks.throughput.children import describe_device, measure
from benchmarks.throughput.command_line import command_line
from benchmarks.throughput.results import Results
from benchmarks.throughput.tables import page
from mixer.cli import run_cli

# A CPU is as busy with a few images as with many, and bfloat16 is no gain.
DEFAULTS = {"cpu": ("1,4", "float32")}
OTHERS = "1,8,32,128,512,2048", "bfloat16,float32"


def main() -> int:
  parser = command_line(
    "throughput",
    __doc__,
    on_cpu=DEFAULTS["cpu"],
    elsewhere=OTHERS,
    limit=300.0,
  )
  parser.add_argument("--passes", default=",".join(PASSES), help="or one")
  parser.add_argument("--repeats", type=int, default=5, help="timings of each")
  parser.add_argument(
    "--seconds", type=float, default=0.5, help="of a timing, at least"
  )
  return run_cli(fill, **vars(parser.parse_args()))


def fill(
  models: str,
  batches: str | None,
  dtype: str | None,
  passes: str,
  results: Path,
  again: bool,
  **how: float,
) -> str:
  """Measures what is not there yet; returns the tables.

  Args:
    models, batches, dtype, passes, results, again: as the flags say.
    **how: of `children.measure`.
  """
  check_timing(**how)
  chosen = choose(models.split(","))
  chosen_passes = words("passes", passes, PASSES)
  device = describe_device()
  default_batches, default_dtypes = DEFAULTS.get(device["platform"], OTHERS)
  dtypes = words("dtype", dtype or default_dtypes, DTYPES)
  sizes = whole_numbers("batches", batches or default_batches)
  command = shlex.join(["python", "-m", "benchmarks.throughput", *sys.argv[1:]])
  known = Results(results, device, command)
  for each in chosen_passes:
    for kind in dtypes:
      for model, image_size in chosen:
        part = Part(model, image_size, each, kind, sizes)
        if not again:
          part = known.missing(part, how["limit"])
        if part.batches:
          _fill(known, part, **how)
  return f"{page(device['device'], known.rows)}\n\n{known.file}"


def _fill(known: Results, part: Part, **how: float):
  for found in measure(part, **how):
    speed = found["images_per_second"]
    said = f"{speed:,.5g} images/s" if speed else found["why"]
    print(
      f"{part.label}, {found['batch']}: {said}", file=sys.stderr, flush=True
    )
    known.add(part, found)


if __name__ == "__main__":
  sys.exit(main())
