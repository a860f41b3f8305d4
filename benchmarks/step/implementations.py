# SPDX-License-Identifier: Apache-2.0
"""Interface of the implementations, ours, and their measurement.

The module's last functions run in child processes, see `harness.run_child`.
"""

import dataclasses
import functools
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import device
from benchmarks.cells import CLASSES, TRAINING, Cell
from benchmarks.harness import first_line, round_digits, time_calls
from benchmarks.programs import DoesNotFitError, Program, infer, train
from mixer.jax_setup import configure_xla
from mixer.models import create

OURS = "ours"
# Ours with options of the model.
VARIANTS = {
  OURS: {},
  "ours-layers": {"kernels": "plain"},
  "ours-mosaic": {"kernels": "fused"},
  "ours-remat": {"remat": "token_mixing"},
}
NAMES = *VARIANTS, "timm", "timm-eager", "authors"


class AbsentError(Exception):
  """The implementation cannot be used here; the message says why."""


@dataclasses.dataclass(frozen=True)
class OnJax:
  """An implementation on jax; timm's has the same methods.

  make: compiles a cell's program for random weights and images.
  errors: errors that are results for a model, such as that it does not fit.
  packages: packages whose versions affect its numbers.
  """

  make: Callable[[Cell], Program]
  errors: tuple[type[Exception], ...]
  packages: tuple[str, ...] = device.PACKAGES

  def __post_init__(self):
    jax.config.update("jax_enable_compilation_cache", False)
    jax.local_devices()  # their start is not part of a compilation

  def product(self, size: int, dtype: str) -> Callable[[], object]:
    """Makes the product of two square matrices of random numbers."""
    multiply = jax.jit(jnp.matmul)
    factors = [
      jax.device_put(x.astype(jnp.dtype(dtype))) for x in draw_squares(size)
    ]
    return lambda: multiply(*factors)

  def wait(self, result: object):
    """Blocks until the device has computed a call's result."""
    jax.block_until_ready(result)

  def reset_peak(self):
    """Resets the peak of memory, where that is possible.

    An accelerator's allocator has no reset and needs none: only on a CPU does
    compilation take the same memory.
    """
    device.reset_peak_memory()

  def peak_bytes(self) -> int:
    """Returns the peak memory of the device, or else of the process."""
    [first, *_] = jax.local_devices()
    stats = first.memory_stats()
    if first.platform == "cpu" or not stats:
      return device.peak_memory()
    return stats["peak_bytes_in_use"]


def open_ours(name: str = OURS) -> OnJax:
  """Opens this project's models and training step, as train.py runs it."""
  configure_xla()  # as train.py does
  if name == "ours-mosaic":
    from mixer.models.kernels import gpu, mosaic

    gpu.GpuMixerBlock.passes = mosaic
  make = functools.partial(make_ours, **VARIANTS[name])
  return OnJax(make, (DoesNotFitError, jax.errors.JaxRuntimeError))


def make_ours(cell: Cell, **options: str) -> Program:
  """Compiles a cell's program of this project.

  The step's extra work, such as logged norms and the test for updates that are
  not finite, is timed with it. Mixup and stochastic depth, which the other
  implementations lack, are off.
  """
  dtype = None if cell.dtype == "float32" else jnp.dtype(cell.dtype)
  model = create(cell.model, num_classes=CLASSES, dtype=dtype, **options)
  if cell.passes == TRAINING:
    return train(model, cell.image_shape, mixup=0.0, stoch_depth=0.0)
  return infer(model, cell.image_shape)


def draw_squares(size: int) -> np.ndarray:
  """Draws two matrices whose product is about 1; float32 [2, size, size].

  No entry is zero; hardware draws less power with zeros, and is faster.
  """
  rng = np.random.default_rng(2)
  values = rng.standard_normal((2, size, size), dtype=np.float32)
  return values / math.sqrt(math.sqrt(size))


def open_implementation(name: str, platform: str, authors: str | None) -> OnJax:
  """Imports an implementation's libraries, and no other's.

  Args:
    name: one of `NAMES`.
    platform: platform on which jax computes.
    authors: folder of the authors' code.

  Raises:
    AbsentError: it cannot be used here; its libraries may raise anything else.
  """
  if name in VARIANTS:
    return open_ours(name)
  if name == "authors":
    from benchmarks.step.authors import open_authors

    return open_authors(authors and Path(authors))
  from benchmarks.step.timm_peer import Timm

  return Timm(platform, compiled=name == "timm")


def probe(implementation: dict) -> dict:
  """Returns the "versions" of an implementation, or why it is "absent".

  Here and below, `implementation` has the arguments of `open_implementation`.
  """
  try:
    opened = open_implementation(**implementation)
  except Exception as error:  # a peer's libraries may raise anything
    if implementation["name"] in VARIANTS:
      raise
    return {"absent": first_line(error)}
  return {"versions": device.versions(opened.packages)}


def measure(
  implementation: dict, cell: dict, repeats: int, seconds: float
) -> dict:
  """Compiles and times a cell, given as a dict of the fields of `Cell`.

  Returns:
    "versions", and "timings" (seconds per call), "compile_seconds" and
    "peak_bytes"; or "why" there are none.
  """
  with tempfile.TemporaryDirectory() as folder:
    # Programs of earlier processes would hide torch's compilation.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    opened = open_implementation(**implementation)
    row = time_cell(opened, Cell(**cell), repeats, seconds)
  return row | {"versions": device.versions(opened.packages)}


def time_cell(
  implementation: OnJax, cell: Cell, repeats: int, seconds: float
) -> dict:
  """Times a cell's program; see `measure`."""
  try:
    program = implementation.make(cell)
    implementation.reset_peak()
    timings = time_calls(program.call, repeats, seconds, implementation.wait)
  except (*implementation.errors, MemoryError) as error:
    return {"why": first_line(error)}
  return {
    "timings": timings,
    "compile_seconds": program.compile_seconds,
    "peak_bytes": implementation.peak_bytes(),
  }


def best_product(
  implementation: dict,
  dtype: str,
  sizes: list[int],
  repeats: int,
  seconds: float,
) -> dict:
  """Times square products of all sizes, the yardstick of the device.

  Returns:
    "size" and "flops_per_second" of the fastest, by its shortest timing; or
    "why" there are none.
  """
  opened = open_implementation(**implementation)
  rows = []
  try:
    for size in sizes:
      product = opened.product(size, dtype)
      timings = time_calls(product, repeats, seconds, opened.wait)
      rate = round_digits(2 * size**3 / min(timings))
      rows.append({"size": size, "flops_per_second": rate})
  except (*opened.errors, MemoryError) as error:
    return {"why": first_line(error)}
  return max(rows, key=lambda row: row["flops_per_second"])
