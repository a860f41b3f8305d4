# SPDX-License-Identifier: Apache-2.0
"""Loss, accuracy and calibration; accuracy on reassessed labels (ReaL)."""

import csv
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn

from mixer.data.input_pipeline import read_labels
from mixer.errors import UserError
from mixer.evaluators import EvalSetup, gather
from mixer.storage import atomic_write
from mixer.training.semantic_softmax import Hierarchy
from mixer.training.step import example_losses, normalise, soft_labels

TOP = 5
BINS = 15  # of the calibration error


def eval_step(
  params: dict,
  batch: dict[str, jax.Array],
  *,
  model: nn.Module,
  loss: str | Hierarchy,
  present: tuple[int, ...] | None = None,
  calibration: bool = False,
) -> dict[str, jax.Array]:
  """Evaluates one device's part of a batch.

  Args:
    params: of the model.
    batch: "image" uint8 [n, h, w, 3], "label" int32 [n].
    model: its `apply` returns (logits, intermediates).
    loss: "softmax", "sigmoid", or the hierarchy of a semantic softmax; then
      only classes of the same level as the label's can be predicted.
    present: classes, in ascending order, whose logits count; None: all.
    calibration: also return "confidence".

  Returns:
    "loss" float32 [n], "prediction" int32 [n], "in_top" bool [n], "confidence"
    float32 [n], the largest probability of the softmax.
  """
  logits, _ = model.apply(
    {"params": params}, normalise(batch["image"]), train=False
  )
  labels = batch["label"]
  if present is not None:
    present = jnp.array(present)
    logits, labels = logits[:, present], jnp.searchsorted(present, labels)
  classes = logits.shape[-1]
  ranked = logits
  if isinstance(loss, Hierarchy):
    level = jnp.asarray(loss.level_of_class)
    ranked = jnp.where(level == level[labels][:, None], logits, -jnp.inf)
  _, top = jax.lax.top_k(ranked, min(TOP, classes))
  outputs = {
    "loss": example_losses(loss, logits, soft_labels(labels, classes)),
    "prediction": jnp.argmax(ranked, axis=-1),
    "in_top": jnp.any(top == labels[:, None], axis=1),
  }
  if present is not None:
    outputs["prediction"] = present[outputs["prediction"]]
  if calibration:
    outputs["confidence"] = nn.softmax(ranked).max(axis=-1)
  return outputs


class Classification:
  """Loss, top-1 and top-5 accuracy, and on request details as CSV files."""

  def __init__(self, setup: EvalSetup):
    self._setup, self._options = setup, {"loss": setup.loss}
    if setup.options.present_classes_only:
      labels = read_labels(setup.source, setup.workers)
      self._options["present"] = tuple(np.unique(labels).tolist())
    if setup.options.calibration:
      self._options["calibration"] = True

  def run(self, params: dict) -> dict[str, float]:
    """Evaluates parameters.

    Args:
      params: a copy on every device.

    Returns:
      "loss" (mean, in nats), "accuracy" and, where there are more than five
      classes, "accuracy_top5" (both 0 to 1); on request "ece" (0 to 1).
    """
    setup, inputs = self._setup, ("image", "label")
    outputs, rest = gather(
      setup.run_pass(eval_step, params, inputs=inputs, **self._options)
    )
    labels, predictions = rest["label"], outputs["prediction"]
    if not len(labels):
      raise UserError("No image of the evaluator's split can be decoded.")
    correct = labels == predictions
    names = setup.source.class_names
    if file := setup.csv_file("per_class"):
      _write_csv(file, per_class_rows(names, labels, correct))
    if file := setup.csv_file("confusion"):
      _write_csv(file, confusion_rows(names, labels, predictions))
    result = {
      "loss": float(outputs["loss"].mean(dtype=np.float64)),
      "accuracy": float(correct.mean()),
    }
    if len(names) > TOP:
      result["accuracy_top5"] = float(outputs["in_top"].mean())
    if "confidence" in outputs:
      result["ece"] = calibration_error(outputs["confidence"], correct)
    return result


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
  """Returns the expected calibration error (Guo et al., arXiv 1706.04599).

  The mean of |accuracy - mean confidence| over bins of equal width, (0, 1/15]
  to (14/15, 1], each weighted by its examples.

  Args:
    confidence: float [n], of the predictions, 0 to 1.
    correct: bool [n].
  """
  confidence = confidence.astype(np.float64)
  bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int)
  gaps = np.bincount(bins, correct - confidence)  # times the bin's examples
  return float(np.abs(gaps).sum() / len(correct))


def per_class_rows(
  names: Sequence[str], labels: np.ndarray, correct: np.ndarray
) -> list[tuple]:
  """Counts the examples of each class and those predicted correctly."""
  examples = np.bincount(labels, minlength=len(names))
  right = np.bincount(labels[correct], minlength=len(names))
  rows = [("class", "examples", "correct", "accuracy")]
  for name, n, k in zip(names, examples, right, strict=True):
    rows.append((name, n, k, f"{k / n:.4f}" if n else ""))
  return rows


def confusion_rows(
  names: Sequence[str], labels: np.ndarray, predictions: np.ndarray
) -> list[tuple]:
  """Counts the predictions for the examples of each class."""
  matrix = np.zeros((len(names), len(names)), np.int64)
  np.add.at(matrix, (labels, predictions), 1)
  rows = [(name, *row) for name, row in zip(names, matrix, strict=True)]
  return [("label \\ prediction", *names), *rows]


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

  An image has any number of labels, a row of 0 and 1 for all classes. Images
  without one are left out and counted.
  """

  def __init__(self, setup: EvalSetup):
    self._setup = setup

  def run(self, params: dict) -> dict[str, float]:
    """Evaluates parameters that every device holds.

    Returns:
      "accuracy" (0 to 1) over "examples" images; "unlabelled" are left out.
    """
    correct = examples = unlabelled = 0
    for outputs, rest in self._setup.run_pass(predict_step, params):
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
