# SPDX-License-Identifier: Apache-2.0
"""The user's cache, for files that can be made or downloaded again."""

import os
from pathlib import Path


def cache_folder(subject: str) -> Path:
  """Returns the folder of a subject in the user's cache; it may not exist yet.

  $MIXER_CACHE_DIR, else mixer in $XDG_CACHE_HOME, else ~/.cache/mixer.
  """
  cache = os.environ.get("MIXER_CACHE_DIR")
  if not cache:
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = os.path.join(user, "mixer")
  return Path(os.path.expanduser(cache)) / subject
