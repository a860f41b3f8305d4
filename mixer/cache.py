# SPDX-License-Identifier: Apache-2.0
"""Where this project keeps what it can make or fetch again."""

import os
from pathlib import Path

# Of compiled programs; those that were not used for longest go.
PROGRAM_BYTES = 8 * 2**30


def cache_folder(subject: str) -> Path:
  """Returns the folder of a subject in the user's cache; it may not exist yet.

  $MIXER_CACHE_DIR, else mixer in $XDG_CACHE_HOME, else ~/.cache/mixer.
  """
  cache = os.environ.get("MIXER_CACHE_DIR")
  if not cache:
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = os.path.join(user, "mixer")
  return Path(os.path.expanduser(cache)) / subject


def keep_programs():
  """Keeps what takes a second or more to compile for later starts.

  In the cache, unless jax is told of another folder (JAX_COMPILATION_CACHE_DIR)
  or to keep nothing (JAX_ENABLE_COMPILATION_CACHE=0).
  """
  import jax

  if jax.config.jax_compilation_cache_dir is None:
    folder = str(cache_folder("programs"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_max_size", PROGRAM_BYTES)
