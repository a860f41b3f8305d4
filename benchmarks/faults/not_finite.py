# SPDX-License-Identifier: Apache-2.0
"""train.py, but some batches come to numbers that are not finite.

python -m benchmarks.faults.not_finite STEP,STEP,... [flags of train.py]

Images are bytes, so that a data set cannot hold such a number: it is put into
the logits. Loop, step and state are those of train.py.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp

from mixer.training import setup


@dataclasses.dataclass(frozen=True)
class Poisoned:
  """A model whose logits are not numbers at some steps."""

  model: object
  is_bad: jax.Array

  def apply(self, *arguments, **options):
    logits, out = self.model.apply(*arguments, **options)
    return logits * jnp.where(self.is_bad, jnp.nan, 1.0), out


def poison(steps: list[int]):
  """Puts the poison into every update that setup creates from now on.

  Args:
    steps: numbers of the updates, from 1 on.
  """
  sound = setup.train_step

  def train_step(state, batch, *, model, **options):
    is_bad = jnp.isin(state.step + 1, jnp.array(steps))
    return sound(state, batch, model=Poisoned(model, is_bad), **options)

  setup.train_step = train_step


if __name__ == "__main__":
  poison([int(step) for step in sys.argv.pop(1).split(",")])
  import runpy

  sys.argv[0] = "train.py"
  runpy.run_path("train.py", run_name="__main__")
