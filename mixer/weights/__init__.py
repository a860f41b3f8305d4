# SPDX-License-Identifier: Apache-2.0
"""Parameters on disk, under the names that the authors published."""

from mixer.weights.grow import grid_shape, grow, integer_factor
from mixer.weights.io import save
from mixer.weights.load import (
  CLASSES,
  RUN_FILE,
  LoadedWeights,
  load,
  read,
  trained_classes,
)
from mixer.weights.merge_params import merge_params

__all__ = [
  "CLASSES",
  "grid_shape",
  "grow",
  "integer_factor",
  "load",
  "LoadedWeights",
  "merge_params",
  "read",
  "RUN_FILE",
  "save",
  "trained_classes",
]
