# SPDX-License-Identifier: Apache-2.0
"""Fixed permutations of an image's pixels (paper, section 3.4 and figure 4).

A permutation is an int64 index [n] into what it permutes: place i gets what was
at index[i]. It follows from a seed alone: the same for all images, in training
and in evaluators, on every machine.
"""

import functools

import numpy as np

from mixer.errors import UserError

# What a seed's streams are for, as entropy beside the seed.
_PATCHES, _WITHIN, _PIXELS = range(3)


def permutation(n: int, seed: int, stream: int) -> np.ndarray:
  """A random permutation of range(n), int64 [n]."""
  # RandomState, because NumPy promises never to change what it draws.
  bits = np.random.MT19937(np.random.SeedSequence([seed, stream]))
  return np.random.RandomState(bits).permutation(n)


def patch_order(patches: int, seed: int) -> np.ndarray:
  """Which of an image's patches, counted row by row, comes to each place."""
  return permutation(patches, seed, _PATCHES)


def within_patch_order(patch: int, seed: int) -> np.ndarray:
  """Which of a patch's pixels, counted row by row, comes to each place.

  The same for all patches.

  Args:
    patch: side in pixels.
    seed: of the permutation.
  """
  return permutation(patch**2, seed, _WITHIN)


@functools.lru_cache(maxsize=16)
def patches_index(height: int, width: int, patch: int, seed: int) -> np.ndarray:
  """Permutes the patches of an image, and the pixels within each of them alike.

  Args:
    height, width: of the image in pixels.
    patch: side of a patch in pixels; divides both.
    seed: of both permutations.

  Returns:
    int64 [height * width], of pixels counted row by row.

  Raises:
    UserError: the patch does not divide the image.
  """
  if height % patch or width % patch:
    near = [max(round(side / patch), 1) * patch for side in (height, width)]
    raise UserError(
      f"permute_patches cannot cut an image of {height} x {width} pixels into "
      f"patches of {patch} x {patch}: crop or resize it to {near[0]} x "
      f"{near[1]} first."
    )
  h, w = height // patch, width // patch
  pixels = np.arange(height * width).reshape(h, patch, w, patch)
  tokens = pixels.transpose(0, 2, 1, 3).reshape(h * w, patch**2)  # s p*p
  tokens = tokens[patch_order(h * w, seed)]
  tokens = tokens[:, within_patch_order(patch, seed)]
  pixels = tokens.reshape(h, w, patch, patch).transpose(0, 2, 1, 3)
  return _frozen(pixels.ravel())


@functools.lru_cache(maxsize=16)
def pixels_index(height: int, width: int, seed: int) -> np.ndarray:
  """Permutes all pixels of an image, int64 [height * width]."""
  return _frozen(permutation(height * width, seed, _PIXELS))


def take(image: np.ndarray, index: np.ndarray) -> np.ndarray:
  """Applies an index of pixels to an image [h, w, c]."""
  h, w, c = image.shape
  return image.reshape(h * w, c)[index].reshape(h, w, c)


def _frozen(index: np.ndarray) -> np.ndarray:
  """What all images share must not be written to."""
  index = np.ascontiguousarray(index)
  index.flags.writeable = False
  return index
