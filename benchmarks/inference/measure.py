# SPDX-License-Identifier: Apache-2.0
"""Measures all ways of a model in a process of its own, in lines of JSON.

python -m benchmarks.inference.measure --model=Mixer-S/16 --batch=4
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks.inference import ways
from benchmarks.step.cell import Cell
from benchmarks.throughput.cells import INFERENCE
from benchmarks.throughput.children import EndedError, lines
from benchmarks.throughput.measure import first_line, go_first, say
from benchmarks.throughput.programs import draw_batch
from benchmarks.throughput.timing import time_calls
from mixer.jax_setup import configure_xla


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--calls", type=int, default=20)
  given = parser.parse_args()
  go_first()
  configure_xla()  # as train.py, eval.py and predict do
  # What was compiled for another run must not make this start look fast.
  jax.config.update("jax_enable_compilation_cache", False)
  cell = Cell(given.model, INFERENCE, given.dtype, given.batch)
  try:
    for row in measure(cell, given.rounds, given.calls):
      say(row)
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    say({"why": first_line(error)})


def in_process(
  cell: Cell, *, rounds: int, calls: int, limit: float
) -> list[dict]:
  """Returns a row for each way, of a process that has `limit` seconds.

  Raises:
    UserError: it failed, and not for want of memory or time.
  """
  flags = [
    f"--model={cell.model}",
    f"--dtype={cell.dtype}",
    f"--batch={cell.batch}",
    f"--rounds={rounds}",
    f"--calls={calls}",
  ]
  try:
    rows = list(lines("benchmarks.inference.measure", flags, limit))
  except EndedError as error:
    rows = [error.row]
  if "why" in rows[-1]:
    failed = {"images_per_second": None} | rows[-1]
    return [{"implementation": name} | failed for name in ways.NAMES]
  return rows


def measure(cell: Cell, rounds: int, calls: int) -> list[dict]:
  """Returns a row for each way.

  Args:
    cell: what is measured.
    rounds: in which the ways take turns, in opposite orders.
    calls: timed, of a way in a round.
  """
  pixels = draw_batch(cell.image_shape)["image"]
  with tempfile.TemporaryDirectory() as folder:
    file = ways.write_weights(Path(folder), cell.model, cell.image_shape[1:3])
    files = {"exported": ways.write_exported(file, cell.dtype)}
    starts = {
      name: _start(
        functools.partial(way, files.get(name, file), cell.dtype), pixels
      )
      for name, way in ways.WAYS.items()
    }
  timings = {name: [] for name in ways.NAMES}
  for turn in range(rounds):
    for name in ways.NAMES[:: -1 if turn % 2 else 1]:
      call, _ = starts[name]
      # Any time is long enough, so that each timing is of one call.
      timings[name] += time_calls(
        functools.partial(call, pixels), calls, 0.0, ways.to_host
      )
  return [
    {"implementation": name} | summary(cell.batch, timings[name]) | seconds
    for name, (_, seconds) in starts.items()
  ]


def _start(
  load: Callable[[], ways.Call], pixels: np.ndarray
) -> tuple[ways.Call, dict[str, float]]:
  """Returns a way's call and how long it took to load, and to be of use."""
  begin = time.perf_counter()
  call = load()
  loaded = time.perf_counter()
  ways.to_host(call(pixels))
  first = time.perf_counter()
  return call, {
    "load_seconds": round(loaded - begin, 3),
    "first_seconds": round(first - loaded, 3),
  }


def summary(batch: int, timings: Sequence[float]) -> dict:
  """What is said of the seconds of single calls."""
  median = statistics.median(timings)
  return {
    "images_per_second": float(f"{batch / median:.5g}"),
    "median_ms": float(f"{1e3 * median:.5g}"),
    "p95_ms": float(f"{1e3 * np.percentile(timings, 95):.5g}"),
    "calls": len(timings),
  }


if __name__ == "__main__":
  main()
