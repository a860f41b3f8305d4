# SPDX-License-Identifier: Apache-2.0
"""Linear few-shot accuracy: how much a few images of each class teach.

The paper's figures 2 and 4 show it. As the authors' code has it (big_vision,
fewshot_lsr.py): regression on frozen features, penalised by l2 = 1024, on
targets of -1 and 1, the largest of which is the prediction.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
import scipy.linalg
from flax import linen as nn
from ml_collections import ConfigDict

from mixer.data.sources import Source, Subset
from mixer.errors import UserError, format_list
from mixer.evaluators.common import Batch, gather, pmap_eval_step, run_pass
from mixer.training.step import normalise

# A feature that never changes stands for the bias. So large, that its penalty
# is next to nothing.
BIAS = 100.0

_ROWS = 4096  # that are predicted at once


def linear_probe(
  train_features: np.ndarray,
  train_labels: np.ndarray,
  test_features: np.ndarray,
  *,
  num_classes: int | None = None,
  l2: float = 1024.0,
) -> np.ndarray:
  """Predicts classes by ridge regression, in float64.

  Args:
    train_features: [n, features].
    train_labels: int [n].
    test_features: [m, features].
    num_classes: as many as there are; None means up to the largest label.
    l2: penalty on the squared weights, the bias's included.

  Returns:
    int [m].
  """
  x = np.asarray(train_features, np.float64)
  mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
  x = _standardise(x, mean, std)  # n d
  classes = num_classes or int(np.max(train_labels)) + 1
  y = 2.0 * np.eye(classes)[train_labels] - 1.0  # n classes
  n, d = x.shape
  if n >= d:
    weights = _solve(x.T @ x, x.T @ y, l2)  # d classes
  else:  # the same weights by a smaller system
    weights = x.T @ _solve(x @ x.T, y, l2)
  parts = [
    np.argmax(
      _standardise(test_features[i : i + _ROWS], mean, std) @ weights, 1
    )
    for i in range(0, len(test_features), _ROWS)
  ]
  return np.concatenate(parts)


def _standardise(x: np.ndarray, mean: np.ndarray, std: np.ndarray):
  x = (x - mean) / std
  return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)


def _solve(gram: np.ndarray, targets: np.ndarray, l2: float) -> np.ndarray:
  gram[np.diag_indices_from(gram)] += l2
  return scipy.linalg.solve(gram, targets, assume_a="pos", overwrite_a=True)


def sample_shots(
  labels: np.ndarray, num_classes: int, shots: int, seed: int
) -> np.ndarray:
  """Draws the numbers of `shots` examples of each class, int [classes, shots].

  Fewer shots of the same seed are the first of these. Drawn by the rule of the
  authors' code, from examples in the order of their files; that code reads
  many files by turns, and so draws others of a data set that has many.

  Raises:
    UserError: a class has fewer.
  """
  counts = np.bincount(labels, minlength=num_classes)
  if counts.min() < shots:
    few = [f"{k} ({counts[k]})" for k in np.flatnonzero(counts < shots)]
    raise UserError(
      f"{len(few)} of {num_classes} classes have fewer than {shots} examples: "
      f"{format_list(few)}."
    )
  rng = np.random.default_rng(seed)
  return np.stack(
    [
      rng.permutation(np.flatnonzero(labels == k))[:shots]
      for k in range(num_classes)
    ]
  )


def feature_step(
  params: dict, batch: dict[str, jax.Array], *, model: nn.Module
) -> dict[str, jax.Array]:
  """Returns "feature" float32 [n, hidden] for "image" uint8 [n, h, w, 3]."""
  _, out = model.apply(
    {"params": params}, normalise(batch["image"]), train=False
  )
  return {"feature": out["pre_logits"]}


class Fewshot:
  """Accuracy of linear regression on features, learned from a few examples."""

  def __init__(
    self,
    batches: Callable[[Source], Iterable[Batch]],
    *,
    pool: Source,
    pool_labels: np.ndarray,
    test: Source,
    model: nn.Module,
    devices: Sequence[jax.Device],
    shots: Sequence[int] = (5, 10),
    draws: int = 3,
    l2: float = 1024.0,
  ):
    """Draws; compiles at the first run.

    Args:
      batches: starts a pass over a source, as for Classification, with
        "position" as well.
      pool: where examples are drawn from.
      pool_labels: of all of its examples, int [n].
      test: what is judged on.
      model: with or without a head.
      devices: that share the work.
      shots: numbers of examples of each class.
      draws: how many times; by the seeds 0, 1, ...
      l2: see `linear_probe`.

    Raises:
      UserError: a class has too few examples in the pool.
    """
    self._batches = batches
    self._pool, self._test = pool, test
    self._shots, self._l2 = sorted(shots), l2
    self._devices = devices
    self._step = pmap_eval_step(feature_step, model, tuple(devices))
    try:
      self._draws = [
        sample_shots(pool_labels, pool.num_classes, max(shots), seed)
        for seed in range(draws)
      ]
    except UserError as error:
      raise UserError(
        f"{pool.name}, split {pool.split}: {error} Take a larger pool_split or "
        "fewer shots."
      ) from error

  @staticmethod
  def results(options: ConfigDict) -> list[str]:
    """Results that a checkpoint may be the best by."""
    return [f"{k}shot" for k in options.shots]

  def run(self, params: dict) -> dict[str, float]:
    """Evaluates parameters that every device holds.

    Returns:
      "5shot" and so on, the mean accuracy over the draws (0 to 1), and
      "5shot_std", the draws' standard deviation, where there are several.
    """
    drawn = np.unique(self._draws)
    train, labels, which = self._extract(params, Subset.of(self._pool, drawn))
    test, truth, _ = self._extract(params, self._test)
    is_there = np.zeros(len(drawn), bool)  # decoded
    is_there[which] = True
    row_of = np.cumsum(is_there) - 1
    results = {}
    for shots in self._shots:
      accuracies = []
      for draw in self._draws:
        places = np.searchsorted(drawn, draw[:, :shots].ravel())
        rows = row_of[places[is_there[places]]]
        predictions = linear_probe(
          train[rows],
          labels[rows],
          test,
          num_classes=self._pool.num_classes,
          l2=self._l2,
        )
        accuracies.append(np.mean(predictions == truth))
      results[f"{shots}shot"] = float(np.mean(accuracies))
      if len(accuracies) > 1:
        results[f"{shots}shot_std"] = float(np.std(accuracies, ddof=1))
    return results

  def _extract(
    self, params: dict, source: Source
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features, labels and numbers of what can be decoded."""
    outputs, rest = gather(
      run_pass(self._step, params, self._batches(source), self._devices)
    )
    if not len(rest["label"]):
      raise UserError(
        f"No image of {source.name}, split {source.split}, can be decoded."
      )
    return outputs["feature"], rest["label"], rest["position"]
