# SPDX-License-Identifier: Apache-2.0
"""How the C library treats the memory that a program frees."""

import ctypes
import platform

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD = -1, -2


def keep_freed_memory():
  """Keeps freed memory for the next allocation; call it before importing jax.

  Otherwise glibc returns the temporaries of a step on the CPU to the system
  after every step, and then waits for pages filled with zeros: 1.6 times the
  time of configs/digits.py (benchmarks/NOTES.md). Does nothing elsewhere.
  """
  if platform.libc_ver()[0] == "glibc":
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes
    libc.mallopt(M_TOP_PAD, 2**26)
