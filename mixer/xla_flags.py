# SPDX-License-Identifier: Apache-2.0
"""Flags of XLA, which it reads when jax looks for devices."""

import os

# Products by the GPU's library. XLA has kernels of its own, which it takes
# where they are faster as it tries them; in a Mixer's step they are slower
# (benchmarks/NOTES.md). Of ViT and BiT that was not measured.
LIBRARY_PRODUCTS = "--xla_gpu_enable_triton_gemm=false"
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


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
