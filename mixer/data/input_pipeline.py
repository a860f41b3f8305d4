# SPDX-License-Identifier: Apache-2.0
"""Batches of decoded, augmented images, as a function of (seed, step).

A batch never depends on who works on it, nor on the number of hosts, nor on
where a run was interrupted: every example has a position in one endless global
order, and the position alone says which example it is and how it is augmented.
"""

import collections
import contextlib
import itertools
from collections.abc import Callable, Iterator

import grain
import numpy as np

from mixer.data.decode import decode
from mixer.data.shuffle import IndexShuffler, augmentation_rng
from mixer.data.sources import Source
from mixer.data.workers import DEFAULT_WORKERS, Workers
from mixer.errors import UserError

Ops = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Arrays = dict[str, np.ndarray]

# Stands in where a chunk has no image of its own, to learn the shape of one.
UNSEEN = np.zeros((512, 512, 3), np.uint8)

# So many broken images in a row are no accident.
MAX_CONSECUTIVE_BAD = 100


def train_chunk(
  source: Source,
  ops: Ops,
  order: IndexShuffler,
  positions: np.ndarray,
  replaces: bool,
) -> Arrays:
  """Reads, decodes and augments the examples at some positions."""
  ids = order(positions)
  images, labels, bad = [], [], []
  for i, position, (data, label) in zip(
    ids, positions, source.read(ids), strict=True
  ):
    image = _decode(source, i, data, passes=replaces)
    if image is None:
      bad.append(i)
      i, image, label = _next_image(source, order, position)
    rng = augmentation_rng(order.seed, int(position))
    images.append(_augment(source, i, ops, image, rng))
    labels.append(label)
  return _stack(source, images, labels, positions, bad)


def _next_image(
  source: Source, order: IndexShuffler, position: int
) -> tuple[int, np.ndarray, int | np.ndarray]:
  """Returns id, image and label of the next example that can be decoded."""
  for i in order(position + np.arange(1, MAX_CONSECUTIVE_BAD)):
    [(data, label)] = source.read([i])
    image = _decode(source, i, data, passes=True)
    if image is not None:
      return i, image, label
  raise UserError(
    f"{MAX_CONSECUTIVE_BAD} images in a row of {source.name}, split"
    f" {source.split}, cannot be decoded: prepare the data set again."
  )


def eval_chunk(
  source: Source, ops: Ops, positions: np.ndarray, skips: bool
) -> Arrays:
  """Reads and decodes the examples of some numbers, as far as there are any."""
  ids = positions[positions < len(source)]
  images, labels, bad = [], [], []
  for i, (data, label) in zip(ids, source.read(ids), strict=True):
    image = _decode(source, i, data, passes=skips)
    if image is None:
      bad.append(i)
    else:
      image = _augment(source, i, ops, image, augmentation_rng(0, int(i)))
    images.append(image)
    labels.append(label)
  missing = len(positions) - len(ids)
  images += [None] * missing
  labels += [np.zeros(source.label_shape, np.int32)] * missing
  mask = np.array([image is not None for image in images])
  filler = np.zeros_like(
    images[mask.argmax()] if mask.any() else ops(UNSEEN, augmentation_rng(0, 0))
  )
  images = [filler if image is None else image for image in images]
  return _stack(source, images, labels, positions, bad) | {"mask": mask}


def _decode(
  source: Source, i: int, data: bytes, *, passes: bool
) -> np.ndarray | None:
  """Decodes an image; None if it is broken and such `passes`."""
  try:
    return decode(data)
  except ValueError as error:
    if passes:
      return None
    raise UserError(
      f"{_describe(source, i)}: {error} Mend or remove the image, or leave out"
      " such images with --config.data.on_bad_image=replace."
    ) from error


def _augment(
  source: Source,
  i: int,
  ops: Ops,
  image: np.ndarray,
  rng: np.random.Generator,
) -> np.ndarray:
  try:
    return ops(image, rng)
  except ValueError as error:
    raise UserError(f"{_describe(source, i)}: {error}") from error


def _describe(source: Source, i: int) -> str:
  return (
    f"Example {i} of {source.name}, split {source.split} ({source.locate(i)})"
  )


def _stack(
  source: Source,
  images: list[np.ndarray],
  labels: list[int | np.ndarray],
  positions: np.ndarray,
  bad: list[int],
) -> Arrays:
  check_shapes(source, {image.shape for image in images})
  return {
    "image": np.stack(images),
    "label": np.array(labels, np.int32),
    "position": positions,
    "bad": np.array(bad, np.int64),
  }


def check_shapes(source: Source, shapes: set[tuple[int, ...]]) -> None:
  if len(shapes) > 1:
    raise UserError(
      f"The ops leave images of {source.name} {source.split} in different"
      f" sizes, {' and '.join(map(str, sorted(shapes)[:2]))}: end them with a"
      " crop or a resize to a fixed size."
    )


SHOWN = 10


class BadImages:
  """The images that a run has come across, by split."""

  def __init__(self):
    # split -> example id -> how often it was met, in the order of the first
    self._met = collections.defaultdict(collections.Counter)
    self._places: dict[tuple[str, int], str] = {}

  def add(self, source: Source, i: int) -> None:
    """Notes that example `i` could not be decoded."""
    split = f"{source.name}, split {source.split}"
    ids = self._met[split]
    ids[i] += 1
    if (split, i) not in self._places and len(ids) <= SHOWN:
      self._places[split, i] = source.locate(i)

  @property
  def met(self) -> int:
    """How often one was met, in all splits."""
    return sum(ids.total() for ids in self._met.values())

  def report(self) -> str:
    """Says how many were met and which came first; "" if there were none."""
    return "\n".join(
      line
      for split, ids in self._met.items()
      for line in self._lines(split, ids)
    )

  def _lines(self, split: str, ids: collections.Counter) -> list[str]:
    lines = [
      f"{len(ids):,} image{'s' * (len(ids) > 1)} of {split}, could not be"
      f" decoded, met {ids.total():,} times. Training takes the next of the"
      " order in their place, evaluation leaves them out:"
    ]
    lines += [
      f"  example {i} ({self._places[split, i]})" for i in list(ids)[:SHOWN]
    ]
    if len(ids) > SHOWN:
      lines.append(f"  and {len(ids) - SHOWN:,} more")
    return lines


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
  workers: Workers = DEFAULT_WORKERS,
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
  order = IndexShuffler(len(source), seed)
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
  workers: Workers = DEFAULT_WORKERS,
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


def read_labels(
  source: Source, workers: Workers = DEFAULT_WORKERS
) -> np.ndarray:
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
