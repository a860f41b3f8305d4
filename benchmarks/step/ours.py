# SPDX-License-Identifier: Apache-2.0
"""This project's models and its training step, as train.py runs it.

What a step does beyond its peers', such as the norms that it logs and the test
for updates that are not finite, is timed with it. Mixup and stochastic depth,
which the peers' steps have not, are off.
"""

import jax
import jax.numpy as jnp

from benchmarks.step.implementation import OnJax
from benchmarks.throughput.cells import TRAINING
from benchmarks.throughput.programs import (
  CLASSES,
  DoesNotFitError,
  infer,
  train,
)
from mixer.jax_setup import configure_xla
from mixer.models import create


class Ours(OnJax):
  """`mixer.models` and `mixer.training.step`."""

  errors = (DoesNotFitError, jax.errors.JaxRuntimeError)

  def __init__(self):
    configure_xla()  # as train.py does
    super().__init__()

  def make(self, cell):
    dtype = None if cell.dtype == "float32" else jnp.dtype(cell.dtype)
    model = create(cell.model, num_classes=CLASSES, dtype=dtype)
    if cell.passes == TRAINING:
      return train(model, cell.image_shape, mixup=0.0, stoch_depth=0.0)
    return infer(model, cell.image_shape)
