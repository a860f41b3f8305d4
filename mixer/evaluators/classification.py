# SPDX-License-Identifier: Apache-2.0
"""Loss and accuracy over a split; accuracy on reassessed labels (ReaL)."""

import csv
from collections.abc import Callable, Iterable, Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn

from mixer.errors import UserError
from mixer.evaluators.common import (
  Batch,
  EvalSetup,
  gather,
  pmap_eval_step,
  run_pass,
)
from mixer.storage import atomic_write
from mixer.training.step import LOSSES, normalise, soft_labels

TOP = 5


def eval_step(
  params: dict, batch: dict[str, jax.Array], *, model: nn.Module, loss: str
) -> dict[str, jax.Array]:
  """Evaluates one device's part of a batch.

  Args:
    params: of the model.
    batch: "image" uint8 [n, h, w, 3], "label" int32 [n].
    model: its `apply` returns (logits, intermediates).
    loss: "softmax" or "sigmoid".

  Returns:
    "loss" float32 [n], "prediction" int32 [n], "in_top" bool [n].
  """
  logits, _ = model.apply(
    {"params": params}, normalise(batch["image"]), train=False
  )
  classes = logits.shape[-1]
  _, top = jax.lax.top_k(logits, min(TOP, classes))
  return {
    "loss": LOSSES[loss](logits, soft_labels(batch["label"], classes)),
    "prediction": jnp.argmax(logits, axis=-1),
    "in_top": jnp.any(top == batch["label"][:, None], axis=1),
  }


class Classification:
  """Loss, top-1 and top-5 accuracy, and on request details as CSV files."""

  def __init__(
    self,
    batches: Callable[[], Iterable[Batch]],
    *,
    model: nn.Module,
    loss: str,
    devices: Sequence[jax.Device],
    class_names: Sequence[str],
    per_class: epath.Path | None = None,
    confusion: epath.Path | None = None,
  ):
    """Prepares the evaluator, which compiles in its first run.

    Args:
      batches: starts a pass over the split: "image", "label" and "mask" (bool,
        False where an example is padding), of a size that the devices divide.
      model: with a head.
      loss: "softmax" or "sigmoid".
      devices: local devices, which share each batch.
      class_names: in the order of the labels.
      per_class: CSV file for the accuracy of every class, or None.
      confusion: CSV file for the confusion matrix, or None.
    """
    self._batches = batches
    self._devices = devices
    self._class_names = class_names
    self._per_class = per_class
    self._confusion = confusion
    self._step = pmap_eval_step(eval_step, model, tuple(devices), loss=loss)

  @classmethod
  def create(cls, setup: EvalSetup) -> Self:
    return cls(
      setup.batches,
      model=setup.model,
      loss=setup.loss,
      devices=setup.devices,
      class_names=setup.source.class_names,
      per_class=setup.csv_file("per_class"),
      confusion=setup.csv_file("confusion"),
    )

  def run(self, params: dict) -> dict[str, float]:
    """Evaluates parameters.

    Args:
      params: a copy on every device.

    Returns:
      "loss" (mean, in nats), "accuracy" and, where there are more than five
      classes, "accuracy_top5" (both 0 to 1).
    """
    inputs = "image", "label"
    outputs, rest = gather(
      run_pass(self._step, params, self._batches(), self._devices, inputs)
    )
    labels, predictions = rest["label"], outputs["prediction"]
    if not len(labels):
      raise UserError("No image of the evaluator's split can be decoded.")
    correct = labels == predictions
    if self._per_class:
      self._write_per_class(labels, correct)
    if self._confusion:
      self._write_confusion(labels, predictions)
    result = {
      "loss": float(outputs["loss"].mean(dtype=np.float64)),
      "accuracy": float(correct.mean()),
    }
    if len(self._class_names) > TOP:
      result["accuracy_top5"] = float(outputs["in_top"].mean())
    return result

  def _write_per_class(self, labels, correct):
    examples = np.bincount(labels, minlength=len(self._class_names))
    right = np.bincount(labels[correct], minlength=len(self._class_names))
    rows = [("class", "examples", "correct", "accuracy")]
    for name, n, k in zip(self._class_names, examples, right, strict=True):
      rows.append((name, n, k, f"{k / n:.4f}" if n else ""))
    _write_csv(self._per_class, rows)

  def _write_confusion(self, labels, predictions):
    classes = len(self._class_names)
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    rows = [("label \\ prediction", *self._class_names)]
    rows += [
      (name, *row) for name, row in zip(self._class_names, matrix, strict=True)
    ]
    _write_csv(self._confusion, rows)


def predict_step(
  params: dict, batch: dict[str, jax.Array], *, model: nn.Module
) -> dict[str, jax.Array]:
  """Returns "prediction" int32 [n] for "image" uint8 [n, h, w, 3]."""
  logits, _ = model.apply(
    {"params": params}, normalise(batch["image"]), train=False
  )
  return {"prediction": jnp.argmax(logits, axis=-1)}


class Real:
  """Share of images whose prediction is among their labels (arXiv 2006.07159).

  An image has any number of labels. Those without one are left out and counted.
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


def _write_csv(path: epath.Path, rows: Iterable[Sequence]):
  path.parent.mkdir(parents=True, exist_ok=True)
  with atomic_write(path) as aside, aside.open("w", newline="") as file:
    csv.writer(file).writerows(rows)
