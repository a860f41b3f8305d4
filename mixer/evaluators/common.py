# SPDX-License-Identifier: Apache-2.0
"""One pass over a split on all devices, every example counted exactly once."""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils

from mixer.data.prefetch import prefetch_to_device
from mixer.training.sharding import pmap_step

Batch = dict[str, np.ndarray]


@functools.cache
def pmap_eval_step(
  step: Callable,
  model: nn.Module,
  devices: tuple[jax.Device, ...],
  **options,
) -> Callable:
  """`step` on devices; the same one for equal arguments compiles once.

  Args:
    step: of parameters and one device's part of a batch, dicts; with keyword
      arguments `model` and `options`. Returns a dict of arrays [n, ...].
    model: for the step.
    devices: that share the work.
    **options: for the step, hashable.
  """
  bound = functools.partial(step, model=model, **options)
  return pmap_step(bound, devices, in_axes=(None, 0))


def run_pass(
  step: Callable,
  params: dict,
  batches: Iterable[Batch],
  devices: Sequence[jax.Device],
  inputs: Sequence[str] = ("image",),
) -> Iterator[tuple[Batch, Batch]]:
  """Yields (outputs, the batch without `image`) of each batch, unpadded.

  Several hosts each pass their slice of the same batches, at the same time, and
  each is given the whole ones.

  Args:
    step: from `pmap_eval_step`.
    params: a copy on every device.
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
    flat = {
      k: np.asarray(v).reshape(-1, *v.shape[2:]) for k, v in outputs.items()
    }
    flat, rest = _from_all_hosts((flat, rests.popleft()))
    mask = rest.pop("mask")
    return (
      {k: v[mask] for k, v in flat.items()},
      {k: v[mask] for k, v in rest.items()},
    )

  ahead = collections.deque()  # dispatched, not yet fetched
  for batch in prefetch_to_device(feed(), devices):
    ahead.append(step(params, batch))
    if len(ahead) > 1:
      yield fetch(ahead.popleft())
  while ahead:
    yield fetch(ahead.popleft())


def _from_all_hosts(slices: tuple[Batch, Batch]) -> tuple[Batch, Batch]:
  """Puts the slices of a global batch together, in the hosts' order."""
  if jax.process_count() == 1:
    return slices

  def join(x):
    # As bytes, because devices have no int64.
    rows = np.ascontiguousarray(x).view(np.uint8).reshape(len(x), -1)
    everything = multihost_utils.process_allgather(rows, tiled=True)
    return everything.reshape(-1).view(x.dtype).reshape(-1, *x.shape[1:])

  return jax.tree.map(join, slices)


def gather(parts: Iterable[tuple[Batch, Batch]]) -> tuple[Batch, Batch]:
  """Joins what `run_pass` yields."""
  outputs, rests = zip(*parts, strict=True)
  return _join(outputs), _join(rests)


def _join(parts: Sequence[Batch]) -> Batch:
  return {key: np.concatenate([x[key] for x in parts]) for key in parts[0]}
