# SPDX-License-Identifier: Apache-2.0
"""Compiled forward passes and updates, with random numbers to work on."""

import functools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.throughput.machine import free_memory
from mixer.models import flops
from mixer.training.optimizer import make_optimizer, make_schedule
from mixer.training.sharding import pmap_update
from mixer.training.step import (
  LossConfig,
  create_state,
  normalise,
  train_step,
)

CLASSES = 1000

# Of an update: those of the ImageNet recipe, with a lower rate, so that random
# weights do not run away.
LEARNING_RATE = 1e-5
WEIGHT_DECAY = 1e-6  # decoupled, not times the rate
CLIP_NORM = 1.0
RECIPE = {"mixup": 0.5, "stoch_depth": 0.1}


class Program(NamedTuple):
  """A program on arrays of its own.

  call: to be called any number of times.
  needs: bytes, 0 where that is not known.
  compile_seconds: what it took to trace and compile it.
  """

  call: Callable[[], object]
  needs: int
  compile_seconds: float


class DoesNotFitError(Exception):
  """The program needs more memory than there is."""


def infer(model: nn.Module, shape: tuple[int, ...]) -> Program:
  """Makes the forward pass from uint8 images to logits.

  Args:
    model: with a head.
    shape: of the images, n h w c.
  """
  params = flops.abstract_params(model, shape[1:3])

  def apply(params, images):
    return model.apply({"params": params}, images)[0]

  return infer_with(apply, params, shape)


def infer_with(
  apply: Callable[[dict, jax.Array], jax.Array],
  params: dict,
  shape: tuple[int, ...],
) -> Program:
  """As `infer`, of any function from parameters and images to logits."""

  def forward(params, images):
    return apply(params, normalise(images))

  images = jax.ShapeDtypeStruct(shape, jnp.uint8)
  compiled, seconds = compile_for(jax.jit(forward), params, images)
  needs = check_memory(compiled, params)
  params = jax.device_put(draw_params(params))
  images = jax.device_put(draw_batch(shape)["image"])
  return Program(lambda: compiled(params, images), needs, seconds)


def train(
  model: nn.Module,
  shape: tuple[int, ...],
  *,
  mixup: float = RECIPE["mixup"],
  stoch_depth: float = RECIPE["stoch_depth"],
) -> Program:
  """Makes an update as the ImageNet recipe has it, see `infer`.

  Sigmoid loss, mixup, stochastic depth, Adam, clipping and weight decay.
  """
  model = model.clone(stoch_depth=stoch_depth)
  params = flops.abstract_params(model, shape[1:3])
  optimizer = make_optimizer(
    params,
    make_schedule(kind="constant", total_steps=1),
    learning_rate=LEARNING_RATE,
    weight_decay=WEIGHT_DECAY,
    clip_norm=CLIP_NORM,
  )
  objective = LossConfig("sigmoid", CLASSES, mixup=mixup)
  step = functools.partial(
    train_step, model=model, optimizer=optimizer, objective=objective
  )
  create = functools.partial(create_state, optimizer=optimizer, average=False)

  here = jax.local_devices()[:1]
  batch = jax.tree.map(lambda x: x[None], draw_batch(shape))
  compiled, seconds = compile_for(
    pmap_update(step, here), jax.eval_shape(create, params), batch
  )
  needs = check_memory(compiled, params)
  state = jax.jit(create)(draw_params(params))
  batch = jax.device_put(batch)

  def call():
    nonlocal state
    state, metrics = compiled(state, batch)  # the old state is given away
    return metrics

  if int(call()["skipped"]):
    raise ValueError("An update of random weights is not finite.")
  return Program(call, needs, seconds)


def compile_for(
  function: jax.stages.Wrapped, *arguments: object
) -> tuple[jax.stages.Compiled, float]:
  """Compiles for arrays or shapes; returns the seconds that it took as well."""
  start = time.perf_counter()
  compiled = function.lower(*arguments).compile()
  return compiled, time.perf_counter() - start


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
  twice = (
    4 * flops.count_params(params) if jax.default_backend() == "cpu" else 0
  )
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
