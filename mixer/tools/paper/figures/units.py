# SPDX-License-Identifier: Apache-2.0
"""Hidden units of token-mixing MLPs as pictures, and their order.

What a hidden unit of a block's token mixing looks for is a picture over the
tokens: a column of `token_mixing/Dense_0/kernel` [S, D_S], in rows and columns
of the token grid. The paper orders these pictures (figures 5 and 6, appendix
D): low frequency first, each followed by the one closest to its negative. It
defines neither word, so that here

- frequency is the mean spatial frequency of the picture's two-dimensional DCT,
  weighted with the energy of its coefficients, in cycles per token: 0 for a
  constant picture; of 14 x 14 tokens 0.62 for a chessboard, whose energy is not
  all in the last coefficient, and 0.66 for that coefficient alone, which is the
  most. (The DCT, and not the DFT, because a picture's opposite edges have
  nothing to do with each other.)
- close is the angle: pictures are compared at the same norm, since nearly
  empty ones would else be close to everything.

Letters in shape comments: h w rows and columns of tokens, s = h * w, d hidden
units.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from scipy import fft

from mixer.errors import UserError
from mixer.weights import LoadedWeights, grid_shape


def blocks_of(params: dict) -> list[int]:
  """Numbers of the blocks with token mixing, as in MixerBlock_0; perhaps none.

  Args:
    params: nested dict of arrays, of any model.
  """
  numbers = (
    int(match[1])
    for name, part in params.items()
    if (match := re.fullmatch(r"MixerBlock_(\d+)", name))
    and "token_mixing" in part
  )
  return sorted(numbers)


def read_units(checkpoint: LoadedWeights, block: int) -> np.ndarray:
  """Takes the units' pictures out of weights.

  Args:
    checkpoint: of a Mixer.
    block: number of the block, from 0 on.

  Returns:
    float64 [d, h, w], in the order of the weights.

  Raises:
    UserError: there is no such block, there are no token-mixing units, or
      weights are not finite.
  """
  blocks = blocks_of(checkpoint.params)
  if not blocks:
    raise UserError(
      f"{checkpoint.name} has no token-mixing units, which this figure shows: "
      "name the weights of a Mixer."
    )
  if block not in blocks:
    raise UserError(
      f"{checkpoint.name} has no MixerBlock_{block}: its blocks are "
      f"{blocks[0]} to {blocks[-1]}."
    )
  mixing = checkpoint.params[f"MixerBlock_{block}"]["token_mixing"]
  kernel = np.asarray(mixing["Dense_0"]["kernel"], np.float64)  # s d
  grid = _grid(checkpoint)
  if kernel.ndim != 2 or len(kernel) != math.prod(grid):
    raise UserError(
      f"The token mixing of MixerBlock_{block} in {checkpoint.name} has shape "
      f"{kernel.shape}, which makes no pictures of {grid[0]} x {grid[1]} "
      "tokens: name the weights of a Mixer as the paper has it."
    )
  if not np.isfinite(kernel).all():
    raise UserError(
      f"{checkpoint.name} has weights that are not finite, in the token mixing "
      f"of MixerBlock_{block}: take an earlier checkpoint."
    )
  return kernel.T.reshape(-1, *grid)  # d h w


def _grid(checkpoint: LoadedWeights) -> tuple[int, int]:
  """Rows and columns of the tokens."""
  try:
    return grid_shape(checkpoint.params, checkpoint.image_size)
  except UserError as error:
    raise UserError(
      f"{checkpoint.name} does not say how many rows and columns its tokens "
      "make, which are no square: name the folder of the run it is from."
    ) from error


def frequencies(pictures: np.ndarray) -> np.ndarray:
  """Mean spatial frequencies of pictures, in cycles per token (or pixel).

  Args:
    pictures: [n, h, w], or [n, h, w, channels], whose energy is summed.

  Returns:
    [n]; an empty picture has none, and infinity stands for it: it comes last.
  """
  energy = fft.dctn(pictures, axes=(1, 2), norm="ortho") ** 2
  energy = energy.reshape(*pictures.shape[:3], -1).sum(-1)  # n h w
  # Coefficient k of m tokens makes k / 2 cycles over the m.
  down, right = (np.arange(m) / (2 * m) for m in pictures.shape[1:3])
  frequency = np.hypot(down[:, None], right)  # h w
  total = energy.sum((1, 2))
  mean = (energy * frequency).sum((1, 2)) / np.where(total > 0, total, 1.0)
  return np.where(total > 0, mean, np.inf)


def in_opposite_pairs(pictures: np.ndarray) -> np.ndarray:
  """Orders units: low frequency first, each with the closest to its negative.

  The first unit is the one of the lowest frequency of all; then comes, of all
  others, the one closest to its negative; then the one of the lowest frequency
  of those that are left, and so on.

  Args:
    pictures: [d, h, w].

  Returns:
    int [d], a permutation; each of the positions 2 i and 2 i + 1 is a pair. Of
    an odd number the last one is alone.
  """
  flat = pictures.reshape(len(pictures), -1)  # d s
  norms = np.linalg.norm(flat, axis=1, keepdims=True)
  flat = flat / np.where(norms > 0, norms, 1.0)
  cosine = flat @ flat.T  # d d
  taken = np.zeros(len(flat), bool)
  order = []
  for unit in np.argsort(frequencies(pictures), kind="stable"):
    if taken[unit]:
      continue
    taken[unit] = True
    order.append(unit)
    if not taken.all():
      opposite = np.argmin(np.where(taken, np.inf, cosine[unit]))
      taken[opposite] = True
      order.append(opposite)
  return np.array(order, int)


def some_pairs(order: Sequence[int], units: int) -> np.ndarray:
  """Takes pairs at equal distances from an order, so that all of it is seen.

  Args:
    order: from `in_opposite_pairs`.
    units: how many at most, from 2 on.
  """
  order = np.asarray(order)
  pairs = -(-len(order) // 2)
  wanted = min(units // 2, pairs)
  chosen = np.linspace(0, pairs - 1, wanted).round().astype(int)
  return np.concatenate([order[2 * pair : 2 * pair + 2] for pair in chosen])
