# SPDX-License-Identifier: Apache-2.0
"""Accuracy on reassessed labels (arXiv 2006.07159): any number per image."""

from collections.abc import Callable, Iterable, Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mixer.errors import UserError
from mixer.evaluators.common import Batch, EvalSetup, pmap_eval_step, run_pass
from mixer.training.step import normalise


def predict_step(
  params: dict, batch: dict[str, jax.Array], *, model: nn.Module
) -> dict[str, jax.Array]:
  """Returns "prediction" int32 [n] for "image" uint8 [n, h, w, 3]."""
  logits, _ = model.apply(
    {"params": params}, normalise(batch["image"]), train=False
  )
  return {"prediction": jnp.argmax(logits, axis=-1)}


class Real:
  """Share of images whose prediction is among their labels.

  Images without any label are left out, and counted.
  """

  def __init__(
    self,
    batches: Callable[[], Iterable[Batch]],
    *,
    model: nn.Module,
    devices: Sequence[jax.Device],
  ):
    """Prepares the evaluator, which compiles in its first run.

    Args:
      batches: starts a pass over the split, as for Classification, but with
        "label" of 0 and 1, [n, classes].
      model: with a head.
      devices: local devices, which share each batch.
    """
    self._batches = batches
    self._devices = devices
    self._step = pmap_eval_step(predict_step, model, tuple(devices))

  @classmethod
  def create(cls, setup: EvalSetup) -> Self:
    return cls(setup.batches, model=setup.model, devices=setup.devices)

  def run(self, params: dict) -> dict[str, float]:
    """Evaluates parameters that every device holds.

    Returns:
      "accuracy" (0 to 1) over "examples" images; "unlabelled" are left out.
    """
    correct = examples = unlabelled = 0
    for outputs, rest in run_pass(
      self._step, params, self._batches(), self._devices
    ):
      labels, predictions = rest["label"], outputs["prediction"]
      # An image without a label is right with none.
      correct += int(labels[np.arange(len(labels)), predictions].sum())
      labelled = int(labels.any(axis=1).sum())
      examples += labelled
      unlabelled += len(labels) - labelled
    if not examples:
      raise UserError("No image of the evaluator's split has a label.")
    return {
      "accuracy": correct / examples,
      "examples": examples,
      "unlabelled": unlabelled,
    }
