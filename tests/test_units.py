# SPDX-License-Identifier: Apache-2.0
"""Token-mixing units are read as pictures, and ordered low frequency first."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from mixer import weights
from mixer.errors import UserError
from mixer.tools.paper.figures import token_units as units

TINY = Path(__file__).parent / "goldens/mixer_tiny.npz"


def cosine(a, b, grid):
  """A picture of one frequency: a / 2 cycles down, b / 2 to the right."""
  (h, w), (y, x) = grid, np.mgrid[: grid[0], : grid[1]]
  return np.cos(np.pi * a * (y + 0.5) / h) * np.cos(np.pi * b * (x + 0.5) / w)


def waves(grid):
  """Pictures of cosines, no two of a frequency, and these frequencies."""
  by_frequency = {}
  for a, b in itertools.product(*map(range, grid)):
    frequency = np.hypot(a / 2 / grid[0], b / 2 / grid[1])
    by_frequency.setdefault(round(frequency, 9), cosine(a, b, grid))
  frequencies = sorted(by_frequency)
  return np.array([by_frequency[f] for f in frequencies]), frequencies


def checkpoint(params, image_size=None):
  return weights.LoadedWeights(
    params, "tanh", None, image_size, "these weights"
  )


def with_units(pictures, image_size=None, block=0, patch=4):
  """Weights of a Mixer, in so far as units are concerned."""
  kernel = np.reshape(pictures, (len(pictures), -1)).T
  return checkpoint(
    unflatten_dict(
      {
        "stem/kernel": np.zeros((patch, patch, 3, 8)),
        f"MixerBlock_{block}/token_mixing/Dense_0/kernel": kernel,
        f"MixerBlock_{block}/channel_mixing/Dense_0/kernel": np.zeros((8, 16)),
      },
      sep="/",
    ),
    image_size,
  )


@pytest.mark.parametrize("grid", [(14, 14), (6, 10)])
def test_waves_and_their_negatives_are_found_again_in_pairs(grid):
  pictures, frequencies = waves(grid)
  n = len(pictures)
  random = np.random.RandomState(0)
  strengths = random.uniform(0.1, 10, (2 * n, 1, 1))
  both = strengths * np.concatenate([pictures, -pictures])
  shuffled = random.permutation(2 * n)

  order = shuffled[units.in_opposite_pairs(both[shuffled])]

  # The i-th pair is the i-th wave and its negative, in either order.
  np.testing.assert_array_equal(order[0::2] % n, np.arange(n))
  np.testing.assert_array_equal(order[1::2], (order[0::2] + n) % (2 * n))
  np.testing.assert_allclose(
    units.frequencies(both[order]), np.repeat(frequencies, 2), atol=1e-12
  )


def test_frequency_is_a_mean_weighted_with_energy():
  grid = (8, 8)
  low, high = cosine(0, 2, grid), cosine(0, 6, grid)
  both = np.sqrt(3) * low + high  # of one norm: three quarters are low

  [found] = units.frequencies(both[None])

  assert found == pytest.approx(0.75 * 2 / 16 + 0.25 * 6 / 16)


def test_frequency_is_nothing_of_a_constant_and_most_of_the_last_cosine():
  grid = (14, 14)
  y, x = np.mgrid[:14, :14]
  chessboard = (-1.0) ** (y + x)

  found = units.frequencies(
    np.array([np.ones(grid), chessboard, cosine(13, 13, grid)])
  )

  np.testing.assert_allclose(found, [0, 0.622, 0.657], atol=5e-4)


def test_energy_of_colours_is_summed():
  grid = (8, 8)
  colours = np.stack([cosine(2, 0, grid), cosine(6, 0, grid)], axis=-1)

  [found] = units.frequencies(colours[None])

  assert found == pytest.approx((2 / 16 + 6 / 16) / 2)


@pytest.mark.parametrize("n", [1, 2, 41, 42])
def test_each_unit_comes_once_and_is_followed_by_the_closest_that_is_left(n):
  pictures = np.random.RandomState(1).randn(n, 5, 7)

  order = units.in_opposite_pairs(pictures)

  assert sorted(order) == list(range(n))
  left = set(range(n))
  frequencies = units.frequencies(pictures)
  for first, second in zip(order[0::2], order[1::2], strict=False):
    assert frequencies[first] == min(frequencies[list(left)])
    left.remove(first)

    def cosine_with(other, first=first):
      norms = np.linalg.norm(pictures[first]) * np.linalg.norm(pictures[other])
      return (pictures[first] * pictures[other]).sum() / max(norms, 1e-30)

    assert cosine_with(second) <= min(map(cosine_with, left)) + 1e-12
    left.remove(second)


def test_units_without_weights_come_last():
  pictures = np.random.RandomState(1).randn(6, 5, 7)
  pictures[[0, 4]] = 0
  pictures[[3, 5]] = -pictures[[1, 2]]

  order = units.in_opposite_pairs(pictures)

  assert list(order[4:]) == [0, 4]


def test_some_pairs_are_whole_and_from_all_of_the_order():
  order = np.arange(100)[::-1]

  some = units.some_pairs(order, 10)

  assert len(some) == 10
  np.testing.assert_array_equal(some[0::2], some[1::2] + 1)
  assert {99, 0} <= set(some)
  np.testing.assert_array_equal(units.some_pairs(order, 1000), order)
  np.testing.assert_array_equal(units.some_pairs(order[:5], 9), order[:5])


def test_a_unit_is_a_picture_of_rows_and_columns_of_tokens():
  pictures = np.arange(3 * 2 * 5).reshape(3, 2, 5)

  read = units.read_units(with_units(pictures, (8, 20)), 0)

  np.testing.assert_array_equal(read, pictures)


def test_grown_units_look_at_one_tile_each():
  tiny = weights.read(TINY)
  grown = dataclasses.replace(
    tiny, params=weights.grow(tiny.params, factor=2), image_size=(64, 64)
  )

  small, large = units.read_units(tiny, 1), units.read_units(grown, 1)

  d, h, w = small.shape
  assert large.shape == (4 * d, 2 * h, 2 * w)
  for tile, (top, left) in enumerate([(0, 0), (0, w), (h, 0), (h, w)]):
    expected = np.zeros((d, 2 * h, 2 * w))
    expected[:, top : top + h, left : left + w] = small
    np.testing.assert_array_equal(large[tile * d : tile * d + d], expected)


def test_what_has_no_units_to_show_is_explained():
  no_mixer = checkpoint({"embedding": {"kernel": np.zeros((8, 8, 3, 4))}})
  assert units.blocks_of(no_mixer.params) == []
  with pytest.raises(UserError, match="has no token-mixing units"):
    units.read_units(no_mixer, 0)

  with pytest.raises(UserError, match="no MixerBlock_7: .* 0 to 1"):
    units.read_units(weights.read(TINY), 7)

  with pytest.raises(UserError, match="which are no square: name the folder"):
    units.read_units(with_units(np.zeros((4, 2, 5))), 0)

  with pytest.raises(UserError, match="makes no pictures of 2 x 2 tokens"):
    units.read_units(with_units(np.zeros((4, 2, 5)), (8, 8)), 0)

  with pytest.raises(UserError, match="not finite"):
    units.read_units(with_units(np.full((4, 3, 3), np.nan)), 0)
