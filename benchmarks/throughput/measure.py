# SPDX-License-Identifier: Apache-2.0
"""Measures one model in a process of its own: one line of JSON a batch size.

python -m benchmarks.throughput.measure --model=Mixer-B/16 --batches=1,8

The first line is of the device. A process of its own, because memory that runs
out can take the process with it, and because caches and pools of one model
should not be the next one's.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.throughput import cells
from benchmarks.throughput.machine import describe
from benchmarks.throughput.programs import (
  CLASSES,
  DoesNotFitError,
  infer,
  train,
)
from benchmarks.throughput.timing import time_calls
from mixer.jax_setup import configure_xla, trim_malloc
from mixer.models import create


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model")
  parser.add_argument("--image_size", type=int, default=cells.IMAGE_SIZE)
  parser.add_argument("--pass", dest="passes", default=cells.INFERENCE)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--batches", default="1")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=0.5)
  given = parser.parse_args()
  go_first()
  configure_xla()  # as train.py, eval.py and predict do
  say(describe())
  if given.model:
    part = cells.Part(
      given.model,
      given.image_size,
      given.passes,
      given.dtype,
      [int(x) for x in given.batches.split(",")],
    )
    for row in measure(part, given.repeats, given.seconds):
      say(row)


def go_first():
  """Should the system run out of memory, let it be this process."""
  with contextlib.suppress(OSError):
    Path("/proc/self/oom_score_adj").write_text("1000")


def say(line: dict):
  print(json.dumps(line), file=sys.__stdout__, flush=True)


def measure(part: cells.Part, repeats: int, seconds: float) -> Iterator[dict]:
  """Yields what came of each batch size, until one does not fit.

  Args:
    part: what to measure.
    repeats: timings, of which the median counts.
    seconds: that a timing takes at least; it goes over as many calls.
  """
  model = create(
    part.model,
    num_classes=CLASSES,
    dtype=None if part.dtype == "float32" else jnp.dtype(part.dtype),
    **cells.fields(part.model, part.image_size),
  )
  size = (part.image_size, part.image_size)
  make = {cells.INFERENCE: infer, cells.TRAINING: train}[part.passes]
  for batch in part.batches:
    try:
      program = make(model, (batch, *size, model.image_channels))
      timings = time_calls(program.call, repeats, seconds)
    except DoesNotFitError as error:
      yield {"batch": batch, "images_per_second": None, "why": str(error)}
      return
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
      why = first_line(error)
      yield {"batch": batch, "images_per_second": None, "why": why}
      return
    median = statistics.median(timings)
    yield {
      "batch": batch,
      "images_per_second": float(f"{batch / median:.5g}"),
      "spread": round((max(timings) - min(timings)) / median, 4),
      "bytes": program.needs,
    }
    del program  # and its arrays, before the next are made
    # What is kept of a CPU's memory does not count as free.
    trim_malloc()


def first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:200]


if __name__ == "__main__":
  # All of a GPU's memory, but for what its driver and libraries take.
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
  main()
