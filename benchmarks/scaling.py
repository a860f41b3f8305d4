# SPDX-License-Identifier: Apache-2.0
"""Step times from one chip to a pod: the figures of docs/scaling.md.

python -m benchmarks.scaling [--models=B/16,L/16,H/14]

Compiles each model three times for four v4 chips (1 to 3 minutes each on two
cores, with libtpu) and computes the rest from the chip's published peaks.
Compilations in results/scaling.json are not repeated. Writes results/scaling.md
next to it.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.preflight import fill_cells
from mixer.cli import create_parser, run_cli
from mixer.storage import write_text
from mixer.tools.preflight.compiler import check_installed
from mixer.tools.preflight.hlo import Collective
from mixer.tools.preflight.roofline import Roofline, roofline
from mixer.tools.preflight.topology import Topology, parse
from mixer.tools.table import render

MODELS = "B/16,L/16,H/14"
COMPILED_FOR = "v4:2x2x1"
IMAGES = 1, 8, 64  # per chip, of the compilations
SHAPES = "2x2x1 2x2x4 4x4x4 4x8x8 8x8x16 16x16x16"
BATCH = 4096  # the paper's
PER_CHIP = 64  # images, if the batch grows with the machine
COVERED = 0.1  # communication, as a share of the rest of a step
# Mean of ImageNet's JPEG files: the training tar's 147.9 GB / 1,281,167.
JPEG_BYTES = 115_000
PASS_IMAGES = 3e9  # one epoch of JFT-3B
HEAD = (
  "chips | images a chip | compute, ms | memory | all-reduce | step | "
  "images/s | images/s a host | MB/s a host | hours for 3e9"
).split(" | ")


def main() -> int:
  parser = create_parser("benchmarks.scaling", __doc__)
  parser.add_argument("--models", default=MODELS)
  parser.add_argument("--results", type=Path, default=Path("results"))
  flags = parser.parse_args()
  return run_cli(
    scale, models=flags.models.split(","), file=flags.results / "scaling.json"
  )


def scale(models: list[str], file: Path) -> str:
  """Compiles the cells missing from the file; returns the tables."""
  check_installed(parse(COMPILED_FOR))
  devices = parse(COMPILED_FOR).devices
  due = {
    f"Mixer-{model}, {images}": (
      model,
      COMPILED_FOR,
      f"--config.batch={images * devices}",
    )
    for model in models
    for images in IMAGES
  }
  cells = fill_cells(file, due)
  text = "\n\n".join(
    _section(
      model, StepModel.of([cells[f"Mixer-{model}, {n}"] for n in IMAGES])
    )
    for model in models
  )
  write_text(file.with_suffix(".md"), f"{text}\n")
  return text


@dataclasses.dataclass(frozen=True)
class StepModel:
  """Step times for any number of chips and images, from few compilations.

  One recipe on one kind of chip; numbers are per JAX device.

  flops_per_image: FLOPs of the compiled step.
  images: images of each compilation, rising.
  traffic: HBM traffic of each compilation, in bytes.
  gradient_bytes: size of the all-reduce.
  """

  flops_per_image: float
  images: Sequence[int]
  traffic: Sequence[float]
  gradient_bytes: int

  @classmethod
  def of(cls, reports: Sequence[dict]) -> "StepModel":
    """Reads reports of `preflight`, with rising images."""
    largest = reports[-1]
    return cls(
      flops_per_image=largest["estimate"]["flops"] / largest["per_device"],
      images=[each["per_device"] for each in reports],
      traffic=[each["estimate"]["bytes_moved"] for each in reports],
      gradient_bytes=sum(
        each["bytes"]
        for each in largest["training"]["collectives"]
        if each["kind"] == "all-reduce"
      ),
    )

  def bytes_moved(self, images: float) -> float:
    """Interpolates HBM traffic linearly between the compilations.

    It is not one line: with few images, activations stay on the chip.
    """
    if images > self.images[-1]:
      return self.traffic[-1] * images / self.images[-1]
    return float(np.interp(images, self.images, self.traffic))

  def step(self, topology: Topology, images: float) -> Roofline:
    """Returns the roofline of a step with this many images per device."""
    return roofline(
      topology,
      flops=self.flops_per_image * images,
      bytes_moved=self.bytes_moved(images),
      collectives=[Collective("all-reduce", self.gradient_bytes)],
    )

  def covering_images(self, topology: Topology, share: float) -> int:
    """Returns the fewest images per device that hide communication.

    Hidden means at most `share` of the time for compute or memory; 1 where one
    image is enough.
    """

    def covers(images: int) -> bool:
      step = self.step(topology, images)
      return step.communication <= share * max(step.compute, step.memory)

    return next(filter(covers, itertools.count(1)))


def _section(name: str, model: StepModel) -> str:
  """Renders a model's tables: constant batch, then constant images a chip."""
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
  one = dataclasses.replace(machines[0], chips=1)
  for machine in (one, *machines):
    images = batch / machine.chips if batch else PER_CHIP
    times = model.step(machine, images)
    rate = images * machine.chips / times.step
    yield (
      f"{machine.chips:,}",
      f"{images:g}",
      *(f"{1e3 * t:.3g}" for t in (*dataclasses.astuple(times), times.step)),
      f"{rate:,.0f}",
      f"{rate / machine.hosts:,.0f}",
      f"{rate / machine.hosts * JPEG_BYTES / 1e6:,.0f}",
      f"{PASS_IMAGES / rate / 3600:.3g}",
    )


if __name__ == "__main__":
  sys.exit(main())
