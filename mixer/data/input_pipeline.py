# SPDX-License-Identifier: Apache-2.0
"""Batches of decoded, augmented images, as a function of (seed, step).

An example on its way to the devices:
  1. A step and a host give positions in one endless global order (`_batches`).
  2. A position gives an example's number (`shuffle.IndexShuffler`).
  3. The source reads its bytes and its label (`sources.Source.read`).
  4. `decode` measures the image and turns the bytes into pixels.
  5. The recipe's ops crop and augment them (`preprocess`), with the random
     generator of the position (`shuffle.augmentation_rng`).
  6. Images are stacked to batches.
Workers run steps 2 to 5 ahead, CHUNK examples at a time.

A batch therefore depends neither on the workers, nor on the number of hosts,
nor on the step at which a run was interrupted.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Callable, Iterator

import grain
import numpy as np

from mixer.data.pp_parser import Compose
from mixer.data.shuffle import IndexShuffler, augmentation_rng
from mixer.data.sources import Source
from mixer.data.workers import DEFAULT_WORKERS, Workers
from mixer.errors import UserError, printable

Arrays = dict[str, np.ndarray]

# Smaller chunks spread a batch better over the workers, larger ones cost less
# bookkeeping.
CHUNK = 16

# More steps than any run takes; Grain needs a length.
ENDLESS_STEPS = 2**31

# Shows the output shape of the ops.
DUMMY_IMAGE = np.zeros((512, 512, 3), np.uint8)

MAX_CONSECUTIVE_BAD = 100

# Examples that BadImages.report lists of each split.
MAX_LISTED = 10


def train_batches(
  source: Source,
  ops: Compose,
  *,
  batch: int,
  seed: int,
  repeats: int = 1,
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
    repeats: times that each example of a batch is in it (`IndexShuffler`).
    start_step: the first step to yield, reached at once.
    host: which slice of each global batch, of `hosts` equal ones.
    hosts: number of slices.
    workers: read, decode and augment ahead of the caller.
    bad_images: counts the images that cannot be decoded or that the ops fail
      on, each replaced by the next sound one of the order; None makes them
      errors.

  Yields:
    image uint8 [n, h, w, 3], label int32 [n], position int64 [n] (the place in
    the global order), with n = batch // hosts. close() stops the workers, and
    so does dropping the iterator.

  Raises:
    UserError: an example is such an image.
  """
  shuffler = IndexShuffler(len(source), seed, batch, repeats)
  allow_bad = bad_images is not None

  def load(positions: np.ndarray) -> Arrays:
    images, labels, bad = [], [], []
    ids = shuffler(positions)
    examples = zip(positions, ids, source.read(ids), strict=True)
    for position, i, (data, label) in examples:
      key = seed, int(position)
      image = _load_image(source, i, data, ops, key, allow_bad=allow_bad)
      if image is None:
        bad.append(i)
        image, label = _load_next(source, ops, shuffler, int(position))
      images.append(image)
      labels.append(label)
    return _stack(images, labels, positions, bad)

  steps = range(start_step, ENDLESS_STEPS)
  return _batches(load, steps, source, batch, host, hosts, workers, bad_images)


