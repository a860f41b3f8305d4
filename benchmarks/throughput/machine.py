# SPDX-License-Identifier: Apache-2.0
"""Device, memory, versions and variables that a number depends on."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import jax

PACKAGES = "jax", "jaxlib", "flax", "optax"

# With which the same programs take another time.
VARIABLES = (
  "GLIBC_TUNABLES",
  "JAX_DEFAULT_MATMUL_PRECISION",
  "LD_PRELOAD",
  "LIBTPU_INIT_ARGS",
  "NVIDIA_TF32_OVERRIDE",
  "OMP_NUM_THREADS",
  "XLA_FLAGS",
)


def describe() -> dict:
  """Device and versions, in JSON's types."""
  device = jax.local_devices()[0]
  return {
    "device": _name(device),
    "platform": device.platform,
    "versions": {
      "python": platform.python_version(),
      **{name: importlib.metadata.version(name) for name in PACKAGES},
    },
  }


def environment() -> dict[str, str]:
  """Those of `VARIABLES` that are set."""
  return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


def _name(device: jax.Device) -> str:
  if device.platform != "cpu":
    return device.device_kind
  found = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo") or "")
  return f"{found[1] if found else platform.machine()}, {cores()} cores"


def cores() -> int:
  """Those that this process may run on."""
  return len(os.sched_getaffinity(0))


def free_memory() -> int | None:
  """Bytes that a program on the first device may still use, if that is known.

  Accelerators are not asked: they say themselves what does not fit.
  """
  if jax.default_backend() != "cpu":
    return None
  found = re.search(r"MemAvailable:\s*(\d+) kB", _read("/proc/meminfo") or "")
  return 1024 * int(found[1]) if found else None


def _read(path: str) -> str | None:
  try:
    return Path(path).read_text()
  except OSError:
    return None


def file_name(device: str) -> str:
  """The device's name as a file's, such as NVIDIA_H100_80GB_HBM3."""
  return re.sub(r"[^A-Za-z0-9.]+", "_", device).strip("_")


def git_commit() -> str | None:
  """Of this code, marked + with changes; None outside a repository."""
  here = Path(__file__).parent

  def git(*arguments):
    return subprocess.run(
      ("git", *arguments), cwd=here, capture_output=True, text=True
    )

  try:
    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no")
  except FileNotFoundError:
    return None
  if commit.returncode:
    return None
  return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
