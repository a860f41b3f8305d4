# SPDX-License-Identifier: Apache-2.0
"""Linear few-shot accuracy, as in the paper's figures 2 and 4.

As in the authors' code (big_vision, fewshot_lsr.py): ridge regression on frozen
features with l2 = 1024 and targets -1 and 1; the largest output is the
prediction.
"""

import jax
import numpy as np
import scipy.linalg
from flax import linen as nn

from mixer.data.input_pipeline import read_labels
from mixer.data.sources import Source, Subset
from mixer.errors import UserError, format_list
from mixer.evaluators import EvalSetup, gather
from mixer.training.step import normalise

# A constant feature stands for the bias, so large that its penalty is close to
# nothing.
BIAS = 100.0

_ROWS = 4096  # rows per prediction


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
    num_classes: None means up to the largest label.
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
  """Samples `shots` examples of each class, indices int [classes, shots].

  Fewer shots with the same seed are a prefix of these. The authors' code has
  the same rule, but interleaves the files of a data set, so that it samples
  other examples where there are several files.

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

  def __init__(self, setup: EvalSetup):
    """Samples the shots.

    Raises:
      UserError: a class has too few examples in the pool.
    """
    self._setup = setup
    pool, shots = setup.pool, max(setup.options.shots)
    labels = read_labels(pool, setup.workers)
    try:
      self._draws = [
        sample_shots(labels, pool.num_classes, shots, seed)
        for seed in range(setup.options.draws)
      ]
    except UserError as error:
      raise UserError(
        f"{pool.name}, split {pool.split}: {error} Take a larger pool_split or "
        "fewer shots."
      ) from error

  def run(self, params: dict) -> dict[str, float]:
    """Evaluates parameters that every device holds.

    Returns:
      "5shot" and so on, the mean accuracy over the draws (0 to 1), and
      "5shot_std", the draws' standard deviation, where there are several.
    """
    setup, sampled = self._setup, np.unique(self._draws)
    train, labels, positions = self._extract(
      params, Subset.of(setup.pool, sampled)
    )
    test, truth, _ = self._extract(params, setup.source)
    is_decoded = np.zeros(len(sampled), bool)
    is_decoded[positions] = True
    row_of = np.cumsum(is_decoded) - 1
    results = {}
    for shots in sorted(setup.options.shots):
      accuracies = []
      for draw in self._draws:
        indices = np.searchsorted(sampled, draw[:, :shots].ravel())
        rows = row_of[indices[is_decoded[indices]]]
        predictions = linear_probe(
          train[rows],
          labels[rows],
          test,
          num_classes=setup.pool.num_classes,
          l2=setup.options.l2,
        )
        accuracies.append(np.mean(predictions == truth))
      results[f"{shots}shot"] = float(np.mean(accuracies))
      if len(accuracies) > 1:
        results[f"{shots}shot_std"] = float(np.std(accuracies, ddof=1))
    return results

  def _extract(
    self, params: dict, source: Source
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features, labels and indices of the decodable examples."""
    outputs, rest = gather(self._setup.run_pass(feature_step, params, source))
    if not len(rest["label"]):
      raise UserError(
        f"No image of {source.name}, split {source.split}, can be decoded."
      )
    return outputs["feature"], rest["label"], rest["position"]
