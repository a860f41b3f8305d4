# SPDX-License-Identifier: Apache-2.0
"""Batches of decoded, augmented images, as a function of (seed, step).

A batch never depends on the number of threads or hosts, nor on where a run was
interrupted: every example has a position in one endless global order, and the
position alone says which example it is and how it is augmented.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Iterator

import grain
import numpy as np

from mixer.data.ops import decode
from mixer.data.sources import Source
from mixer.errors import UserError

Ops = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Batch = dict[str, np.ndarray]

# One chunk is decoded by one thread. Smaller ones spread a batch better over
# the threads, larger ones cost less bookkeeping.
CHUNK = 16

# More steps than any run takes; Grain needs a length.
ENDLESS_STEPS = 2**31


class GlobalOrder:
  """Says which example stands at a position of the endless shuffled order.

  Grain's own shuffle is not used here: it derives epoch 1 of seed 0 and epoch
  0 of seed 1 from the same number, and takes milliseconds an example for data
  sets of a few dozen images.
  """

  def __init__(self, examples: int, seed: int):
    self.examples = examples
    self.seed = seed
    self._lock = threading.Lock()
    # Threads work on either side of the border between two epochs.
    self._permutation = functools.lru_cache(maxsize=2)(self._permute)

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """Maps int64 positions [n] to int64 example ids [n]."""
    epochs, places = np.divmod(positions, self.examples)
    ids = np.empty_like(positions)
    for epoch in np.unique(epochs):
      inside = epochs == epoch
      ids[inside] = self.permutation(int(epoch))[places[inside]]
    return ids

  def permutation(self, epoch: int) -> np.ndarray:
    """Returns the example ids of an epoch in order, int64 [examples]."""
    with self._lock:
      return self._permutation(epoch)

  def _permute(self, epoch: int) -> np.ndarray:
    # RandomState, because NumPy promises never to change what it draws.
    bits = np.random.MT19937(np.random.SeedSequence([self.seed, epoch]))
    return np.random.RandomState(bits).permutation(self.examples)


def augmentation_rng(seed: int, position: int) -> np.random.Generator:
  """Returns the randomness of the example at a position of a seed's order."""
  return np.random.Generator(np.random.Philox(key=[seed, position]))


def train_batches(
  source: Source,
  ops: Ops,
  *,
  batch: int,
  seed: int,
  start_step: int = 0,
  host: int = 0,
  hosts: int = 1,
  threads: int = 16,
  prefetch: int = 2,
) -> Iterator[Batch]:
  """Yields this host's part of batch start_step, start_step + 1, ... endlessly.

  Args:
    source: the examples; shuffled anew in every epoch, batches straddle epochs.
    ops: maps a uint8 image [h, w, 3] and a Generator to one of a fixed size.
    batch: examples in a global batch; a multiple of `hosts`.
    seed: of the order and of the augmentation, from 0 on.
    start_step: the first step to yield, reached at once.
    host: which slice of each global batch, of `hosts` equal ones.
    hosts: number of slices.
    threads: that read, decode and augment; 0 does it all in the caller.
    prefetch: batches that are worked on ahead of the caller.

  Yields:
    image uint8 [n, h, w, 3], label int32 [n], position int64 [n] (the place in
    the global order), with n = batch // hosts. The iterator's close() stops
    the threads; so does forgetting it.

  Raises:
    UserError: an example cannot be decoded, or the arguments do not fit.
  """
  size = _host_batch(source, batch, host, hosts)
  if seed < 0 or start_step < 0:
    raise UserError(f"seed={seed} and start_step={start_step} count from 0 on.")
  order = GlobalOrder(len(source), seed)
  chunks = -(-size // CHUNK)

  def load(number: int) -> Batch:
    step, chunk = divmod(number, chunks)
    first = step * batch + host * size
    begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, size)
    positions = np.arange(first + begin, first + end, dtype=np.int64)
    return _load(source, ops, order(positions), positions, seed)

  numbers = grain.MapDataset.range(start_step * chunks, ENDLESS_STEPS * chunks)
  return _in_batches(numbers.map(load), chunks, threads, prefetch * chunks)