def eval_batches(
  source: Source,
  ops: Compose,
  *,
  batch: int,
  host: int = 0,
  hosts: int = 1,
  workers: Workers = DEFAULT_WORKERS,
  bad_images: BadImages | None = None,
) -> Iterator[Arrays]:
  """Yields every example once, in order, over all hosts together.

  The arguments are those of `train_batches`, but bad images are left out. All
  hosts yield the same number of batches; the last ones are padded.

  Yields:
    image uint8 [n, h, w, 3], label int32 [n] (or [n, classes] of 0 and 1, where
    examples have several), mask bool [n] (False for padding and images left
    out), position int64 [n], the example's number, with n = batch // hosts.
  """
  blank = np.zeros_like(ops(DUMMY_IMAGE, augmentation_rng(0, 0)))
  allow_bad = bad_images is not None

  def load(positions: np.ndarray) -> Arrays:
    ids = positions[positions < len(source)]
    images = [blank] * len(positions)
    labels = [np.zeros(source.label_shape, np.int32)] * len(positions)
    mask = np.zeros(len(positions), bool)
    bad = []
    for n, (i, (data, labels[n])) in enumerate(
      zip(ids, source.read(ids), strict=True)
    ):
      key = 0, int(i)
      image = _load_image(source, i, data, ops, key, allow_bad=allow_bad)
      if image is None:
        bad.append(i)
      else:
        images[n] = image
        mask[n] = True
    return _stack(images, labels, positions, bad) | {"mask": mask}

  steps = range(-(-len(source) // batch))
  return _batches(load, steps, source, batch, host, hosts, workers, bad_images)


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


def _batches(
  load: Callable[[np.ndarray], Arrays],
  steps: range,
  source: Source,
  batch: int,
  host: int,
  hosts: int,
  workers: Workers,
  bad_images: BadImages | None,
) -> Iterator[Arrays]:
  """Yields batches of what `load` returns for positions, int64 [n <= CHUNK].

  Host h has the h-th of `hosts` equal slices of each global batch, in chunks.
  """
  assert batch % hosts == 0 and 0 <= host < hosts, (batch, host, hosts)
  size = batch // hosts
  chunks = -(-size // CHUNK)

  def load_chunk(number: int) -> Arrays:
    step, chunk = divmod(number, chunks)
    begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, size)
    first = step * batch + host * size
    return load(first + np.arange(begin, end, dtype=np.int64))

  numbers = grain.MapDataset.range(steps.start * chunks, steps.stop * chunks)
  results = workers.run(numbers.map(load_chunk), chunks)
  with contextlib.closing(results):
    while True:
      joined: Arrays = {}
      filled = 0
      for chunk in itertools.islice(results, chunks):
        for i in chunk.pop("bad"):
          bad_images.add(source, int(i))
        for key, values in chunk.items():
          if not filled:
            joined[key] = np.empty((size, *values.shape[1:]), values.dtype)
          joined[key][filled : filled + len(values)] = values
        filled += len(values)
      if not filled:
        return
      yield joined


def _load_next(
  source: Source, ops: Compose, shuffler: IndexShuffler, position: int
) -> tuple[np.ndarray, int | np.ndarray]:
  """Returns image and label of the next sound example of the order."""
  key = shuffler.seed, position
  for i in shuffler(position + np.arange(1, MAX_CONSECUTIVE_BAD)):
    [(data, label)] = source.read([i])
    image = _load_image(source, i, data, ops, key, allow_bad=True)
    if image is not None:
      return image, label
  raise UserError(
    f"{MAX_CONSECUTIVE_BAD} images in a row of {source.name}, split"
    f" {source.split}, cannot be decoded, or the ops fail on them: see the"
    " reason with --config.data.on_bad_image=error."
  )


def _load_image(
  source: Source,
  i: int,
  data: bytes,
  ops: Compose,
  key: tuple[int, int],
  *,
  allow_bad: bool,
) -> np.ndarray | None:
  """Decodes and augments an image; returns None for a bad one if `allow_bad`.

  `key` is the seed and the position of its random generator.
  """
  try:
    return ops.load(data, source.max_pixels, augmentation_rng(*key))
  except ValueError as error:
    if allow_bad:
      return None
    raise UserError(
      f"Example {i} of {source.name}, split {source.split}"
      f" ({source.locate(i)}): {error} Mend the image, or leave out such images"
      " with --config.data.on_bad_image=replace."
    ) from error


def _stack(
  images: list[np.ndarray],
  labels: list[int | np.ndarray],
  positions: np.ndarray,
  bad: list[int],
) -> Arrays:
  return {
    "image": np.stack(images),
    "label": np.array(labels, np.int32),
    "position": positions,
    "bad": np.array(bad, np.int64),
  }


class BadImages:
  """Counts the images that could not be used, by split and example."""

  def __init__(self):
    self._splits = collections.defaultdict(collections.Counter)

  def add(self, source: Source, i: int) -> None:
    """Counts example `i` of a source."""
    split = f"{source.name}, split {source.split}"
    self._splits[split][f"example {i} ({printable(source.locate(i))})"] += 1

  @property
  def total(self) -> int:
    """Number of occurrences in all splits."""
    return sum(counts.total() for counts in self._splits.values())

  def report(self) -> str:
    """Returns the counts and the first examples of each split; "" if none."""
    lines = []
    for split, counts in self._splits.items():
      lines.append(
        f"{len(counts):,} image{'s' * (len(counts) > 1)} of {split}, could not"
        " be decoded, or the ops failed on them; they came up"
        f" {counts.total():,} times. Training takes the next of the order in"
        " their place, evaluation leaves them out:"
      )
      lines += [f"  {example}" for example in list(counts)[:MAX_LISTED]]
      if len(counts) > MAX_LISTED:
        lines.append(f"  and {len(counts) - MAX_LISTED:,} more")
    return "\n".join(lines)
