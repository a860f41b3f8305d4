# SPDX-License-Identifier: Apache-2.0
"""Fixed permutations of an image's pixels, for the paper's figure 4."""

import functools

import numpy as np

from mixer.data.pp_parser import op
from mixer.errors import UserError

# Streams of a seed, by purpose: entropy next to the seed.
_PATCHES, _WITHIN, _PIXELS = range(3)


def permutation(n: int, seed: int, stream: int) -> np.ndarray:
  """Returns a random permutation of range(n), int64 [n]."""
  # RandomState, because NumPy promises never to change its draws.
  bits = np.random.MT19937(np.random.SeedSequence([seed, stream]))
  return np.random.RandomState(bits).permutation(n)


def patch_order(patches: int, seed: int) -> np.ndarray:
  """Returns the permutation of an image's patches, counted row by row."""
  return permutation(patches, seed, _PATCHES)


def within_patch_order(patch: int, seed: int) -> np.ndarray:
  """Returns the permutation of the pixels of every patch of this side."""
  return permutation(patch**2, seed, _WITHIN)


@functools.lru_cache(maxsize=16)
def patches_index(height: int, width: int, patch: int, seed: int) -> np.ndarray:
  """Permutes patches, and the pixels within each of them alike.

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
  return pixels.ravel()


@functools.lru_cache(maxsize=16)
def pixels_index(height: int, width: int, seed: int) -> np.ndarray:
  """Permutes all pixels of an image, int64 [height * width]."""
  return permutation(height * width, seed, _PIXELS)


def take(image: np.ndarray, index: np.ndarray) -> np.ndarray:
  """Applies an index of pixels to an image [h, w, c]."""
  h, w, c = image.shape
  return image.reshape(h * w, c)[index].reshape(h, w, c)


@op("permute_patches")
class PermutePatches:
  """Permutes the patches, and the pixels within every patch alike.

  `patch` is a patch's side in pixels. The permutation follows from the seed: it
  is the same for all images.
  """

  patch: int
  seed: int = 0

  def __post_init__(self) -> None:
    if self.patch < 1:
      raise ValueError("patch must be above 0")

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    h, w = image.shape[:2]
    return take(image, patches_index(h, w, self.patch, self.seed))


@op("permute_pixels")
class PermutePixels:
  """Permutes all pixels; likewise the same for all images of one size."""

  seed: int = 0

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return take(image, pixels_index(*image.shape[:2], self.seed))