def eval_batches(
  source: Source,
  ops: Ops,
  *,
  batch: int,
  host: int = 0,
  hosts: int = 1,
  threads: int = 16,
  prefetch: int = 2,
) -> Iterator[Batch]:
  """Yields every example once, in order, over all hosts together.

  The arguments are those of `train_batches`. All hosts yield the same number
  of batches, and the last ones are filled up.

  Yields:
    image uint8 [n, h, w, 3], label int32 [n], mask bool [n] (False where an
    example only fills up), position int64 [n], the example's number, with
    n = batch // hosts.
  """
  size = _host_batch(source, batch, host, hosts)
  chunks = -(-size // CHUNK)
  examples = len(source)

  def load(number: int) -> Batch:
    step, chunk = divmod(number, chunks)
    first = step * batch + host * size
    begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, size)
    positions = np.arange(first + begin, first + end, dtype=np.int64)
    mask = positions < examples
    # Even a chunk beyond the end needs one image, for its shape.
    ids = np.minimum(positions[: max(mask.sum(), 1)], examples - 1)
    loaded = _load(source, ops, ids, ids, seed=0)
    missing = len(positions) - len(ids)
    padded = {key: _pad(value, missing) for key, value in loaded.items()}
    return padded | {"mask": mask, "position": positions}

  steps = -(-examples // batch)
  numbers = grain.MapDataset.range(steps * chunks)
  return _in_batches(numbers.map(load), chunks, threads, prefetch * chunks)


def _pad(values: np.ndarray, rows: int) -> np.ndarray:
  return np.pad(values, [(0, rows)] + [(0, 0)] * (values.ndim - 1))


def _host_batch(source: Source, batch: int, host: int, hosts: int) -> int:
  """Returns how many examples of a global batch fall to one host."""
  if batch < 1 or batch % hosts:
    raise UserError(
      f"A batch of {batch} examples cannot be shared equally by {hosts} hosts."
    )
  if not 0 <= host < hosts:
    raise UserError(f"Host {host} is not one of the {hosts} hosts from 0 on.")
  if not len(source):
    raise UserError(f"{source.name} {source.split} holds no examples.")
  return batch // hosts


def _load(
  source: Source,
  ops: Ops,
  ids: np.ndarray,
  positions: np.ndarray,
  seed: int,
) -> Batch:
  """Reads, decodes and augments the examples of one chunk."""
  examples = source.read(ids)
  images = [
    _image(source, ops, int(i), data, augmentation_rng(seed, int(position)))
    for i, (data, _), position in zip(ids, examples, positions, strict=True)
  ]
  shapes = {image.shape for image in images}
  if len(shapes) > 1:
    raise UserError(
      f"The ops leave images of {source.name} {source.split} in different"
      f" sizes, {' and '.join(map(str, sorted(shapes)[:2]))}: end them with a"
      " crop or a resize to a fixed size."
    )
  return {
    "image": np.stack(images),
    "label": np.array([label for _, label in examples], np.int32),
    "position": positions,
  }


def _image(
  source: Source, ops: Ops, i: int, data: bytes, rng: np.random.Generator
) -> np.ndarray:
  try:
    return ops(decode(data), rng)
  except ValueError as error:
    raise UserError(
      f"Example {i} of {source.name}, split {source.split}: {error}"
    ) from error


def _in_batches(
  dataset: grain.MapDataset, chunks: int, threads: int, prefetch: int
) -> Iterator[Batch]:
  """Computes chunks on threads, in order, and joins them to batches."""
  ahead = max(prefetch, threads) if threads else 0
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
  iterator = iter(dataset.to_iter_dataset(options))
  try:
    while True:
      # Grain ends at a multiple of `chunks`, that is, with a whole batch.
      parts = list(itertools.islice(iterator, chunks))
      if not parts:
        return
      yield {
        key: np.concatenate([part[key] for part in parts]) for key in parts[0]
      }
  finally:
    iterator.close()
