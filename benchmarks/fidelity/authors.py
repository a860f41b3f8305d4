# SPDX-License-Identifier: Apache-2.0
"""The authors' definitions, in NumPy."""

from collections.abc import Iterator

import numpy as np


def boxes(
  height: int, width: int, n: int, rng: np.random.Generator
) -> np.ndarray:
  """Draws n boxes (y, x, h, w) as sample_distorted_bounding_box's kernel does.

  Each of 100 attempts draws again the boxes that did not fit.
  """
  f, most = np.float32, np.float32(height * width)
  least, boxes = f(0.05) * most, np.tile([0, 0, height, width], (n, 1))
  left = np.arange(n)
  for _ in range(100):
    ratio = rng.random(len(left), f) * (f(1.33) - f(0.75)) + f(0.75)
    low, high = (np.rint(np.sqrt(area / ratio)) for area in (least, most))
    wide = np.rint(high * ratio) > width
    high = np.where(wide, np.floor((width + 0.5 - 1e-7) / ratio), high)
    high = np.minimum(high - (np.rint(high * ratio) > width), height)
    low = np.minimum(low, high)
    h = low + np.floor(rng.random(len(left)) * (high - low + 1))
    h += h * np.rint(h * ratio) < least
    h -= h * np.rint(h * ratio) > most
    w = np.rint(h * ratio)
    fits = (h * w >= least) & (h * w <= most) & (h <= height) & (w <= width)
    y = np.floor(rng.random(len(left)) * (height - h))
    x = np.floor(rng.random(len(left)) * (width - w))
    boxes[left[fits]] = np.stack([y, x, h, w], axis=1)[fits]
    left = left[~fits]
  return boxes


def schedule(steps, total, warmup, kind, end=0.0) -> np.ndarray:
  """The factor of big_vision's create_learning_rate_schedule, float64."""
  progress = np.clip((steps - warmup) / (total - warmup), 0, 1)
  decay = end + (1 - end) * (1 - progress)
  if kind == "cosine":
    decay = 0.5 * (1 + np.cos(np.pi * progress))
  return decay * np.minimum(1, steps / warmup)


def adam(grads, params, keys, factors) -> Iterator[dict]:
  """Parameters after each update of big_vision's chain of optax, float64.

  The chain: clip, Adam, learning rate, decay of kernels, schedule.

  Args:
    grads: a dict of arrays for each update.
    params: likewise, before the first.
    keys: of config.optimizer.
    factors: the schedule's, for each update.
  """
  m, v = ({name: 0.0 for name in params} for _ in range(2))
  for t, (grad, factor) in enumerate(zip(grads, factors, strict=True), 1):
    norm = np.sqrt(sum((g**2).sum() for g in grad.values()))
    for name, g in grad.items():
      g = g * min(1, keys.clip_norm / norm)
      m[name] = keys.b1 * m[name] + (1 - keys.b1) * g
      v[name] = keys.b2 * v[name] + (1 - keys.b2) * g**2
      root = np.sqrt(v[name] / (1 - keys.b2**t)) + keys.eps
      change = keys.learning_rate * m[name] / (1 - keys.b1**t) / root
      change += keys.weight_decay * params[name] * (name == "kernel")
      params = params | {name: params[name] - factor * change}
    yield params
