# SPDX-License-Identifier: Apache-2.0
"""Settings of XLA and jax, before its backends are initialised, and of malloc.

Imports jax late: worker processes do without it.
"""

import contextlib
import ctypes
import functools
import os
import re

from mixer.errors import UserError, did_you_mean, notify
from mixer.storage import cache_folder

# Matrix products by the GPU's library. XLA has kernels of its own and picks
# those that are faster when it tries them; in a Mixer's step they are slower
# (benchmarks/NOTES.md). ViT and BiT were not measured.
LIBRARY_PRODUCTS = "--xla_gpu_enable_triton_gemm=false"
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"

ASYNC_DISPATCH = "jax_cpu_enable_async_dispatch"
CACHED_PROGRAM_BYTES = 8 * 2**30  # the least recently used are deleted

# Names of JAX_PLATFORMS: jax's extra for each.
_EXTRAS = {
  "cpu": "cpu",
  "cuda": "cuda13",
  "gpu": "cuda13",
  "rocm": "rocm7-local",
  "tpu": "tpu",
}


def configure_xla(*, deterministic: bool = False):
  """Sets XLA flags and the dispatch on CPUs.

  A single CPU device computes in the calling thread, whose freed memory glibc
  keeps for the next step; in jax's own threads the temporaries of a step would
  be new pages each time. Settings of the environment win.

  Args:
    deterministic: allow only operations with the same result each time.
  """
  import jax

  set_flags(LIBRARY_PRODUCTS)
  if deterministic:
    set_flags(DETERMINISTIC)
  tune_malloc()
  if ASYNC_DISPATCH.upper() not in os.environ:
    jax.config.update(ASYNC_DISPATCH, False)


def set_flags(*flags: str):
  """Adds flags to $XLA_FLAGS, before jax initialises its backends.

  Ours go first, because XLA takes the later of two equal flags: the user's own
  wins. A file of flags that the user names is left untouched.
  """
  current = os.environ.get("XLA_FLAGS", "").strip()
  if current and not current.startswith("-"):
    return
  missing = [flag for flag in flags if flag not in current.split()]
  os.environ["XLA_FLAGS"] = " ".join([*missing, current]).strip()


def enable_compilation_cache():
  """Caches programs that take a second or more to compile.

  They are in the user's cache, unless JAX_COMPILATION_CACHE_DIR names another
  folder or JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off.
  """
  import jax

  if jax.config.jax_compilation_cache_dir is None:
    folder = cache_folder("programs")
    with contextlib.suppress(OSError):
      folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
      notify(
        f"Compiled programs are not kept, because {folder} cannot be written "
        "to: MIXER_CACHE_DIR can name another place."
      )
      return
    # A kill may leave a program without its time of use, and then jax, which
    # needs the times of all, would keep no program any more.
    for program in folder.glob("*-cache"):
      if not program.with_name(f"{program.name[:-5]}atime").exists():
        program.unlink(missing_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", CACHED_PROGRAM_BYTES)


def device_count() -> int:
  """Starts jax's backend and returns the number of devices of all hosts.

  Raises:
    UserError: JAX_PLATFORMS names no backend, or it does not start.
  """
  import jax

  platforms = (jax.config.jax_platforms or "").lower().replace(" ", "")
  if platforms:
    jax.config.update("jax_platforms", platforms)
  try:
    return jax.device_count()
  # AssertionError: without a GPU jax skips cuda, and has no backend then.
  except (AssertionError, RuntimeError) as error:
    raise UserError(_explain_start(platforms, str(error))) from error


def _explain_start(platforms: str, error: str) -> str:
  """Returns the message for a backend that does not start.

  Args:
    platforms: those of JAX_PLATFORMS; "" if it is not set.
    error: jax's text.
  """
  failed, _, reason = error.partition("backend '")[2].partition("': ")
  names = platforms.split(",") if platforms else [failed]
  name = failed if failed in names else names[0]  # gpu is tried as rocm, too
  if name not in _EXTRAS:
    return f"JAX has no platform {name}{did_you_mean(name, _EXTRAS)}"
  reason = re.split(r" \(|\n|.*NOT_FOUND|.*known backends", reason)[0]
  why = f" ({reason})" if reason else ""
  other = "unset JAX_PLATFORMS" if platforms else "set JAX_PLATFORMS=cpu"
  return (
    f'JAX has no {name} here{why}: pip install "jax[{_EXTRAS[name]}]", look '
    f"whether another process has its devices, or {other}."
  )


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
