# SPDX-License-Identifier: Apache-2.0
"""Batches of decoded, augmented images, as a function of (seed, step).

A step and a host give positions in one endless global order. A position gives
the example (`shuffle.IndexShuffler`) and its augmentation
(`shuffle.augmentation_rng`); the source reads the example's bytes, `decode` and
the ops turn them into pixels, and pixels are stacked to batches. A batch
therefore depends neither on the workers, nor on the number of hosts, nor on the
step at which a run was interrupted.

Workers compute a batch in chunks of CHUNK examples.
"""

import collections
import contextlib
import itertools
from collections.abc import Iterator

import grain
import numpy as np

from mixer.data.decode import decode
from mixer.data.pp_parser import Op
from mixer.data.shuffle import IndexShuffler, augmentation_rng
from mixer.data.sources import Source
from mixer.data.workers import DEFAULT_WORKERS, Workers
from mixer.errors import UserError

Arrays = dict[str, np.ndarray]

# Smaller chunks spread a batch better over the workers, larger ones cost less
# bookkeeping.
CHUNK = 16

# More steps than any run takes; Grain needs a length.
ENDLESS_STEPS = 2**31

# Shows the output shape of the ops where a chunk has no image.
DUMMY_IMAGE = np.zeros((512, 512, 3), np.uint8)

MAX_CONSECUTIVE_BAD = 100

# Examples that BadImages.report lists of each split.
MAX_LISTED = 10


class BadImages:
  """Counts the images that could not be decoded, by split."""

  def __init__(self):
    # split -> example id -> occurrences, in the order of the first ones
    self._counts = collections.defaultdict(collections.Counter)
    self._places: dict[tuple[str, int], str] = {}

  def add(self, source: Source, i: int) -> None:
    """Counts example `i` of a source."""
    split = f"{source.name}, split {source.split}"
    counts = self._counts[split]
    counts[i] += 1
    if (split, i) not in self._places and len(counts) <= MAX_LISTED:
      self._places[split, i] = source.locate(i)

  @property
  def met(self) -> int:
    """Number of occurrences in all splits."""
    return sum(counts.total() for counts in self._counts.values())

  def report(self) -> str:
    """Returns the counts and the first examples of each split; "" if none."""
    return "\n".join(
      line
      for split, counts in self._counts.items()
      for line in self._lines(split, counts)
    )

  def _lines(self, split: str, counts: collections.Counter) -> list[str]:
    lines = [
      f"{len(counts):,} image{'s' * (len(counts) > 1)} of {split}, could not be"
      f" decoded, met {counts.total():,} times. Training takes the next of the"
      " order in their place, evaluation leaves them out:"
    ]
    lines += [
      f"  example {i} ({self._places[split, i]})"
      for i in list(counts)[:MAX_LISTED]
    ]
    if len(counts) > MAX_LISTED:
      lines.append(f"  and {len(counts) - MAX_LISTED:,} more")
    return lines


