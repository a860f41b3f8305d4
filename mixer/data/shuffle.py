# SPDX-License-Identifier: Apache-2.0
"""The one global order of examples, and the randomness of each place in it."""

import functools
import threading

import numpy as np

# Up to here an epoch's order is a table: 512 MiB and 15 s at most. Beyond, to
# shuffle one holds the interpreter for minutes, in which the other hosts of a
# run would take this one for lost.
TABLE = 2**27
_ROUNDS = 8  # four make a Feistel network as good as random; twice that


class IndexShuffler:
  """Says which example stands at a position of the endless shuffled order.

  Grain's own shuffle is not used here: it derives epoch 1 of seed 0 and epoch
  0 of seed 1 from the same number, and takes milliseconds an example for data
  sets of a few dozen images.
  """

  def __init__(self, examples: int, seed: int):
    self.examples = examples
    self.seed = seed
    self._lock = threading.Lock()
    # Workers are on either side of the border between two epochs.
    self._permutation = functools.lru_cache(maxsize=2)(self._permute)

  def __reduce__(self):  # a lock cannot be sent to another process
    return IndexShuffler, (self.examples, self.seed)

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """Maps int64 positions [n] to int64 example ids [n]."""
    epochs, places = np.divmod(positions, self.examples)
    ids = np.empty_like(positions)
    for epoch in np.unique(epochs):
      inside = epochs == epoch
      ids[inside] = self.at(int(epoch), places[inside])
    return ids

  def at(self, epoch: int, places: np.ndarray) -> np.ndarray:
    """Returns the example ids at places [n] of an epoch's order, [n]."""
    if self.examples > TABLE:
      return permute(places, self.examples, self._bits(epoch))
    with self._lock:
      return self._permutation(epoch)[places]

  def _permute(self, epoch: int) -> np.ndarray:
    # RandomState, because NumPy promises never to change what it draws.
    bits = np.random.MT19937(self._bits(epoch))
    # Half the memory, which every worker process takes for itself.
    return np.random.RandomState(bits).permutation(self.examples).astype("u4")

  def _bits(self, epoch: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([self.seed, epoch])


def permute(
  places: np.ndarray, examples: int, seed: np.random.SeedSequence
) -> np.ndarray:
  """Where a pseudo-random permutation of range(examples) takes places.

  A Feistel network permutes the numbers of 2 k bits, at most four times as
  many as there are examples; what it takes too far it takes again, until it
  comes back (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).

  Args:
    places: int64 [n], each in [0, examples).
    examples: how many there are, at least 2.
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
  """Returns the randomness of the example at a position of a seed's order."""
  return np.random.Generator(np.random.Philox(key=[seed, position]))
