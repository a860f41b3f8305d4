# SPDX-License-Identifier: Apache-2.0
"""What XLA is told before jax looks for devices."""

import os

from mixer.freed_memory import keep_freed_memory

# Products by the GPU's library. XLA has kernels of its own, which it takes
# where they are faster as it tries them; in a Mixer's step they are slower
# (benchmarks/NOTES.md). Of ViT and BiT that was not measured.
LIBRARY_PRODUCTS = "--xla_gpu_enable_triton_gemm=false"
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"

ASYNC_DISPATCH = "jax_cpu_enable_async_dispatch"


def prepare_xla(*, deterministic: bool = False):
  """Chooses how XLA computes, before jax looks for devices.

  GPUs take their library's products. A single CPU device computes in the thread
  that asks it to, whose freed memory glibc keeps for the next step; in threads
  of jax's own, what a step needs meanwhile would be new pages each time. What
  the environment says to XLA or jax stays.

  Args:
    deterministic: only operations whose results are the same each time.
  """
  import jax  # not before preflight's environment, which it reads

  set_flags(LIBRARY_PRODUCTS)
  if deterministic:
    set_flags(DETERMINISTIC)
  keep_freed_memory()
  if ASYNC_DISPATCH.upper() not in os.environ:
    jax.config.update(ASYNC_DISPATCH, False)


def set_flags(*flags: str):
  """Adds flags to the environment's, before jax looks for devices.

  Of a flag that is given twice, XLA takes the later one: the user's own. Where
  the user names a file of flags, it has all of them.
  """
  given = os.environ.get("XLA_FLAGS", "").strip()
  if given and not given.startswith("-"):
    return
  missing = [flag for flag in flags if flag not in given.split()]
  os.environ["XLA_FLAGS"] = " ".join([*missing, given]).strip()
