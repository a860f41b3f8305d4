# SPDX-License-Identifier: Apache-2.0
"""Batches of decoded, augmented images, as a function of (seed, step).

A batch never depends on who works on it, nor on the number of hosts, nor on
where a run was interrupted: every example has a position in one endless global
order, and the position alone says which example it is and how it is augmented.
"""

import contextlib
import itertools
from collections.abc import Iterator

import grain
import numpy as np

from mixer.data.bad_images import BadImages
from mixer.data.chunks import (
  Arrays,
  Ops,
  check_shapes,
  eval_chunk,
  train_chunk,
)
from mixer.data.order import GlobalOrder
from mixer.data.sources import Source
from mixer.data.workers import ONE_A_CORE, Workers
from mixer.errors import UserError

# One chunk is decoded by one worker. Smaller ones spread a batch better over
# the workers, larger ones cost less bookkeeping.
CHUNK = 16

# More steps than any run takes; Grain needs a length.
ENDLESS_STEPS = 2**31


def train_batches(
  source: Source,
  ops: Ops,
  *,
  batch: int,
  seed: int,
  start_step: int = 0,
  host: int = 0,
  hosts: int = 1,
  workers: Workers = ONE_A_CORE,
  bad_images: BadImages | None = None,
) -> Iterator[Arrays]:
  """Yields this host's part of batch start_step, start_step + 1, ... endlessly.

  Args:
    source: the examples; shuffled anew in every epoch, batches straddle epochs.
    ops: maps a uint8 image [h, w, 3] and a Generator to one of a fixed size.
    batch: examples in a global batch; a multiple of `hosts`.
    seed: of the order and of the augmentation, from 0 on.
    start_step: the first step to yield, reached at once.
    host: which slice of each global batch, of `hosts` equal ones.
    hosts: number of slices.
    workers: that read, decode and augment, ahead of the caller.
    bad_images: told of images that cannot be decoded, which are then replaced
      by the next of the order that can; None makes them errors.

  Yields:
    image uint8 [n, h, w, 3], label int32 [n], position int64 [n] (the place in
    the global order), with n = batch // hosts. The iterator's close() stops
    the workers; so does forgetting it.

  Raises:
    UserError: an example cannot be decoded, or the arguments do not fit.
  """
  size = _host_batch(source, batch, host, hosts)
  if seed < 0 or start_step < 0:
    raise UserError(f"seed={seed} and start_step={start_step} count from 0 on.")
  order = GlobalOrder(len(source), seed)
  chunks = -(-size // CHUNK)
  replaces = bad_images is not None

  def load(number: int) -> Arrays:
    positions = _positions(number, chunks, batch, host * size, size)
    return train_chunk(source, ops, order, positions, replaces)

  numbers = grain.MapDataset.range(start_step * chunks, ENDLESS_STEPS * chunks)
  results = workers.run(numbers.map(load), chunks)
  return _in_batches(source, results, size, chunks, bad_images)


def eval_batches(
  source: Source,
  ops: Ops,
  *,
  batch: int,
  host: int = 0,
  hosts: int = 1,
  workers: Workers = ONE_A_CORE,
  bad_images: BadImages | None = None,
) -> Iterator[Arrays]:
  """Yields every example once, in order, over all hosts together.

  The arguments are those of `train_batches`, but images that cannot be decoded
  are left out. All hosts yield the same number of batches, and the last ones
  are filled up.

  Yields:
    image uint8 [n, h, w, 3], label int32 [n] (or [n, classes] of 0 and 1, where
    examples have several), mask bool [n] (False where an example only fills
    up), position int64 [n], the example's number, with n = batch // hosts.
  """
  size = _host_batch(source, batch, host, hosts)
  chunks = -(-size // CHUNK)
  skips = bad_images is not None

  def load(number: int) -> Arrays:
    positions = _positions(number, chunks, batch, host * size, size)
    return eval_chunk(source, ops, positions, skips)

  steps = -(-len(source) // batch)
  numbers = grain.MapDataset.range(steps * chunks)
  results = workers.run(numbers.map(load), chunks)
  return _in_batches(source, results, size, chunks, bad_images)


def read_labels(source: Source, workers: Workers = ONE_A_CORE) -> np.ndarray:
  """Returns the class of every example, int32 [n], and decodes no image.

  Of TFDS data sets all bytes are read for it, from folders none.
  """
  part = 64 * CHUNK

  def load(number: int) -> list[int]:
    first = number * part
    return source.read_labels(range(first, min(first + part, len(source))))

  numbers = grain.MapDataset.range(-(-len(source) // part))
  with contextlib.closing(workers.run(numbers.map(load), 1)) as parts:
    return np.array([label for labels in parts for label in labels], np.int32)


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


def _positions(
  number: int, chunks: int, batch: int, first: int, size: int
) -> np.ndarray:
  """Positions of a chunk: `size` from `first` on of each batch, in chunks."""
  step, chunk = divmod(number, chunks)
  begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, size)
  return step * batch + first + np.arange(begin, end, dtype=np.int64)


def _in_batches(
  source: Source,
  results: Iterator[Arrays],
  size: int,
  chunks: int,
  bad_images: BadImages | None,
) -> Iterator[Arrays]:
  """Puts the chunks of each batch together, as they come."""
  with contextlib.closing(results):
    while True:
      batch: Arrays = {}
      filled = 0
      # There are whole batches of chunks.
      for chunk in itertools.islice(results, chunks):
        for i in chunk.pop("bad"):
          bad_images.add(source, int(i))
        for key, values in chunk.items():
          if not filled:
            batch[key] = np.empty((size, *values.shape[1:]), values.dtype)
          check_shapes(source, {batch[key].shape[1:], values.shape[1:]})
          batch[key][filled : filled + len(values)] = values
        filled += len(values)
      if not filled:
        return
      yield batch
