# SPDX-License-Identifier: Apache-2.0
"""Interface of the implementations, ours, and their measurement.

The module's last functions run in child processes, see `harness.run_child`.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator
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
NAMES = OURS, "timm", "timm-eager", "authors"


class AbsentError(Exception):
  """The implementation cannot be used here; the message says why."""


class OnJax:
  """Base of the implementations on jax; timm's has the same methods.

  packages: packages whose versions affect its numbers.
  errors: errors that are results for a model, such as that it does not fit.
  """

  packages: tuple[str, ...] = device.PACKAGES
  errors: tuple[type[Exception], ...]

  def __init__(self):
    jax.config.update("jax_enable_compilation_cache", False)
    self._device = jax.local_devices()[0]

  def make(self, cell: Cell) -> Program:
    """Compiles a cell's program for random weights and images."""
    raise NotImplementedError

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
    stats = self._device.memory_stats()
    if self._device.platform == "cpu" or not stats:
      return device.peak_memory()
    return stats["peak_bytes_in_use"]


class Ours(OnJax):
  """This project's models and training step, as train.py runs it.

  The step's extra work, such as logged norms and the test for updates that are
  not finite, is timed with it. Mixup and stochastic depth, which the other
  implementations lack, are off.
  """

  errors = (DoesNotFitError, jax.errors.JaxRuntimeError)

  def __init__(self):
    configure_xla()  # as train.py does
    super().__init__()

  def make(self, cell):
    dtype = None if cell.dtype == "float32" else jnp.dtype(cell.dtype)
    model = create(cell.model, num_classes=CLASSES, dtype=dtype)
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
  if name == OURS:
    return Ours()
  if name == "authors":
    from benchmarks.step.authors import Authors

    return Authors(authors and Path(authors))
  from benchmarks.step.timm_peer import Timm

  return Timm(platform, compiled=name == "timm")


def probe(implementation: dict) -> dict:
  """Returns the "versions" of an implementation, or why it is "absent".

  Here and below, `implementation` has the arguments of `open_implementation`.
  """
  try:
    opened = open_implementation(**implementation)
  except Exception as error:  # a peer's libraries may raise anything
    if implementation["name"] == OURS:
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
  with _empty_caches():
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
  with _empty_caches():
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


@contextlib.contextmanager
def _empty_caches() -> Iterator[None]:
  """Keeps programs of earlier processes from hiding torch's compilation."""
  with tempfile.TemporaryDirectory() as folder:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    yield
