# SPDX-License-Identifier: Apache-2.0
"""What it takes to be measured."""

import abc
import math
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.step import process_memory
from benchmarks.step.cell import Cell
from benchmarks.throughput.programs import Program


class AbsentError(Exception):
  """The implementation cannot be used here; the message says why."""


class Implementation(abc.ABC):
  """Somebody's code, in a process of its own.

  packages: whose versions its numbers depend on.
  errors: that say something of the model, such as that it does not fit.
  """

  packages: tuple[str, ...]
  errors: tuple[type[Exception], ...]

  @abc.abstractmethod
  def make(self, cell: Cell) -> Program:
    """Compiles, and draws what the program is to work on."""

  @abc.abstractmethod
  def product(self, size: int, dtype: str) -> Callable[[], object]:
    """Makes the product of two square matrices of random numbers."""

  @abc.abstractmethod
  def wait(self, result: object):
    """Returns when the device is done with what a call returned."""

  @abc.abstractmethod
  def forget_peak(self):
    """Begins the peak of memory anew, where that is possible."""

  @abc.abstractmethod
  def peak_bytes(self) -> int:
    """The highest use of memory, of the device or else of the process."""


class OnJax(Implementation):
  """What all that compute with jax have in common."""

  packages = ("jax", "jaxlib", "flax", "optax")

  def __init__(self):
    jax.config.update("jax_enable_compilation_cache", False)
    self._device = jax.local_devices()[0]

  def product(self, size, dtype):
    multiply = jax.jit(jax.numpy.matmul)
    factors = [
      jax.device_put(x.astype(jax.numpy.dtype(dtype)))
      for x in draw_squares(size)
    ]
    return lambda: multiply(*factors)

  def wait(self, result):
    jax.block_until_ready(result)

  def forget_peak(self):
    # An accelerator's allocator cannot, but does not take part in compilation
    # as a CPU's memory does.
    process_memory.forget_peak()

  def peak_bytes(self):
    found = self._device.memory_stats()
    if self._device.platform == "cpu" or not found:
      return process_memory.peak_bytes()
    return found["peak_bytes_in_use"]


def draw_squares(size: int) -> np.ndarray:
  """Two matrices whose product has entries around 1; float32 [2, size, size].

  None is zero, with which hardware draws less power and is faster.
  """
  rng = np.random.default_rng(2)
  values = rng.standard_normal((2, size, size), dtype=np.float32)
  return values / math.sqrt(math.sqrt(size))
