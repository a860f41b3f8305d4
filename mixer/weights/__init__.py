# SPDX-License-Identifier: Apache-2.0
"""Parameters on disk, under the names that the authors published."""

from mixer.weights.checkpoint import Checkpoint
from mixer.weights.files import RUN_FILE, load, read, save
from mixer.weights.fit import fit
from mixer.weights.grow import grow, token_grid, whole_factor

__all__ = [
  "Checkpoint",
  "RUN_FILE",
  "fit",
  "grow",
  "load",
  "read",
  "save",
  "token_grid",
  "whole_factor",
]
