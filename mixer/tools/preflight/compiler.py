# SPDX-License-Identifier: Apache-2.0
"""XLA's compilers for TPUs and GPUs, on a machine that has neither.

libtpu brings the TPU compiler, and jax's CUDA plugin that for GPUs.
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

from mixer.errors import UserError, notify
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
# As in XLA's folder target_config/specs: the device's name, compute capability,
# multiprocessors, their clock in GHz, second-level cache in bytes, and per
# multiprocessor FP32 units and bytes of shared memory.
_FIGURES = "name", "capability", "cores", "clock", "cache", "units", "shared"
COMPILED_GPUS = {
  "a100": ("NVIDIA A100-SXM4-80GB", 8, 108, 1.41, 41_943_040, 64, 167_936),
  "h100": ("NVIDIA H100 80GB HBM3", 9, 132, 1.98, 52_428_800, 128, 233_472),
  "h200": ("NVIDIA H200", 9, 132, 1.98, 52_428_800, 128, 233_472),
  "b200": ("NVIDIA B200", 10, 148, 1.965, 132_644_864, 128, 233_472),
  "gb200": ("NVIDIA GB200", 10, 152, 2.062, 135_528_448, 128, 233_472),
}
# A GPU as XLA describes a device.
_GPU_DEVICE = """
gpu_device_info {{
  cuda_compute_capability {{ major: {capability} }}
  threads_per_block_limit: 1024 threads_per_warp: 32
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {units}
  clock_rate_ghz: {clock} l2_cache_size: {cache}
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {block}
  shared_memory_per_core: {shared}
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
  """Raises UserError without a compiler for the machine."""
  chip = topology.chip
  if not (chip.is_tpu or chip.name in COMPILED_GPUS):
    raise UserError(
      f"{chip.name} cannot be compiled for without the GPU itself, only "
      f"{', '.join(COMPILED_GPUS)}: --within=48h --chips={chip.name} in place "
      "of --topology estimates hours without a compiler."
    )
  compiler, extra = _cuda_version(), "cuda13"
  if chip.is_tpu:
    compiler, extra = importlib.util.find_spec("libtpu"), "tpu"
  if compiler is None:
    version = importlib.metadata.version("jax")
    raise UserError(
      f"The compiler for {chip.name} is not installed: run {sys.executable} -m "
      f'pip install "jax[{extra}]=={version}", best in an environment of its '
      "own, because jax prints errors at every import next to it; or see "
      "--within=48h, which needs none."
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
  import jax
  from jax.experimental import topologies

  chip = topology.chip
  if not chip.is_tpu:
    _accept_absent_gpus()
    figures = dict(zip(_FIGURES, COMPILED_GPUS[chip.name], strict=True))
    target = _GPU_DEVICE.format(
      **figures,
      block=figures["shared"] - 1024,
      bandwidth=chip.bandwidth,
      memory=chip.memory,
      cuda=_cuda_version(),
    )
    shape = f"1x{topology.hosts}x{topology.chips // topology.hosts}"
    description = topologies.get_topology_desc(
      chip.name, platform="cuda", target_config=target, topology=shape
    )
    return list(description.devices)
  options = {}
  if chip.name == "v4":
    # Otherwise every chip is two devices with half the memory each.
    options["chip_config_name"] = "megacore"
  if topology.hosts == topology.slices:
    options["chips_per_host_bounds"] = (*topology.shape, 1)[:3]
  kind = {"v5p": "v5"}.get(chip.name, chip.name)  # libtpu's name
  try:
    description = topologies.get_topology_desc(
      f"{kind}:{'x'.join(map(str, topology.shape))}",
      platform="tpu",
      num_slices=topology.slices,
      **options,
    )
  except jax.errors.JaxRuntimeError as error:
    version = importlib.metadata.version("libtpu")
    raise UserError(
      f"--topology={topology.name}: libtpu {version} does not open it "
      f"({error}): take another version of jax and libtpu."
    ) from error
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

  def repeat():
    while not is_done.wait(interval):
      notify(f"compiling {program} ... {time.monotonic() - start:.0f} s")

  notify(f"compiling {program}")
  thread = threading.Thread(target=repeat, daemon=True)
  thread.start()
  try:
    yield
  finally:
    is_done.set()
    thread.join()
  notify(f"compiled {program} in {time.monotonic() - start:.0f} s")
