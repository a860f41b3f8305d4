# SPDX-License-Identifier: Apache-2.0
"""The fixed permutations of figure 4 as ops of a recipe."""

import itertools

import numpy as np
import pytest

from mixer.data import preprocess
from mixer.errors import UserError

# Of seed 0: orders of 8 patches, of the 9 pixels of a patch, of 2 x 5 pixels.
PATCHES = [6, 3, 5, 0, 7, 2, 1, 4]
WITHIN = [5, 3, 0, 1, 4, 6, 7, 8, 2]
PIXELS = [3, 4, 8, 9, 5, 2, 0, 6, 7, 1]

SPECS = ("permute_patches(4, seed=3)", "permute_pixels(3)")


def image(seed=0):
  generator = np.random.RandomState(seed)
  return generator.randint(256, size=(12, 8, 3)).astype(np.uint8)


def permuted(spec, pixels, seed=0):
  return preprocess.parse(spec)(pixels, np.random.default_rng(seed))


def patches(pixels):
  """Cuts 12 8 c into six rows of a patch's 16 pixels, by a loop."""
  corners = itertools.product(range(0, 12, 4), range(0, 8, 4))
  cut = [pixels[y : y + 4, x : x + 4] for y, x in corners]
  return np.reshape(cut, (6, 16, -1))


@pytest.mark.parametrize("spec", SPECS)
def test_all_images_are_permuted_alike_whatever_else_is_random(spec):
  """The place of a pixel says where it goes; other draws have no part in it."""
  numbers = np.arange(96).reshape(12, 8, 1)
  index = permuted(spec, numbers).ravel()

  assert sorted(index) == list(range(96))
  assert (index != numbers.ravel()).mean() > 0.5
  for seed in range(3):
    result = permuted(spec, image(seed), seed)

    np.testing.assert_array_equal(result, preprocess.take(image(seed), index))


def test_pixels_within_patches_are_permuted_alike_in_all_patches():
  pixels = image()
  before, after = patches(pixels), patches(permuted(SPECS[0], pixels))

  order = preprocess.patch_order(len(before), seed=3)
  within = preprocess.within_patch_order(4, seed=3)

  for place, source in enumerate(order):
    np.testing.assert_array_equal(after[place], before[source][within])


def test_a_permutation_of_pixels_does_not_keep_patches_together():
  numbers = np.arange(96).reshape(12, 8, 1)
  of_patch = patches(numbers)[..., 0]
  number_of = {pixel: s for s, row in enumerate(of_patch) for pixel in row}

  result = patches(permuted(SPECS[1], numbers))[..., 0]

  assert all(len({number_of[pixel] for pixel in row}) > 1 for row in result)


def test_seeds_are_other_permutations_and_stay_what_they_are():
  """Fails if NumPy ever draws otherwise: results would not be comparable."""
  pixels = image()

  for name, argument in ("permute_patches", "4, "), ("permute_pixels", ""):
    one, other = (
      permuted(f"{name}({argument}seed={seed})", pixels) for seed in (0, 1)
    )
    assert (one != other).any()
  assert preprocess.patch_order(8, seed=0).tolist() == PATCHES
  assert preprocess.within_patch_order(3, seed=0).tolist() == WITHIN
  assert preprocess.pixels_index(2, 5, seed=0).tolist() == PIXELS


def test_a_patch_that_does_not_divide_the_image_names_a_size_that_would_do():
  with pytest.raises(
    UserError, match="12 x 8 pixels into patches of 5 x 5.* to 10 x 10 first"
  ):
    permuted("permute_patches(5)", image())


def test_a_patch_has_pixels():
  with pytest.raises(UserError, match="patch must be above 0"):
    preprocess.parse("permute_patches(0)")


def test_the_size_of_permuted_images_is_known_beforehand():
  assert preprocess.output_size(
    "resize_small(32) | central_crop(24) | permute_patches(8)"
  ) == (24, 24)
  with pytest.raises(UserError, match="test image of 480 x 640.*patches of 9"):
    preprocess.output_size("permute_patches(9)")
