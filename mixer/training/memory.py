# SPDX-License-Identifier: Apache-2.0
"""Memory of a host and of its devices, for the log, and a warning in time."""

import contextlib
import multiprocessing
import os
import time
from pathlib import Path

import jax

from mixer.errors import notify

GIB = 2**30
LEAST_LEFT = 0.05  # share of the limit; below it a host warns
READ_SECONDS = 1.0  # between two readings, where rows come more often
_DEVICE = {"device": "bytes_in_use", "device_peak": "peak_bytes_in_use"}
# Of cgroups, version 2 and 1: limit, usage, page cache in memory.stat.
_CGROUPS = {
  "": "memory.max memory.current active_file inactive_file",
  "memory": "memory.limit_in_bytes memory.usage_in_bytes total_active_file"
  " total_inactive_file",
}


class MemoryMonitor:
  """Reads this host's memory, and warns once before it is gone."""

  def __init__(self, host: int = 0):
    """Takes the index of this host, for the warning."""
    self._host, self._values = host, {}
    self._read_at, self._has_warned = float("-inf"), False

  def read(self) -> dict[str, float]:
    """Returns a row's numbers in GiB, at most a second old.

    Returns:
      memory/device_gib and memory/device_peak_gib, in use and at most until
      now, on the fullest of this host's devices (a CPU has none);
      memory/process_gib, resident, of this process with its workers;
      memory/available_gib, left to this host, or to its container.
    """
    if time.monotonic() - self._read_at < READ_SECONDS:
      return self._values
    available, limit = host_memory()
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    numbers = {
      name: max(each[key] for each in stats)
      for name, key in _DEVICE.items()
      if all(key in each for each in stats)
    }
    numbers |= {"process": resident_set(), "available": available}
    self._values = {f"memory/{k}_gib": x / GIB for k, x in numbers.items()}
    self._read_at = time.monotonic()
    if available < LEAST_LEFT * limit and not self._has_warned:
      self._has_warned = True
      notify(
        f"warning: Host {self._host} has {available / GIB:.1f} of "
        f"{limit / GIB:.1f} GiB of memory left, and this run takes "
        f"{numbers['process'] / GIB:.1f}. Before it is killed, stop it (it "
        "saves) and start it again with fewer --config.data.workers, with "
        "--config.data.worker_kind=thread or --config.data.prefetch=1: the "
        "result stays the same."
      )
    return self._values


def resident_set() -> int:
  """Returns the resident bytes of this process and its worker processes."""
  pages = 0
  for pid in os.getpid(), *(x.pid for x in multiprocessing.active_children()):
    with contextlib.suppress(OSError):  # it has just ended
      pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")


def host_memory(root: Path = Path("/")) -> tuple[int, int]:
  """Returns available bytes and the limit, where the fewest are left.

  Limits are the host's memory, and those of this process's cgroup and of all
  around it, as containers and schedulers set them. Page cache is available.
  """
  host = _read_numbers(root / "proc/meminfo")
  total = 1024 * host["MemTotal:"]
  left = [(1024 * host["MemAvailable:"], total)]
  for line in (root / "proc/self/cgroup").read_text().splitlines():
    _, controller, path = line.split(":", 2)
    if controller in _CGROUPS:
      limit, usage, *cache = _CGROUPS[controller].split()
      mount = root / "sys/fs/cgroup" / controller
      folder = mount / path.lstrip("/")  # in a container it may be missing
      for each in (
        x for x in (folder, *folder.parents) if mount in (x, *x.parents)
      ):
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
          most = int((each / limit).read_text())
          used = int((each / usage).read_text())
          stat = _read_numbers(each / "memory.stat")
          if most < total:  # version 1 has a huge one in place of none
            left.append((most - used + sum(stat[x] for x in cache), most))
  return min(left)


def _read_numbers(file: Path) -> dict[str, int]:
  lines = (line.split() for line in file.read_text().splitlines())
  return {name: int(number) for name, number, *_ in lines}
