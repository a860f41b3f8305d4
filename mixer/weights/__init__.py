# SPDX-License-Identifier: Apache-2.0
"""Parameters on disk, under the names that the authors published."""

from mixer.weights.checkpoint import (
  CLASSES,
  RUN_FILE,
  Checkpoint,
  load,
  read,
  trained_classes,
)
from mixer.weights.files import about_gelu, save
from mixer.weights.fit import fit
from mixer.weights.grow import grow, token_grid, whole_factor
from mixer.weights.model_of import model_of, read_sizes

__all__ = [
  "CLASSES",
  "Checkpoint",
  "RUN_FILE",
  "about_gelu",
  "fit",
  "grow",
  "load",
  "model_of",
  "read",
  "read_sizes",
  "save",
  "token_grid",
  "trained_classes",
  "whole_factor",
]
