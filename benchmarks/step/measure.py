# SPDX-License-Identifier: Apache-2.0
"""Measures one implementation in a process of its own, in lines of JSON.

python -m benchmarks.step.measure --implementation=timm --platform=cpu \
  --model=Mixer-B/16 --batch=8

The first line has the versions, or says why the implementation is absent; the
second what came of a model, or of square products with --products=SIZES. A
process of its own, because memory, threads and caches of one library should not
be the next one's.
"""

import argparse
import contextlib
import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.step.cell import Cell
from benchmarks.step.implementation import Implementation
from benchmarks.step.matmul import best_product
from benchmarks.throughput import cells
from benchmarks.throughput.measure import first_line, go_first, say
from benchmarks.throughput.timing import time_calls

OURS = "ours"
NAMES = OURS, "timm", "timm-eager", "authors"


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--implementation", default=OURS, choices=NAMES)
  parser.add_argument("--platform", default="cpu", help="that jax computes on")
  parser.add_argument("--authors", type=Path)
  parser.add_argument("--model")
  parser.add_argument("--pass", dest="passes", default=cells.INFERENCE)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--products")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=0.5)
  given = parser.parse_args()
  go_first()
  with tempfile.TemporaryDirectory() as folder:
    # What was compiled once must not make the next compilation look fast.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    # What a library prints is no line of ours.
    with contextlib.redirect_stdout(sys.stderr):
      for line in answer(given):
        say(line)


def answer(given: argparse.Namespace):
  try:
    implementation = create(given.implementation, given.platform, given.authors)
  except Exception as error:  # whatever a peer's libraries fail with
    if given.implementation == OURS:
      raise
    yield {"absent": first_line(error)}
    return
  yield {
    "versions": {
      name: importlib.metadata.version(name) for name in implementation.packages
    }
  }
  how = given.repeats, given.seconds
  if given.products:
    sizes = [int(x) for x in given.products.split(",")]
    try:
      yield best_product(implementation, given.dtype, sizes, *how)
    except (*implementation.errors, MemoryError) as error:
      yield {"why": first_line(error)}
  elif given.model:
    cell = Cell(given.model, given.passes, given.dtype, given.batch)
    yield measure(implementation, cell, *how)


def create(name: str, platform: str, authors: Path | None) -> Implementation:
  """Imports what an implementation needs, and no other's libraries.

  Raises:
    AbsentError: it cannot be used here, for which its libraries may raise
      anything else.
  """
  if name == OURS:
    from benchmarks.step.ours import Ours

    return Ours()
  if name == "authors":
    from benchmarks.step.authors import Authors

    return Authors(authors)
  from benchmarks.step.timm_peer import Timm

  return Timm(platform, compiled=name == "timm")


def measure(
  implementation: Implementation, cell: Cell, repeats: int, seconds: float
) -> dict:
  """Times a cell's program.

  Returns:
    "timings" (seconds of a call), "compile_seconds", "peak_bytes"; or "why"
    there are none.
  """
  try:
    program = implementation.make(cell)
    implementation.forget_peak()
    timings = time_calls(program.call, repeats, seconds, implementation.wait)
  except (*implementation.errors, MemoryError) as error:
    return {"why": first_line(error)}
  return {
    "timings": timings,
    "compile_seconds": program.compile_seconds,
    "peak_bytes": implementation.peak_bytes(),
  }


if __name__ == "__main__":
  # All of a GPU's memory, but for what its driver and libraries take.
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
  main()
