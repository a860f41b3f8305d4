# SPDX-License-Identifier: Apache-2.0
"""The compiler of jax's CUDA plugin, on a machine without a GPU."""

import importlib.util

from mixer.chips import Chip
from mixer.preflight.topology import Topology

PLUGINS = "jax_cuda12_plugin", "jax_cuda13_plugin"
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
runtime_version {{ major: 12 minor: 9 }}
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}"
"""
HOPPER = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}


def can_compile_for(chip: Chip) -> bool:
  """Whether the plugin is installed, and the chip known."""
  installed = any(importlib.util.find_spec(name) for name in PLUGINS)
  return installed and chip.name in HOPPER


def open_devices(topology: Topology) -> list:
  """The GPUs of a machine, as jax takes them for compiling."""
  from jax.experimental import topologies

  _let_jax_lower_for_gpus()
  chip = topology.chip
  description = topologies.get_topology_desc(
    chip.name,
    platform="cuda",
    target_config=_DESCRIPTION.format(
      name=HOPPER[chip.name], bandwidth=chip.bandwidth, memory=chip.memory
    ),
    topology=f"1x{topology.hosts}x{topology.chips // topology.hosts}",
  )
  return list(description.devices)


def _let_jax_lower_for_gpus():
  # jax looks among the devices that are here for which kind of GPU a
  # description's is, and finds none (its issue 23971).
  from jax._src import xla_bridge

  canonicalize = xla_bridge.canonicalize_platform

  def canonicalize_platform(name):
    return "cuda" if name == "gpu" else canonicalize(name)

  xla_bridge.canonicalize_platform = canonicalize_platform
