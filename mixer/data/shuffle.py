# SPDX-License-Identifier: Apache-2.0
"""The global order of examples, and the random generator of each position."""

import dataclasses
import functools
import threading

import numpy as np

# Up to this size an epoch's order is a table: 512 MiB and 15 s at most. To
# shuffle a larger one holds the interpreter lock for minutes, longer than the
# heartbeat timeout of the other hosts.
MAX_TABLE_SIZE = 2**27
_ROUNDS = 8  # twice the four that make a Feistel network pseudo-random


@dataclasses.dataclass(frozen=True)
class IndexShuffler:
  """Maps positions of the endless shuffled order to example ids.

  Grain's shuffle (0.2.18) shuffles epoch e by the number seed + e, so that
  epoch 1 of seed 0 is epoch 0 of seed 1.

  Attributes:
    examples: number of examples in an epoch.
    seed: of the order, 0 or more.
    batch: positions of a batch.
    repeats: times that each example of a batch is in it, a divisor of it
      (repeated augmentation, arXiv 1901.09335). A batch is then that many
      copies, one after the other, of the next batch / repeats examples of the
      order: neighbours, which mixup mixes, are different examples.
  """

  examples: int
  seed: int
  batch: int = 1
  repeats: int = 1

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """Maps int64 positions [n] to int64 example ids [n]."""
    if self.repeats > 1:
      steps, rows = np.divmod(positions, self.batch)
      different = self.batch // self.repeats
      positions = steps * different + rows % different
    epochs, places = np.divmod(positions, self.examples)
    ids = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
      inside = epochs == epoch
      ids[inside] = self._epoch_ids(epoch, places[inside])
    return ids

  def _epoch_ids(self, epoch: int, places: np.ndarray) -> np.ndarray:
    """Maps places [n] in an epoch's order to example ids [n]."""
    if self.examples > MAX_TABLE_SIZE:
      seed = np.random.SeedSequence([self.seed, epoch])
      return feistel_permutation(places, self.examples, seed)
    with _TABLE_LOCK:  # or each worker thread would compute the table
      return _epoch_table(self.examples, self.seed, epoch)[places]


_TABLE_LOCK = threading.Lock()


@functools.lru_cache(maxsize=2)  # workers may be in two epochs at once
def _epoch_table(examples: int, seed: int, epoch: int) -> np.ndarray:
  # RandomState, because NumPy promises never to change its draws.
  bits = np.random.MT19937(np.random.SeedSequence([seed, epoch]))
  # uint32 halves the memory of the table, which every worker process has.
  return np.random.RandomState(bits).permutation(examples).astype("u4")


def feistel_permutation(
  places: np.ndarray, examples: int, seed: np.random.SeedSequence
) -> np.ndarray:
  """Maps places by a pseudo-random permutation of range(examples).

  A Feistel network permutes the numbers of 2 k bits, at most four times as many
  as the examples; values outside the range are permuted again until they fall
  inside (cycle walking: Black and Rogaway, Ciphers with Arbitrary Finite
  Domains, 2002).

  Args:
    places: int64 [n], each in [0, examples).
    examples: number of examples, at least 2.
    seed: of the permutation.

  Returns:
    int64 [n], each in [0, examples).
  """
  bits = np.uint64(((examples - 1).bit_length() + 1) // 2)
  low = (np.uint64(1) << bits) - np.uint64(1)
  keys = seed.generate_state(_ROUNDS, np.uint64)
  ids = places.astype(np.uint64)
  outside = np.arange(len(ids))
  while len(outside):
    left, right = ids[outside] >> bits, ids[outside] & low
    for key in keys:
      left, right = right, left ^ (_hash(right ^ key) & low)
    ids[outside] = (left << bits) | right
    outside = outside[ids[outside] >= examples]
  return ids.astype(np.int64)


def _hash(x: np.ndarray) -> np.ndarray:
  """SplitMix64's mixing of uint64 [n] (Steele, Lea and Flood, 2014)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def augmentation_rng(seed: int, position: int) -> np.random.Generator:
  """Returns the generator that augments the example at a position."""
  return np.random.Generator(np.random.Philox(key=[seed, position]))
