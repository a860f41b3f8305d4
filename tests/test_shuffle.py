# SPDX-License-Identifier: Apache-2.0
"""The order of examples: a permutation for every seed and epoch."""

import numpy as np
import pytest
import scipy.stats

from mixer.data.shuffle import IndexShuffler, feistel_permutation


@pytest.mark.parametrize("examples", [1, 10, 1437])
def test_each_epoch_is_another_permutation(examples):
  epochs = IndexShuffler(examples, seed=3)(np.arange(4 * examples)).reshape(
    4, examples
  )

  for epoch in epochs:
    assert sorted(epoch) == list(range(examples))
  if examples > 1:
    assert len(np.unique(epochs, axis=0)) == 4


def test_every_example_comes_first_equally_often():
  first = [IndexShuffler(8, seed)(np.arange(8 * 50))[::8] for seed in range(50)]

  counts = np.bincount(np.concatenate(first), minlength=8)

  assert counts.min() > 312 - 80
  assert counts.max() < 312 + 80


def test_neighbouring_seeds_share_no_epoch():
  orders = [IndexShuffler(100, seed)(np.arange(500)) for seed in range(4)]

  epochs = np.concatenate(orders).reshape(20, 100)

  assert len(np.unique(epochs, axis=0)) == 20


@pytest.mark.parametrize("examples", [2, 5, 1000, 4096, 65_537])
def test_an_order_without_a_table_has_every_example_once(examples):
  places = np.arange(examples)

  ids = feistel_permutation(places, examples, np.random.SeedSequence([3, 1]))

  np.testing.assert_array_equal(np.sort(ids), places)


def test_orders_without_a_table_are_as_even_as_chance():
  """Chi-squared of two neighbours' places, in 10 x 10 parts of 100."""
  seeds = (np.random.SeedSequence([seed, 0]) for seed in range(2_000))
  neighbours = np.arange(41, 43)
  pairs = [feistel_permutation(neighbours, 100, seed) for seed in seeds]
  counts, *_ = np.histogram2d(*np.transpose(pairs), bins=range(0, 101, 10))

  # Two are never at the same place.
  places = np.full((10, 10), 100) - 10 * np.eye(10)
  expected = 2_000 * places / places.sum()

  assert scipy.stats.chisquare(counts, expected, axis=None).pvalue > 1e-3


def test_billions_of_examples_need_no_table():
  billions = IndexShuffler(3_000_000_000, seed=0)
  last = np.arange(3_000_000_000 - 4096, 3_000_000_000 + 4096)

  ids = billions(last)

  assert len(np.unique(ids[:4096])) == len(np.unique(ids[4096:])) == 4096
  assert ids.max() < 3_000_000_000
  np.testing.assert_array_equal(billions(last[100:200]), ids[100:200])
  # Neighbours are as far apart as two of a billion are on average: a third.
  assert np.abs(np.diff(ids)).mean() / 3e9 == pytest.approx(1 / 3, abs=0.02)
  assert ids[:3].tolist() == [886943175, 2046816953, 2799677514]


def test_the_order_of_a_seed_never_changes():
  order = IndexShuffler(10, seed=0)(np.arange(20))

  assert order[:10].tolist() == [6, 1, 0, 5, 3, 8, 7, 9, 2, 4]
  assert order[10:].tolist() == [7, 3, 5, 0, 1, 4, 6, 8, 9, 2]


@pytest.mark.parametrize("repeats", [1, 2, 3, 6])
def test_a_batch_is_copies_of_the_next_examples(repeats):
  order = IndexShuffler(10, seed=4)(np.arange(60))
  ids = IndexShuffler(10, 4, batch=6, repeats=repeats)(np.arange(60))

  parts = np.split(order[: 60 // repeats], 10)
  expected = np.concatenate([np.tile(part, repeats) for part in parts])
  np.testing.assert_array_equal(ids, expected)
  later = IndexShuffler(10, 4, batch=6, repeats=repeats)(np.arange(33, 50))
  np.testing.assert_array_equal(later, expected[33:50])
