# SPDX-License-Identifier: Apache-2.0
"""From one chip to a Pod: the figures of docs/scaling.md.

python -m benchmarks.scaling [--models=B/16,L/16,H/14]

Compiles each model three times for four v4 chips (1 to 3 minutes each on two
cores, with libtpu) and computes the rest from the chip's published peaks. What
is in results/scaling.json is not compiled again. Writes results/scaling.md
beside it.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.preflight import preflight
from benchmarks.scaling.model import StepModel
from mixer.atomic_write import atomic_write
from mixer.cli import run_cli
from mixer.tools.preflight.compiler import check_libtpu
from mixer.tools.preflight.topology import Topology, parse
from mixer.tools.table import render

MODELS = "B/16,L/16,H/14"
COMPILED_FOR = "v4:2x2x1"
IMAGES = 1, 8, 64  # per chip, of the compilations
SHAPES = "2x2x1 2x2x4 4x4x4 4x8x8 8x8x16 16x16x16"
BATCH = 4096  # the paper's
PER_CHIP = 64  # where the batch grows with the machine
COVERED = 0.1  # communication, as a share of everything else
# Mean of ImageNet's JPEG files: the training tar's 147.9 GB / 1,281,167.
JPEG_BYTES = 115_000
PASS_IMAGES = 3e9  # one epoch of JFT-3B
HEAD = (
  "chips",
  "images a chip",
  "compute, ms",
  "memory",
  "all-reduce",
  "step",
  "images/s",
  "images/s a host",
  "MB/s a host",
  "hours for 3e9",
)


def main() -> int:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.scaling",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--models", default=MODELS)
  parser.add_argument("--results", type=Path, default=Path("results"))
  given = parser.parse_args()
  return run_cli(
    scale, models=given.models.split(","), file=given.results / "scaling.json"
  )


def scale(models: list[str], file: Path) -> str:
  """Compiles what is not there yet; returns the tables."""
  check_libtpu()
  file.parent.mkdir(parents=True, exist_ok=True)
  cells = json.loads(file.read_text()) if file.exists() else {}
  sections = []
  for model in models:
    reports = []
    for images in IMAGES:
      cell = f"Mixer-{model}, {images}"
      if cell not in cells:
        print(cell, file=sys.stderr, flush=True)
        batch = images * parse(COMPILED_FOR).devices
        flag = f"--config.batch={batch}"
        cells[cell] = preflight(model, COMPILED_FOR, flag)
        with atomic_write(file) as aside:
          aside.write_text(json.dumps(cells, indent=1) + "\n")
      reports.append(cells[cell])
    sections.append(_section(model, StepModel.of(reports)))
  text = "\n\n".join(sections)
  with atomic_write(file.with_suffix(".md")) as aside:
    aside.write_text(f"{text}\n")
  return text


def _section(name: str, model: StepModel) -> str:
  """Tables of one model: the paper's batch, then as many images a chip."""
  machines = [parse(f"v4:{shape}") for shape in SHAPES.split()]
  cover = ", ".join(
    f"{model.covering_images(m, COVERED)} on {m.chips:,}" for m in machines
  )
  moved = ", ".join(
    f"{traffic / 1e9:.3g} GB with {images}"
    for images, traffic in zip(model.images, model.traffic, strict=True)
  )
  return "\n\n".join(
    [
      f"Mixer-{name}: {model.gradient_bytes / 1e6:,.0f} MB of gradients, "
      f"{model.flops_per_image / 1e9:,.0f} GFLOP an image; between chip and "
      f"memory {moved}. Images a chip that keep the all-reduce within "
      f"{COVERED:.0%} of the rest: {cover}.",
      f"A batch of {BATCH:,}:",
      render(HEAD, _rows(model, machines, batch=BATCH)),
      f"{PER_CHIP} images a chip:",
      render(HEAD, _rows(model, machines)),
    ]
  )


def _rows(
  model: StepModel, machines: list[Topology], batch: int | None = None
) -> Iterator[tuple]:
  one = ("1", 1, 1)
  sizes = [one, *((f"{m.chips:,}", m.chips, m.hosts) for m in machines)]
  # One chip is a part of the smallest slice that talks to nobody.
  for (label, chips, hosts), machine in zip(
    sizes, [None, *machines], strict=True
  ):
    images = batch / chips if batch else PER_CHIP
    found = model.step(machine or machines[0], images)
    communication = found.communication if machine else 0.0
    step = max(found.compute, found.memory) + communication
    rate = images * chips / step
    yield (
      label,
      f"{images:g}",
      *(f"{1e3 * t:.3g}" for t in (found.compute, found.memory)),
      *(f"{1e3 * t:.3g}" for t in (communication, step)),
      f"{rate:,.0f}",
      f"{rate / hosts:,.0f}",
      f"{rate / hosts * JPEG_BYTES / 1e6:,.0f}",
      f"{PASS_IMAGES / rate / 3600:.3g}",
    )


if __name__ == "__main__":
  sys.exit(main())
