# SPDX-License-Identifier: Apache-2.0
"""How the C library treats the memory that a step on the CPU frees."""

import ctypes
import platform

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD = -1, -2


def keep_freed_memory():
  """Keeps what a step frees for the next one; call it for CPU devices.

  glibc would give it back to the system after every step and then wait for
  the pages to be filled with zeros again: 1.6 times the time of a step of
  configs/digits.py (benchmarks/NOTES.md). Does nothing elsewhere.
  """
  if platform.libc_ver()[0] != "glibc":
    return
  libc = ctypes.CDLL("libc.so.6")
  libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes
  libc.mallopt(M_TOP_PAD, 2**26)
