# SPDX-License-Identifier: Apache-2.0
"""train.py with some batches whose loss is not finite; for benchmarks.faults.

python -m benchmarks.train_with_nan STEP,STEP,... [flags of train.py]

Images are bytes, so that no data set can hold a nan: it is put into the logits.
Loop, step and state are those of train.py.
"""

import dataclasses
import runpy
import sys

import jax
import jax.numpy as jnp

from mixer.training import setup


@dataclasses.dataclass(frozen=True)
class NanModel:
  """A model whose logits are nan if `is_bad`."""

  model: object
  is_bad: jax.Array

  def apply(self, *arguments, **options):
    logits, out = self.model.apply(*arguments, **options)
    return logits * jnp.where(self.is_bad, jnp.nan, 1.0), out


def inject_nan(steps: list[int]):
  """Patches the training step: logits are nan at these updates, from 1 on."""
  original = setup.train_step

  def train_step(state, batch, *, model, **options):
    is_bad = jnp.isin(state.step + 1, jnp.array(steps))
    return original(state, batch, model=NanModel(model, is_bad), **options)

  setup.train_step = train_step


if __name__ == "__main__":
  inject_nan([int(step) for step in sys.argv.pop(1).split(",")])
  sys.argv[0] = "train.py"
  runpy.run_path("train.py", run_name="__main__")
