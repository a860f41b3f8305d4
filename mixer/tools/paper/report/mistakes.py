# SPDX-License-Identifier: Apache-2.0
"""Confusion matrices and mistakes in a run's folder, and on its page."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from mixer.datasets import class_names
from mixer.tools.paper.report.charts import Picture, Table, thumbnail_uri
from mixer.tools.paper.run_reader import Run
from mixer.training.run_dir import wrap_read_errors
from mixer.weights import RUN_FILE

_MAX_MATRIX = 25  # classes of a confusion matrix
_MAX_PAIRS = 10  # of classes
_THUMBNAIL = 128  # px


class Confusion(NamedTuple):
  """A confusion matrix: counts int [n, n] by label and prediction."""

  source: str
  names: tuple[str, ...]
  counts: np.ndarray


class Mistake(NamedTuple):
  """A misclassified image of predictions.csv."""

  path: str
  label: str
  guess: str
  probability: float


def read_mistakes(run: Run) -> tuple[list[dict], list[Mistake]]:
  """Reads eval/*_confusion.csv or *_per_class.csv, and predictions.csv.

  Returns:
    Parts of confusion matrices, and mistakes, the most confident first.
  """
  confusions, mistakes = [], []
  for name in run.config["evals"]:
    for kind in "confusion", "per_class":  # the most detailed first
      file = run.folder / "eval" / f"{name}_{kind}.csv"
      if file.is_file():
        confusions.append(_read_confusion(file, name))
        break
  file, classes = run.folder / "predictions.csv", run.folder / "classes.txt"
  if file.is_file() and classes.is_file():
    predictions, mistakes = _read_predictions(file, classes)
    trained = run.folder / RUN_FILE
    if trained.is_file() and file.stat().mtime < trained.stat().mtime:
      older = f"{file.name}, which is older than the weights"
      predictions = predictions._replace(source=older)
    # Of images that an evaluator saw, too, one matrix is enough.
    known = [each.counts.tolist() for each in confusions]
    if predictions.counts.any() and predictions.counts.tolist() not in known:
      confusions.append(predictions)
  return [_parts(each) for each in confusions], mistakes


def _read_confusion(file: epath.Path, evaluator: str) -> Confusion:
  """Reads a matrix, or accuracies, whose mistakes count as one more class."""
  _, *rows = csv.reader(file.read_text("utf-8").splitlines())
  names = [row[0] for row in rows]
  counts = np.array([row[1:] for row in rows])
  if file.name.endswith("_per_class.csv"):
    examples, correct = counts[:, :2].astype(int).T
    counts = np.diag(np.append(correct, 0))
    counts[:-1, -1] = examples - correct
    names.append("another class")
  source = f"the last pass of the evaluator {evaluator}"
  return Confusion(source, class_names.readable(names), counts.astype(int))


def _read_predictions(
  file: epath.Path, classes: epath.Path
) -> tuple[Confusion, list[Mistake]]:
  """Reads the table of `python -m mixer predict --out`.

  Images whose folders name none of the run's classes are left out.
  """
  names = class_names.readable(classes.read_text("utf-8").splitlines())
  folders = class_names.folder_classes(names)
  counts = np.zeros((len(names), len(names)), np.int64)
  mistakes = []
  with wrap_read_errors(file):
    for row in csv.DictReader(file.read_text("utf-8").splitlines()):
      path, guess = row["image"], int(row["class"])
      label = class_names.true_class(path, folders)
      if int(row["rank"]) > 1 or label is None:
        continue
      counts[label, guess] += 1
      if label != guess:
        share = float(row["probability"])
        mistakes.append(Mistake(path, names[label], names[guess], share))
  mistakes.sort(key=lambda mistake: -mistake.probability)
  return Confusion(file.name, names, counts), mistakes


def _parts(confusion: Confusion) -> dict:
  """Returns the parts of a confusion matrix: matrix, classes and mistakes."""
  names, counts = confusion.names, confusion.counts
  examples, correct = counts.sum(1), counts.diagonal()
  shares = counts / np.maximum(examples, 1)[:, None]
  wrong = counts - np.diag(correct)
  classes = []
  for i in np.argsort(shares.diagonal(), kind="stable"):
    if examples[i]:
      j = wrong[i].argmax()
      confused = f"{names[j]} ({wrong[i, j]:,})" if wrong[i, j] else ""
      accuracy = f"{100 * shares[i, i]:.2f} %"
      classes.append([names[i], f"{examples[i]:,}", accuracy, confused])
  largest = sorted(np.argwhere(wrong), key=lambda place: -wrong[*place])
  pairs = [
    [names[i], names[j], f"{wrong[i, j]:,}", f"{examples[i]:,}"]
    for i, j in largest[:_MAX_PAIRS]
  ]
  head = ["class", "images", "accuracy", "most often taken for"]
  return {
    "source": confusion.source,
    "accuracy": f"{100 * correct.sum() / max(counts.sum(), 1):.2f} %",
    "total": int(counts.sum()),
    "names": names,
    "matrix": counts.tolist() if len(names) <= _MAX_MATRIX else None,
    "classes": Table(head, classes, (1, 2)),
    "pairs": Table(["label", "prediction", "images", "of"], pairs, (2, 3)),
  }


def mistake_picture(mistake: Mistake) -> Picture:
  """Returns an image with its label and prediction."""
  try:
    uri = thumbnail_uri(mistake.path, _THUMBNAIL)
  except OSError:  # it was moved, or is of another machine
    uri = ""
  title = f"{mistake.guess} ({mistake.probability:.2f})"
  caption = f"label: {mistake.label}; {Path(mistake.path).name}"
  return Picture(uri, title, caption)
