# SPDX-License-Identifier: Apache-2.0
"""Measures one model in a process of its own: one line of JSON a batch size.

python -m benchmarks.throughput.measure --model=Mixer-B/16 --batches=1,8

The first line is of the device. A process of its own, because memory that runs
out can take the process with it, and because caches and pools of one model
should not be the next one's.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.throughput import cells
from benchmarks.throughput.machine import describe, free_memory
from mixer.models import cost, create
from mixer.training.mixing import normalise
from mixer.training.optimizer import make_optimizer, make_schedule
from mixer.training.step import (
  Objective,
  bind_to_devices,
  create_state,
  train_step,
)

CLASSES = 1000

# A program on arrays of its own, to be called any number of times.
Program = Callable[[], object]


class DoesNotFitError(Exception):
  """The program needs more memory than there is."""


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
  with contextlib.suppress(OSError):
    # Should the system run out of memory all the same, this process goes first.
    Path("/proc/self/oom_score_adj").write_text("1000")
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


def say(line: dict):
  print(json.dumps(line), flush=True)


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
      program, needs = make(model, (batch, *size, model.image_channels))
      timings = time_calls(program, repeats, seconds)
    except DoesNotFitError as error:
      yield {"batch": batch, "images_per_second": None, "why": str(error)}
      return
    except jax.errors.JaxRuntimeError as error:
      why = str(error).strip().splitlines()[0][:200]
      yield {"batch": batch, "images_per_second": None, "why": why}
      return
    median = statistics.median(timings)
    yield {
      "batch": batch,
      "images_per_second": float(f"{batch / median:.5g}"),
      "spread": round((max(timings) - min(timings)) / median, 4),
      "bytes": needs,
    }
    del program  # and its arrays, before the next are made


def time_calls(program: Program, repeats: int, seconds: float) -> list[float]:
  """Seconds of a call, by so many timings after a warm-up."""
  jax.block_until_ready(program())
  start = time.perf_counter()
  jax.block_until_ready(program())
  once = time.perf_counter() - start
  calls = max(1, math.ceil(seconds / once))
  timings = []
  for _ in range(repeats):
    start = time.perf_counter()
    for _ in range(calls):
      last = program()
    jax.block_until_ready(last)
    timings.append((time.perf_counter() - start) / calls)
  return timings


def infer(model: nn.Module, shape: tuple[int, ...]) -> tuple[Program, int]:
  """Makes the forward pass from uint8 images to logits.

  Args:
    model: with a head.
    shape: of the images, n h w c.

  Returns:
    The program and the bytes that it needs.
  """

  def forward(params, images):
    return model.apply({"params": params}, normalise(images))[0]

  params = cost.abstract_params(model, shape[1:3])
  images = jax.ShapeDtypeStruct(shape, jnp.uint8)
  compiled = jax.jit(forward).lower(params, images).compile()
  needs = check_memory(compiled, params)
  params = jax.device_put(draw_params(params))
  images = jax.device_put(draw_batch(shape)["image"])
  return lambda: compiled(params, images), needs


def train(model: nn.Module, shape: tuple[int, ...]) -> tuple[Program, int]:
  """Makes an update as the ImageNet recipe has it, see `infer`.

  Sigmoid loss, mixup, stochastic depth, Adam, clipping and weight decay; with
  a lower rate, so that random weights do not run away.
  """
  model = model.clone(stoch_depth=0.1)
  params = cost.abstract_params(model, shape[1:3])
  optimizer = make_optimizer(
    params,
    make_schedule(kind="constant", total_steps=1),
    learning_rate=1e-5,
    weight_decay=1e-6,
    clip_norm=1.0,
  )
  objective = Objective("sigmoid", CLASSES, mixup=0.5)
  step = functools.partial(
    train_step, model=model, optimizer=optimizer, objective=objective
  )
  create = functools.partial(create_state, optimizer=optimizer, average=False)

  def rows(tree):  # of one device
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), tree
    )

  here = jax.local_devices()[:1]
  compiled = (
    bind_to_devices(step, here)
    .lower(rows(jax.eval_shape(create, params)), rows(draw_batch(shape)))
    .compile()
  )
  needs = check_memory(compiled, params)
  put = jax.pmap(lambda params, batch: (create(params), batch), devices=here)
  state, batch = put(
    *jax.tree.map(lambda x: x[None], (draw_params(params), draw_batch(shape)))
  )

  def program():
    nonlocal state
    state, metrics = compiled(state, batch)  # the old state is given away
    return metrics

  if int(program()["skipped"][0]):
    raise ValueError("An update of random weights is not finite.")
  return program, needs


def check_memory(compiled: jax.stages.Compiled, params: dict) -> int:
  """Returns the bytes that a program needs.

  Raises:
    DoesNotFitError: that is more than is free.
  """
  found = compiled.memory_analysis()
  if found is None:
    return 0
  needs = (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
    + found.temp_size_in_bytes
  )
  free = free_memory()
  # On their way to the device, parameters are twice in a CPU's memory.
  twice = 4 * cost.count_params(params) if jax.default_backend() == "cpu" else 0
  if free is not None and needs + twice > free:
    raise DoesNotFitError(
      f"needs {(needs + twice) / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
    )
  return needs


def draw_params(params: dict) -> dict:
  """Random parameters, the head's as well, of the size that training begins at.

  None is zero: hardware that computes with zeros draws less power, and is
  faster for it.
  """
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    values = rng.standard_normal(leaf.shape, dtype=np.float32)
    if path[-1].key == "kernel":
      return values / math.sqrt(math.prod(leaf.shape[:-1]))
    return 0.1 * values + (path[-1].key == "scale")

  return jax.tree.map_with_path(draw, params)


def draw_batch(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
  """A batch as training takes it, of noise; `shape` n h w c."""
  rng = np.random.default_rng(1)
  return {
    "image": rng.integers(0, 256, shape, dtype=np.uint8),
    "label": rng.integers(0, CLASSES, shape[:1], dtype=np.int32),
    "index": np.arange(shape[0], dtype=np.uint32),
  }


if __name__ == "__main__":
  # All of a GPU's memory, but for what its driver and libraries take.
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
  main()
