# SPDX-License-Identifier: Apache-2.0
"""Memory that is used again instead of going back to the system.

Imports the standard library alone, as every worker process imports it.
"""

import contextlib
import ctypes
import functools

# From malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


@functools.cache
def keep_freed_memory() -> None:
  """Tells glibc to use freed memory again instead of giving it back.

  Images, batches and what a CPU's step needs meanwhile come and go by megabytes
  and gigabytes. By default each time they would be pages that the system takes
  back and clears anew, a tenth of all the time and more (benchmarks/NOTES.md).
  What a thread other than the first takes in a piece of more than 64 MB goes
  back in any case.
  """
  with contextlib.suppress(AttributeError):  # another C library
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)
    mallopt(M_TOP_PAD, 64 << 20)


def give_back_freed_memory() -> None:
  """Gives the system what has been kept, where something else is to come."""
  with contextlib.suppress(AttributeError):  # another C library
    ctypes.CDLL(None).malloc_trim(0)
