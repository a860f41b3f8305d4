# SPDX-License-Identifier: Apache-2.0
"""Settings of XLA and jax, made before jax initialises its backends."""

import os

from mixer.cache import cache_folder
from mixer.malloc import tune_malloc

# Matrix products by the GPU's library. XLA has kernels of its own and picks
# those that are faster when it tries them; in a Mixer's step they are slower
# (benchmarks/NOTES.md). ViT and BiT were not measured.
LIBRARY_PRODUCTS = "--xla_gpu_enable_triton_gemm=false"
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"

ASYNC_DISPATCH = "jax_cpu_enable_async_dispatch"
CACHED_PROGRAM_BYTES = 8 * 2**30  # the least recently used are deleted


def configure_xla(*, deterministic: bool = False):
  """Sets XLA flags and the dispatch on CPUs.

  A single CPU device computes in the calling thread, whose freed memory glibc
  keeps for the next step; in jax's own threads the temporaries of a step would
  be new pages each time. Settings of the environment win.

  Args:
    deterministic: allow only operations with the same result each time.
  """
  import jax  # preflight sets its environment first

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
    folder = str(cache_folder("programs"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_max_size", CACHED_PROGRAM_BYTES)
