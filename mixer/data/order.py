# SPDX-License-Identifier: Apache-2.0
"""The one global order of examples, and the randomness of each place in it."""

import functools
import threading

import numpy as np


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
    # Workers are on either side of the border between two epochs.
    self._permutation = functools.lru_cache(maxsize=2)(self._permute)

  def __reduce__(self):  # a lock cannot be sent to another process
    return GlobalOrder, (self.examples, self.seed)

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """Maps int64 positions [n] to int64 example ids [n]."""
    epochs, places = np.divmod(positions, self.examples)
    ids = np.empty_like(positions)
    for epoch in np.unique(epochs):
      inside = epochs == epoch
      ids[inside] = self.permutation(int(epoch))[places[inside]]
    return ids

  def permutation(self, epoch: int) -> np.ndarray:
    """Returns the example ids of an epoch in order, [examples]."""
    with self._lock:
      return self._permutation(epoch)

  def _permute(self, epoch: int) -> np.ndarray:
    # RandomState, because NumPy promises never to change what it draws.
    bits = np.random.MT19937(np.random.SeedSequence([self.seed, epoch]))
    ids = np.random.RandomState(bits).permutation(self.examples)
    # Half the memory, which every worker process takes for itself.
    return ids.astype(np.uint32) if self.examples < 2**32 else ids


def augmentation_rng(seed: int, position: int) -> np.random.Generator:
  """Returns the randomness of the example at a position of a seed's order."""
  return np.random.Generator(np.random.Philox(key=[seed, position]))
