# SPDX-License-Identifier: Apache-2.0
"""Classification losses of one example, for hard or soft labels."""

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross entropy in nats; logits and labels float32 [n, classes] to [n]."""
  return optax.softmax_cross_entropy(logits, labels)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Binary cross entropies in nats, summed over classes, as the authors train.

  A mean over classes, the default elsewhere, would be this divided by the
  number of classes, and the published learning rates would not hold.
  """
  return optax.sigmoid_binary_cross_entropy(logits, labels).sum(axis=-1)


LOSSES = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}


def soft_labels(
  labels: jax.Array, num_classes: int, label_smoothing: float = 0.0
) -> jax.Array:
  """One-hot rows, mixed with the uniform distribution.

  Args:
    labels: int32 [n] in 0..num_classes - 1.
    num_classes: width of a row.
    label_smoothing: share of the uniform distribution, 0 to 1.

  Returns:
    float32 [n, num_classes], rows that sum to 1.
  """
  rows = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  return rows * (1 - label_smoothing) + label_smoothing / num_classes
