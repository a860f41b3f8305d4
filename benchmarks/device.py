# SPDX-License-Identifier: Apache-2.0
"""Device, memory, versions and variables on which measurements depend."""

import contextlib
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
from pathlib import Path

import jax

from mixer.data.workers import usable_cores

PACKAGES = "jax", "jaxlib", "flax", "optax"
# These change how long the same programs take.
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
  """Returns "device" (its name), "platform" and "versions", for JSON."""
  device = jax.local_devices()[0]
  name = device.device_kind
  if device.platform == "cpu":
    found = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    name = found[1] if found else platform.machine()
    name += f", {usable_cores()} cores"
  return {
    "device": name,
    "platform": device.platform,
    "versions": {"python": platform.python_version(), **versions(PACKAGES)},
  }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in packages}


def environment() -> dict[str, str]:
  """Returns those of `VARIABLES` that are set."""
  return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


def free_memory() -> int | None:
  """Returns the bytes that a program may still use; None if unknown.

  Accelerators are not asked: they raise an error if a program does not fit.
  """
  if jax.default_backend() != "cpu":
    return None
  found = re.search(r"MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"))
  return 1024 * int(found[1]) if found else None


def reset_peak_memory():
  """Resets the peak of `peak_memory`, where the system permits it."""
  with contextlib.suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
  """Returns the peak resident memory of this process in bytes."""
  if found := re.search(r"VmHWM:\s*(\d+) kB", _read("/proc/self/status")):
    return 1024 * int(found[1])
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _read(path: str) -> str:
  try:
    return Path(path).read_text()
  except OSError:
    return ""


def file_name(device: str) -> str:
  """Returns the device's name as a file name, such as NVIDIA_H200."""
  return re.sub(r"[^A-Za-z0-9.]+", "_", device).strip("_")


def git_commit() -> str | None:
  """Returns this code's commit, with + for changes; None without git."""

  def git(*arguments):
    return subprocess.run(
      ("git", *arguments),
      cwd=Path(__file__).parent,
      capture_output=True,
      text=True,
    )

  try:
    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no")
  except FileNotFoundError:
    return None
  if commit.returncode:
    return None
  return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
