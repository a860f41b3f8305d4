# SPDX-License-Identifier: Apache-2.0
"""The peak of a process's resident memory, as Linux counts it."""

import contextlib
import re
import resource
from pathlib import Path


def forget_peak():
  """Begins anew; where the system does not let it, the peak is of all time."""
  with contextlib.suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
  try:
    status = Path("/proc/self/status").read_text()
  except OSError:
    status = ""
  if found := re.search(r"VmHWM:\s*(\d+) kB", status):
    return 1024 * int(found[1])
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