def train_batches(
  source: Source,
  ops: Op,
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
    source: the examples, shuffled again in every epoch; batches straddle
      epochs.
    ops: maps a uint8 image [h, w, 3] and a Generator to one of a fixed size.
    batch: examples in a global batch; a multiple of `hosts`.
    seed: of the order and of the augmentation, 0 or more.
    start_step: the first step to yield, reached at once.
    host: which slice of each global batch, of `hosts` equal ones.
    hosts: number of slices.
    workers: read, decode and augment ahead of the caller.
    bad_images: counts the images that cannot be decoded, each replaced by the
      next decodable one of the order; None makes them errors.

  Yields:
    image uint8 [n, h, w, 3], label int32 [n], position int64 [n] (the place in
    the global order), with n = batch // hosts. close() stops the workers, and
    so does dropping the iterator.

  Raises:
    UserError: an example cannot be decoded, or the arguments do not fit.
  """
  if seed < 0 or start_step < 0:
    raise UserError(f"seed={seed} and start_step={start_step} count from 0 on.")
  shuffler = IndexShuffler(len(source), seed)
  size = _host_batch(source, batch, host, hosts)
  chunks = -(-size // CHUNK)

  def load(number: int) -> Arrays:
    positions = _chunk_positions(number, batch, host * size, size)
    return _load_train(source, ops, shuffler, positions, bad_images is not None)

  numbers = grain.MapDataset.range(start_step * chunks, ENDLESS_STEPS * chunks)
  results = workers.run(numbers.map(load), chunks)
  return _join_chunks(source, results, size, chunks, bad_images)


def eval_batches(
  source: Source,
  ops: Op,
  *,
  batch: int,
  host: int = 0,
  hosts: int = 1,
  workers: Workers = DEFAULT_WORKERS,
  bad_images: BadImages | None = None,
) -> Iterator[Arrays]:
  """Yields every example once, in order, over all hosts together.

  The arguments are those of `train_batches`, but images that cannot be decoded
  are left out. All hosts yield the same number of batches; the last ones are
  padded.

  Yields:
    image uint8 [n, h, w, 3], label int32 [n] (or [n, classes] of 0 and 1, where
    examples have several), mask bool [n] (False for padding and images left
    out), position int64 [n], the example's number, with n = batch // hosts.
  """
  size = _host_batch(source, batch, host, hosts)
  chunks = -(-size // CHUNK)

  def load(number: int) -> Arrays:
    positions = _chunk_positions(number, batch, host * size, size)
    return _load_eval(source, ops, positions, bad_images is not None)

  steps = -(-len(source) // batch)
  numbers = grain.MapDataset.range(steps * chunks)
  results = workers.run(numbers.map(load), chunks)
  return _join_chunks(source, results, size, chunks, bad_images)


def read_labels(
  source: Source, workers: Workers = DEFAULT_WORKERS
) -> np.ndarray:
  """Returns the class of every example, int32 [n], without decoding images.

  Reads all bytes of a TFDS data set, and none of a folder of images.
  """
  part = 64 * CHUNK

  def load(number: int) -> list[int]:
    first = number * part
    return source.read_labels(range(first, min(first + part, len(source))))

  numbers = grain.MapDataset.range(-(-len(source) // part))
  with contextlib.closing(workers.run(numbers.map(load), 1)) as parts:
    return np.array([label for labels in parts for label in labels], np.int32)


def _host_batch(source: Source, batch: int, host: int, hosts: int) -> int:
  """Returns the number of examples of a global batch that fall to one host."""
  if batch < 1 or batch % hosts:
    raise UserError(
      f"A batch of {batch} examples cannot be shared equally by {hosts} hosts."
    )
  if not 0 <= host < hosts:
    raise UserError(f"Host {host} is not one of the {hosts} hosts from 0 on.")
  if not len(source):
    raise UserError(f"{source.name} {source.split} holds no examples.")
  return batch // hosts


def _chunk_positions(
  number: int, batch: int, first: int, size: int
) -> np.ndarray:
  """Returns the positions, int64, of a chunk, counted over all steps.

  A host has the `size` positions from `first` on in each global batch.
  """
  step, chunk = divmod(number, -(-size // CHUNK))
  begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, size)
  return step * batch + first + np.arange(begin, end, dtype=np.int64)


def _load_train(
  source: Source,
  ops: Op,
  shuffler: IndexShuffler,
  positions: np.ndarray,
  replace_bad: bool,
) -> Arrays:
  """Reads, decodes and augments the examples at some positions."""
  ids = shuffler(positions)
  images, labels, bad = [], [], []
  for i, position, (data, label) in zip(
    ids, positions, source.read(ids), strict=True
  ):
    image = _decode(source, i, data, allow_bad=replace_bad)
    if image is None:
      bad.append(i)
      i, image, label = _next_decodable(source, shuffler, position)
    rng = augmentation_rng(shuffler.seed, int(position))
    images.append(_augment(source, i, ops, image, rng))
    labels.append(label)
  return _stack(source, images, labels, positions, bad)


def _next_decodable(
  source: Source, shuffler: IndexShuffler, position: int
) -> tuple[int, np.ndarray, int | np.ndarray]:
  """Returns id, image and label of the next decodable example of the order."""
  for i in shuffler(position + np.arange(1, MAX_CONSECUTIVE_BAD)):
    [(data, label)] = source.read([i])
    image = _decode(source, i, data, allow_bad=True)
    if image is not None:
      return i, image, label
  raise UserError(
    f"{MAX_CONSECUTIVE_BAD} images in a row of {source.name}, split"
    f" {source.split}, cannot be decoded: prepare the data set again."
  )


def _load_eval(
  source: Source, ops: Op, positions: np.ndarray, skip_bad: bool
) -> Arrays:
  """Reads and decodes examples; pads beyond the end and masks bad images."""
  ids = positions[positions < len(source)]
  images, labels, bad = [], [], []
  for i, (data, label) in zip(ids, source.read(ids), strict=True):
    image = _decode(source, i, data, allow_bad=skip_bad)
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
  if mask.any():
    example = images[mask.argmax()]
  else:
    example = ops(DUMMY_IMAGE, augmentation_rng(0, 0))
  padding = np.zeros_like(example)
  images = [padding if image is None else image for image in images]
  return _stack(source, images, labels, positions, bad) | {"mask": mask}


def _decode(
  source: Source, i: int, data: bytes, *, allow_bad: bool
) -> np.ndarray | None:
  """Decodes an image; returns None for a broken one if `allow_bad`."""
  try:
    return decode(data)
  except ValueError as error:
    if allow_bad:
      return None
    raise UserError(
      f"{_describe(source, i)}: {error} Mend or remove the image, or leave out"
      " such images with --config.data.on_bad_image=replace."
    ) from error


def _augment(
  source: Source,
  i: int,
  ops: Op,
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
  _check_shapes(source, {image.shape for image in images})
  return {
    "image": np.stack(images),
    "label": np.array(labels, np.int32),
    "position": positions,
    "bad": np.array(bad, np.int64),
  }


def _join_chunks(
  source: Source,
  results: Iterator[Arrays],
  size: int,
  chunks: int,
  bad_images: BadImages | None,
) -> Iterator[Arrays]:
  """Yields batches of `size` examples, each made of `chunks` chunks."""
  with contextlib.closing(results):
    while True:
      batch: Arrays = {}
      filled = 0
      for chunk in itertools.islice(results, chunks):
        for i in chunk.pop("bad"):
          bad_images.add(source, int(i))
        for key, values in chunk.items():
          if not filled:
            batch[key] = np.empty((size, *values.shape[1:]), values.dtype)
          _check_shapes(source, {batch[key].shape[1:], values.shape[1:]})
          batch[key][filled : filled + len(values)] = values
        filled += len(values)
      if not filled:
        return
      yield batch


def _check_shapes(source: Source, shapes: set[tuple[int, ...]]) -> None:
  if len(shapes) > 1:
    raise UserError(
      f"The ops leave images of {source.name} {source.split} in different"
      f" sizes, {' and '.join(map(str, sorted(shapes)[:2]))}: end them with a"
      " crop or a resize to a fixed size."
    )
