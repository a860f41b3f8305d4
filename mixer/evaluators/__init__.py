# SPDX-License-Identifier: Apache-2.0
"""Evaluators: one pass over a split, every example counted exactly once.

`mixer.config.EVALUATORS` is the table of their types.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from etils import epath
from flax import linen as nn
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from mixer.data.sources import Source
from mixer.data.workers import Workers
from mixer.training.semantic_softmax import Hierarchy
from mixer.training.sharding import pmap_step, prefetch_to_device

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class EvalSetup:
  """The argument of every evaluator.

  name: of the evaluator in the config.
  options: its part of the config.
  source: split that is evaluated.
  pool: split that examples are sampled from, if the type does so.
  batches: starts a pass over a split; yields "image", "label", "position" and
    "mask" (bool, False for padding), of a size that the devices divide.
  model: to evaluate.
  loss: "softmax", "sigmoid", or the hierarchy of a semantic softmax.
  devices: local devices, which share each batch.
  workers: for reading.
  folder: for files next to the numbers; None on hosts that write none.
  """

  name: str
  options: ConfigDict
  source: Source
  pool: Source | None
  batches: Callable[[Source], Iterable[Batch]]
  model: nn.Module
  loss: str | Hierarchy
  devices: Sequence[jax.Device]
  workers: Workers
  folder: epath.Path | None

  def csv_file(self, kind: str) -> epath.Path | None:
    """Returns the CSV file of that kind if the options ask for it."""
    if self.folder is None or not self.options[kind]:
      return None
    return self.folder / f"{self.name}_{kind}.csv"

  def run_pass(
    self,
    step: Callable,
    params: dict,
    source: Source | None = None,
    inputs: Sequence[str] = ("image",),
    **options,
  ) -> Iterator[tuple[Batch, Batch]]:
    """Yields (outputs, the batch without `image`) of each batch, unpadded.

    Each host passes its slice of the global batches, in step with the others,
    and gets the results of all.

    Args:
      step, options: see `pmap_eval_step`.
      params: a copy on every device.
      source: split, by default the evaluator's.
      inputs: names of the step's inputs in a batch.
    """
    step = pmap_eval_step(step, self.model, tuple(self.devices), **options)
    rests = collections.deque()

    def feed():
      for batch in self.batches(self.source if source is None else source):
        rests.append({k: v for k, v in batch.items() if k != "image"})
        yield {key: batch[key] for key in inputs}

    def fetch(outputs):
      flat = {
        k: np.asarray(v).reshape(-1, *v.shape[2:]) for k, v in outputs.items()
      }
      flat, rest = _from_all_hosts((flat, rests.popleft()))
      mask = rest.pop("mask")
      return jax.tree.map(lambda x: x[mask], (flat, rest))

    ahead = collections.deque()  # dispatched, not yet fetched
    for batch in prefetch_to_device(feed(), self.devices):
      ahead.append(step(params, batch))
      if len(ahead) > 1:
        yield fetch(ahead.popleft())
    while ahead:
      yield fetch(ahead.popleft())


@functools.cache
def pmap_eval_step(
  step: Callable, model: nn.Module, devices: tuple[jax.Device, ...], **options
) -> Callable:
  """Maps a step over devices; equal arguments share one compilation.

  Args:
    step: of parameters and one device's part of a batch, dicts; with keyword
      arguments `model` and `options`. Returns a dict of arrays [n, ...].
    model: for the step.
    devices: local devices, which share each batch.
    **options: for the step, hashable.
  """
  bound = functools.partial(step, model=model, **options)
  return pmap_step(bound, devices, in_axes=(None, 0))


def _from_all_hosts(slices: tuple[Batch, Batch]) -> tuple[Batch, Batch]:
  """All-gathers the slices of a global batch, in the hosts' order."""
  if jax.process_count() == 1:
    return slices

  def join(x):
    # As bytes, because devices have no int64.
    rows = np.ascontiguousarray(x).view(np.uint8).reshape(len(x), -1)
    everything = multihost_utils.process_allgather(rows, tiled=True)
    return everything.reshape(-1).view(x.dtype).reshape(-1, *x.shape[1:])

  return jax.tree.map(join, slices)


def gather(parts: Iterable[tuple[Batch, Batch]]) -> tuple[Batch, Batch]:
  """Concatenates the batches of `EvalSetup.run_pass`."""
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)
