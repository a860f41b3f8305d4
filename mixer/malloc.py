# SPDX-License-Identifier: Apache-2.0
"""glibc's malloc, set to keep freed memory instead of returning it.

Imports the standard library only, because every worker process imports it.
"""

import contextlib
import ctypes
import functools

# From malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


@functools.cache
def tune_malloc() -> None:
  """Makes glibc reuse freed memory instead of returning it to the system.

  Images, batches and the temporaries of a CPU's step come and go by megabytes
  and gigabytes. By default the system would take their pages back and clear
  them again each time, a tenth of all the time and more (benchmarks/NOTES.md).
  A piece of more than 64 MB is returned in any case, unless the process's first
  thread allocates it.
  """
  with contextlib.suppress(AttributeError):  # another C library
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)
    mallopt(M_TOP_PAD, 64 << 20)


def trim_malloc() -> None:
  """Returns freed memory to the system, before another program needs it."""
  with contextlib.suppress(AttributeError):  # another C library
    ctypes.CDLL(None).malloc_trim(0)
