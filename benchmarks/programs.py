# SPDX-License-Identifier: Apache-2.0
"""Compiled forward passes and updates, bound to random numbers."""

import functools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.cells import CLASSES
from benchmarks.device import free_memory
from mixer.models import flops
from mixer.training.optimizer import make_optimizer, make_schedule
from mixer.training.sharding import pmap_update
from mixer.training.step import LossConfig, create_state, normalise, train_step

# The ImageNet recipe's update, with a lower rate, so that random weights do not
# diverge.
LEARNING_RATE = 1e-5
WEIGHT_DECAY = 1e-6  # decoupled, not times the rate
CLIP_NORM = 1.0


class Program(NamedTuple):
  """A compiled program and its arrays.

  call: runs it; may be called any number of times.
  needs: bytes of memory, 0 where that is not known.
  compile_seconds: time of tracing and compilation.
  """

  call: Callable[[], object]
  needs: int
  compile_seconds: float


class DoesNotFitError(Exception):
  """The program needs more memory than is free."""


def infer(model: nn.Module, shape: tuple[int, ...]) -> Program:
  """Compiles the forward pass from uint8 images to logits.

  Args:
    model: model with a head.
    shape: shape of the images, n h w c.
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
  """Compiles any function from parameters and images to logits; see `infer`."""

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
  mixup: float = 0.5,
  stoch_depth: float = 0.1,
) -> Program:
  """Compiles the ImageNet recipe's update; see `infer`.

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

  devices = jax.local_devices()[:1]
  batch = jax.tree.map(lambda x: x[None], draw_batch(shape))
  program = bind_update(pmap_update(step, devices), create, params, batch)
  if int(program.call()["skipped"]):
    raise ValueError("An update of random weights is not finite.")
  return program


def bind_update(
  update: jax.stages.Wrapped,
  create: Callable[[dict], object],
  params: dict,
  batch: dict[str, np.ndarray],
) -> Program:
  """Compiles an update for random parameters; its calls return the results.

  Args:
    update: makes (state, result) of (state, batch), and donates the old state.
    create: makes the first state of parameters.
    params: shapes of the parameters.
    batch: the batch of every call.
  """
  compiled, seconds = compile_for(update, jax.eval_shape(create, params), batch)
  needs = check_memory(compiled, params)
  state = jax.jit(create)(draw_params(params))
  batch = jax.device_put(batch)

  def call():
    nonlocal state
    state, result = compiled(state, batch)
    return result

  return Program(call, needs, seconds)


def compile_for(
  function: jax.stages.Wrapped, *arguments: object
) -> tuple[jax.stages.Compiled, float]:
  """Compiles for arrays or shapes; returns the program and the seconds."""
  start = time.perf_counter()
  compiled = function.lower(*arguments).compile()
  return compiled, time.perf_counter() - start


def check_memory(compiled: jax.stages.Compiled, params: dict) -> int:
  """Returns the bytes that a program needs.

  Raises:
    DoesNotFitError: less is free.
  """
  analysis = compiled.memory_analysis()
  if analysis is None:
    return 0
  needs = (
    analysis.argument_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
    + analysis.temp_size_in_bytes
  )
  free = free_memory()
  # Until parameters are on the device, a CPU's memory holds them twice.
  twice = (
    4 * flops.count_params(params) if jax.default_backend() == "cpu" else 0
  )
  if free is not None and needs + twice > free:
    raise DoesNotFitError(
      f"needs {(needs + twice) / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
    )
  return needs


def draw_params(params: dict) -> dict:
  """Draws random parameters at the scale of their initial values.

  None is zero, not even in the head: hardware that multiplies by zero draws
  less power, and is faster for it.
  """
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    values = rng.standard_normal(leaf.shape, dtype=np.float32)
    if path[-1].key == "kernel":
      return values / math.sqrt(math.prod(leaf.shape[:-1]))
    return 0.1 * values + (path[-1].key == "scale")

  return jax.tree.map_with_path(draw, params)


def draw_batch(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
  """Draws a training batch of noise; `shape` is n h w c."""
  rng = np.random.default_rng(1)
  return {
    "image": rng.integers(0, 256, shape, dtype=np.uint8),
    "label": rng.integers(0, CLASSES, shape[:1], dtype=np.int32),
    "index": np.arange(shape[0], dtype=np.uint32),
  }
