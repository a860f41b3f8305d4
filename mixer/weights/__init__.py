# SPDX-License-Identifier: Apache-2.0
"""Parameters on disk, under the names that the authors published."""

from mixer.weights.checkpoint import RUN_FILE, Checkpoint, load, read
from mixer.weights.files import about_gelu, save
from mixer.weights.fit import fit
from mixer.weights.grow import grow, token_grid, whole_factor
from mixer.weights.sizes import model_of

__all__ = [
  "Checkpoint",
  "RUN_FILE",
  "about_gelu",
  "fit",
  "grow",
  "load",
  "model_of",
  "read",
  "save",
  "token_grid",
  "whole_factor",
]
