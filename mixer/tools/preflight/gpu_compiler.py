# SPDX-License-Identifier: Apache-2.0
"""The compiler of jax's CUDA plugin, on a machine without a GPU."""

import functools
import importlib.util

from mixer.chips import Chip
from mixer.tools.preflight.topology import Topology

# By the version of CUDA.
PLUGINS = {12: "jax_cuda12_plugin", 13: "jax_cuda13_plugin"}
# What XLA asks of a device, the data sheets' figures apart: those of Hopper.
_DESCRIPTION = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  l2_cache_size: 52428800
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory:.0f}
}}
platform_name: "CUDA"
runtime_version {{ major: {cuda} }}
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}"
"""
HOPPER = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}


def can_compile_for(chip: Chip) -> bool:
  """Whether the plugin is installed, and the chip known."""
  return bool(_installed()) and chip.name in HOPPER


def advice(chip: Chip) -> str:
  """Says how to get a compiler for the chip, if there is one."""
  if chip.name not in HOPPER:
    return f"Only {' and '.join(HOPPER)} can be compiled for without the GPU."
  return (
    f"The compiler for {chip.name} is not installed: pip install "
    '"jax[cuda12]" or "jax[cuda13]", in the version that jax has here.'
  )


def _installed() -> list[int]:
  return [
    cuda for cuda, name in PLUGINS.items() if importlib.util.find_spec(name)
  ]


def open_devices(topology: Topology) -> list:
  """The GPUs of a machine, as jax takes them for compiling."""
  from jax.experimental import topologies

  _let_jax_lower_for_gpus()
  chip = topology.chip
  description = topologies.get_topology_desc(
    chip.name,
    platform="cuda",
    target_config=_DESCRIPTION.format(
      cuda=_installed()[0],
      name=HOPPER[chip.name],
      bandwidth=chip.bandwidth,
      memory=chip.memory,
    ),
    topology=f"1x{topology.hosts}x{topology.chips // topology.hosts}",
  )
  return list(description.devices)


@functools.cache
def _let_jax_lower_for_gpus():
  # jax looks among the devices that are here for which kind of GPU a
  # description's is, and finds none (its issue 23971).
  from jax._src import xla_bridge

  canonicalize = xla_bridge.canonicalize_platform

  def canonicalize_platform(name):
    return "cuda" if name == "gpu" else canonicalize(name)

  xla_bridge.canonicalize_platform = canonicalize_platform
