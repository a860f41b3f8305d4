# SPDX-License-Identifier: Apache-2.0
"""Semantic softmax: a softmax for each level of a hierarchy of classes.

From "ImageNet-21K Pretraining for the Masses" (arXiv 2104.10972): where "dog"
and "animal" are classes of one data set, they do not compete with each other.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Hierarchy:
  """Classes by level, which is the number of their ancestors that are classes.

  levels: classes of each level, int32; together all classes, each once.
  parents: for each of them, its parent's place in the level above; 0 in the
    first level.
  weights: of the levels: all classes / those of this level and below, at most
    20, because fewer images have a class in a deep level.
  label_smoothing: share of the uniform distribution over a level's classes.
  """

  levels: tuple[np.ndarray, ...]
  parents: tuple[np.ndarray, ...]
  weights: tuple[float, ...]
  label_smoothing: float = 0.0

  @property
  def level_of_class(self) -> np.ndarray:
    """Level of each class, int32 [classes]."""
    counts = [len(level) for level in self.levels]
    order = np.argsort(np.concatenate(self.levels))
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]


def semantic_softmax(
  logits: jax.Array, labels: jax.Array, hierarchy: Hierarchy
) -> jax.Array:
  """Weighted sum of the levels' softmax cross entropies, in nats.

  An example counts in the level of its class and, by the ancestors of its
  class, in all levels above. Unlike in the authors' code the deepest level
  counts as well.

  Args:
    logits: float32 [n, classes].
    labels: float32 [n, classes]; linear in them, so that mixup mixes losses.
    hierarchy: of the classes.

  Returns:
    float32 [n].
  """
  smoothing = hierarchy.label_smoothing
  sums, levels = jnp.zeros_like(logits[:, :1]), []
  for classes, parents, weight in zip(
    hierarchy.levels, hierarchy.parents, hierarchy.weights, strict=True
  ):
    log_p = jax.nn.log_softmax(logits[:, classes])
    mean = log_p.mean(axis=-1, keepdims=True)
    smooth = (1 - smoothing) * log_p + smoothing * mean
    sums = weight * smooth + sums[:, parents]  # over a class and its ancestors
    levels.append(sums)
  order = np.concatenate(hierarchy.levels)
  return -(labels[:, order] * jnp.concatenate(levels, axis=1)).sum(axis=-1)
