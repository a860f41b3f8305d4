# SPDX-License-Identifier: Apache-2.0
"""One pass over a split on all devices, every example counted exactly once."""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from flax import linen as nn

from mixer.data.device_feed import to_devices
from mixer.training.mixing import AXIS

Batch = dict[str, np.ndarray]


@functools.cache
def bind_to_devices(
  step: Callable,
  model: nn.Module,
  devices: tuple[jax.Device, ...],
  **options,
) -> Callable:
  """`step` on devices; the same one for equal arguments compiles once.

  Args:
    step: of parameters and one device's part of a batch, a dict; with keyword
      arguments `model` and `options`. Returns a dict of arrays [n, ...].
    model: for the step.
    devices: that share the work.
    **options: for the step, hashable.
  """
  bound = functools.partial(step, model=model, **options)
  return jax.pmap(bound, axis_name=AXIS, devices=devices)


def run_pass(
  step: Callable,
  params: dict,
  batches: Iterable[Batch],
  devices: Sequence[jax.Device],
  inputs: Sequence[str] = ("image",),
) -> Iterator[tuple[Batch, Batch]]:
  """Yields (outputs, the batch without `image`) of each batch, unpadded.

  Args:
    step: from `bind_to_devices`.
    params: with a leading device axis.
    batches: "image", "label" and "mask" (bool, False where an example is
      padding), of a size that the devices divide.
    devices: of the step.
    inputs: what of a batch the step takes.
  """
  rests = collections.deque()

  def feed():
    for batch in batches:
      rests.append({k: v for k, v in batch.items() if k != "image"})
      yield {key: batch[key] for key in inputs}

  def fetch(outputs):
    rest = rests.popleft()
    mask = rest.pop("mask")
    flat = {
      k: np.asarray(v).reshape(-1, *v.shape[2:])[mask]
      for k, v in outputs.items()
    }
    return flat, {k: v[mask] for k, v in rest.items()}

  ahead = collections.deque()  # dispatched, not yet fetched
  for batch in to_devices(feed(), devices):
    ahead.append(step(params, batch))
    if len(ahead) > 1:
      yield fetch(ahead.popleft())
  while ahead:
    yield fetch(ahead.popleft())


def gather(parts: Iterable[tuple[Batch, Batch]]) -> tuple[Batch, Batch]:
  """Joins what `run_pass` yields."""
  outputs, rests = zip(*parts, strict=True)
  return _join(outputs), _join(rests)


def _join(parts: Sequence[Batch]) -> Batch:
  return {key: np.concatenate([x[key] for x in parts]) for key in parts[0]}
