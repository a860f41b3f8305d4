# SPDX-License-Identifier: Apache-2.0
"""XLA's compilers for TPUs and GPUs, on a machine that has neither.

libtpu brings the TPU compiler, and jax's CUDA plugin that for Hopper GPUs.
"""

import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import importlib.util
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from mixer.errors import UserError
from mixer.jax_setup import LIBRARY_PRODUCTS, set_flags, trim_malloc
from mixer.tools.preflight import hlo
from mixer.tools.preflight.topology import Topology

# libtpu queries a TPU host's metadata for these, with long time-outs. Without
# the last, a second process that loads libtpu is ended.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v3-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
CUDA_PLUGINS = {12: "jax_cuda12_plugin", 13: "jax_cuda13_plugin"}
HOPPER = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}
# A Hopper GPU as XLA describes a device, but for figures of its data sheet.
_HOPPER_DEVICE = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  threads_per_block_limit: 1024 threads_per_warp: 32
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  clock_rate_ghz: 1.98 l2_cache_size: 52428800
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f}
}}
platform_name: "CUDA"
runtime_version {{ major: {cuda} }}
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}"
"""
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)i?B?"


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
  """Memory and work of a compiled program, in bytes and seconds per device.

  arguments: state and batch of an update; parameters and batch otherwise.
  outputs: results that do not overwrite an argument.
  temporaries: intermediate results.
  code: the program itself, which lies in the same memory.
  flops, seconds: XLA's own counts, with the body of a loop once. None on GPUs;
    seconds also where impossible.
  """

  arguments: int
  outputs: int
  temporaries: int
  code: int
  flops: float | None
  traffic: hlo.HbmTraffic
  seconds: float | None
  collectives: Sequence[hlo.Collective]
  compile_seconds: float

  @property
  def peak(self) -> int:
    return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class DoesNotFit:
  """The compiler's refusal of a program, in bytes per device."""

  needed: float
  available: float


Compilation = CompiledProgram | DoesNotFit


def check_installed(topology: Topology):
  """Raises UserError without a compiler for the machine or for its proxy."""
  chip = topology.chip
  if has_gpu_compiler(chip.name) or importlib.util.find_spec("libtpu"):
    return
  advice = (
    f"The TPU compiler is not installed: run {sys.executable} -m pip install "
    f'"jax[tpu]=={importlib.metadata.version("jax")}", best in an environment '
    "without training runs, because jax prints errors at every import next to "
    "it."
  )
  if not chip.is_tpu:
    advice = (
      f"{gpu_advice(chip.name)} A TPU's compiler can judge it instead. {advice}"
    )
  raise UserError(advice)


def has_gpu_compiler(name: str) -> bool:
  """Returns whether jax's CUDA plugin is here and can compile for the chip."""
  return _cuda_version() is not None and name in HOPPER


def gpu_advice(name: str) -> str:
  """Returns a sentence on how to get a compiler for a GPU."""
  if name not in HOPPER:
    return f"Only {' and '.join(HOPPER)} can be compiled for without the GPU."
  return (
    f"The compiler for {name} is not installed: pip install "
    '"jax[cuda12]" or "jax[cuda13]", in the version of the installed jax.'
  )


def _cuda_version() -> int | None:
  """Returns the version of CUDA of jax's plugin, if that is installed."""
  return next(
    (n for n, name in CUDA_PLUGINS.items() if importlib.util.find_spec(name)),
    None,
  )


def set_environment():
  """Sets variables for both compilers. Call before importing jax."""
  os.environ.update(ENVIRONMENT)
  # XLA's own kernels, which nothing can time here, fail at some ViTs.
  set_flags(LIBRARY_PRODUCTS)


def open_devices(topology: Topology) -> list:
  """Returns a machine's jax devices, to compile for."""
  from jax.experimental import topologies

  if topology.chip.is_tpu:
    description = topologies.get_topology_desc(
      platform="tpu",
      topology_name=topology.name.replace("v5p:", "v5:"),  # libtpu's name
      **topology.libtpu_options,
    )
  else:
    _accept_absent_gpus()
    chip = topology.chip
    description = topologies.get_topology_desc(
      chip.name,
      platform="cuda",
      target_config=_HOPPER_DEVICE.format(
        cuda=_cuda_version(),
        name=HOPPER[chip.name],
        bandwidth=chip.bandwidth,
        memory=chip.memory,
      ),
      topology=f"1x{topology.hosts}x{topology.chips // topology.hosts}",
    )
  return list(description.devices)


@functools.cache
def _accept_absent_gpus():
  # To learn which kind of GPU a description is for, jax looks at the devices
  # of this machine, which has no GPU (jax's issue 23971).
  from jax._src import xla_bridge

  canonicalize = xla_bridge.canonicalize_platform

  def canonicalize_platform(name):
    return "cuda" if name == "gpu" else canonicalize(name)

  xla_bridge.canonicalize_platform = canonicalize_platform


def compile_program(function, *arguments, devices: int) -> Compilation:
  """Compiles a function of jax.pmap.

  Args:
    function: mapped over devices from `open_devices`.
    *arguments: jax.ShapeDtypeStruct as leaves.
    devices: their number.
  """
  import jax

  start = time.monotonic()
  lowered = function.lower(*arguments)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if refusal := parse_refusal(str(error)):
      return refusal
    raise
  elapsed = time.monotonic() - start
  program = read_program(compiled, devices, elapsed)
  del lowered, compiled
  # A large model's compilation takes gigabytes. The next one would take as much
  # again, because jax keeps programs and glibc keeps freed memory.
  jax.clear_caches()
  gc.collect()
  trim_malloc()
  return program


def read_program(compiled, devices: int, elapsed: float) -> CompiledProgram:
  """Reads the figures of a `jax.stages.Compiled`."""
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
  seconds = cost.get("optimal_seconds", -1.0)
  module = hlo.parse_hlo(compiled.as_text())
  return CompiledProgram(
    arguments=memory.argument_size_in_bytes,
    outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes,
    flops=cost.get("flops"),
    traffic=hlo.read_traffic(module),
    seconds=seconds if seconds > 0 else None,
    collectives=hlo.read_collectives(module, devices),
    compile_seconds=elapsed,
  )


def parse_refusal(message: str) -> DoesNotFit | None:
  """Reads the sizes in the compiler's message about a lack of memory."""
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  for pattern in (
    rf"Used {_SIZE} of {_SIZE} hbm",
    rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)",
  ):
    if match := re.search(pattern, message):
      needed, unit, available, other = match.groups()
      return DoesNotFit(
        float(needed) * _UNITS[unit], float(available) * _UNITS[other]
      )
  return None


@contextlib.contextmanager
def show_progress(program: str, interval: float = 30.0) -> Iterator[None]:
  """Prints on stderr that a program compiles, and for how many seconds.

  Args:
    program: its name.
    interval: seconds between two lines.
  """
  start, is_done = time.monotonic(), threading.Event()
  show = functools.partial(print, file=sys.stderr, flush=True)

  def repeat():
    while not is_done.wait(interval):
      show(f"compiling {program} ... {time.monotonic() - start:.0f} s")

  show(f"compiling {program}")
  thread = threading.Thread(target=repeat, daemon=True)
  thread.start()
  try:
    yield
  finally:
    is_done.set()
    thread.join()
  show(f"compiled {program} in {time.monotonic() - start:.0f} s")
