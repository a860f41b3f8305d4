# SPDX-License-Identifier: Apache-2.0
"""XLA's compilers for TPUs (of libtpu) and GPUs, on a machine without them."""

import dataclasses
import gc
import importlib.util
import os
import re
import sys
import time
from collections.abc import Sequence

from mixer.errors import UserError
from mixer.jax_setup import LIBRARY_PRODUCTS, set_flags, trim_malloc
from mixer.tools.preflight import gpu_compiler
from mixer.tools.preflight.hlo import (
  Collective,
  HbmTraffic,
  parse_hlo,
  read_collectives,
  read_traffic,
)
from mixer.tools.preflight.topology import Topology

LIBTPU = "libtpu==0.0.42.1"
# libtpu asks a TPU's host for these, and waits long for answers; a second
# process with libtpu is ended without the last.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v3-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)i?B?"


@dataclasses.dataclass(frozen=True)
class Program:
  """What the compiler says of a program, in bytes per device.

  arguments: held while it runs: state and batch, or parameters and batch.
  outputs: what it makes beside arguments that it may overwrite.
  temporaries: what it needs on the way.
  code: the program itself, which is in the same memory.
  flops, bytes_accessed, seconds: by the compiler's count, the body of a loop
    once; bytes of on-chip memory as well. None where seconds make no sense, all
    three of GPUs, whose compiler does not count.
  traffic: between chip and memory.
  """

  arguments: int
  outputs: int
  temporaries: int
  code: int
  flops: float | None
  bytes_accessed: float | None
  traffic: HbmTraffic
  seconds: float | None
  collectives: Sequence[Collective]
  compile_seconds: float

  @property
  def peak(self) -> int:
    return self.arguments + self.outputs + self.temporaries + self.code


class DoesNotFit(Exception):  # noqa: N818, an answer and no error
  """The compiler refuses: `needed` of `available` bytes per device."""

  def __init__(self, needed: float, available: float, message: str):
    super().__init__(message)
    self.needed = needed
    self.available = available


def check_installed(topology: Topology):
  """Raises UserError without a machine's compiler, or one in its place."""
  if gpu_compiler.can_compile_for(topology.chip):
    return
  try:
    check_libtpu()
  except UserError as error:
    if topology.chip.is_tpu:
      raise
    raise UserError(
      gpu_compiler.advice(topology.chip)
      + f" A TPU's compiler can judge it instead. {error}"
    ) from error


def check_libtpu():
  """Raises UserError without libtpu."""
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      f"The TPU compiler is not installed: run {sys.executable} -m pip install "
      f"{LIBTPU}, best in an environment that nothing trains in, because jax "
      "prints errors at every import where it is."
    )


def set_environment():
  """For both compilers; before jax looks for devices."""
  os.environ.update(ENVIRONMENT)
  set_flags(LIBRARY_PRODUCTS)  # untried, XLA's own fail at some of ViT's


def open_devices(topology: Topology) -> list:
  """The devices of a machine, as jax takes them for compiling."""
  from jax.experimental import topologies

  if not topology.chip.is_tpu:
    return gpu_compiler.open_devices(topology)
  # libtpu calls v5p "v5".
  name = topology.name.replace("v5p:", "v5:")
  description = topologies.get_topology_desc(
    platform="tpu", topology_name=name, **topology.libtpu_options
  )
  return list(description.devices)


def compile_program(function, *arguments, devices: int) -> Program:
  """Compiles what jax.pmap has made of a function.

  Args:
    function: from jax.pmap, on devices of `open_devices`.
    *arguments: jax.ShapeDtypeStruct as leaves.
    devices: how many they are.

  Raises:
    DoesNotFit: there is not enough memory.
  """
  import jax

  start = time.monotonic()
  lowered = function.lower(*arguments)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    raise explain(str(error)) or error from error
  elapsed = time.monotonic() - start
  program = read_program(compiled, devices, elapsed)
  del lowered, compiled
  give_back_memory()
  return program


def give_back_memory():
  """Gives the system what a compilation took, gigabytes for large models.

  Otherwise the next one takes as much again: jax keeps programs, glibc what is
  freed.
  """
  import jax

  jax.clear_caches()
  gc.collect()
  trim_malloc()


def read_program(compiled, devices: int, elapsed: float) -> Program:
  """Collects what is known of a compiled program."""
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
  cost = cost[0] if isinstance(cost, list) else cost
  seconds = cost.get("optimal_seconds", -1.0)
  text = parse_hlo(compiled.as_text())
  return Program(
    arguments=memory.argument_size_in_bytes,
    outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes,
    flops=cost.get("flops"),
    bytes_accessed=cost.get("bytes accessed"),
    traffic=read_traffic(text),
    seconds=seconds if seconds > 0 else None,
    collectives=read_collectives(text, devices),
    compile_seconds=elapsed,
  )


def explain(message: str) -> DoesNotFit | None:
  """Reads what the compiler says where a program does not fit."""
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  for pattern in (
    rf"Used {_SIZE} of {_SIZE} hbm",
    rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)",
  ):
    if found := re.search(pattern, message):
      needed, unit, available, other = found.groups()
      return DoesNotFit(
        float(needed) * _UNITS[unit],
        float(available) * _UNITS[other],
        message,
      )
  return None
