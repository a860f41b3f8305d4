# SPDX-License-Identifier: Apache-2.0
"""Figures 5 and 6: hidden units of token-mixing MLPs as pictures.

  python -m mixer paper figure 5 --init=imagenet1k/Mixer-B_16
  python -m mixer paper figure 6 --init=imagenet1k/Mixer-B_16 \\
    --init=imagenet21k/Mixer-B_16 --init=sam/Mixer-B_16

Figure 5 has a row for each model and a panel for each of the first three
blocks, with pairs at equal distances in the order if a block has more than
--units units. Figure 6 has a column for each model and a row for each of the
first two blocks, with all units.

The input weights of a hidden unit are a picture over the tokens: a column of
`token_mixing/Dense_0/kernel` [S, D_S], in rows and columns of the token grid.
The paper orders these pictures (figures 5 and 6, appendix D): low frequency
first, each followed by the one closest to its negative. It defines neither
word. Here

- frequency is the mean spatial frequency of the picture's two-dimensional DCT,
  weighted with the energy of its coefficients, in cycles per token: 0 for a
  constant picture; with 14 x 14 tokens 0.62 for a chessboard, whose energy is
  not all in the last coefficient, and at most 0.66. (The DCT, and not the DFT,
  because opposite edges of a picture are unrelated.)
- distance is the angle: pictures are compared at the same norm, since nearly
  empty ones would otherwise be close to everything.

The paper's models were trained on JFT-300M, and their weights never published.
Letters in shape comments: h w rows and columns of tokens, s = h * w, d hidden
units.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import fft

from mixer import weights
from mixer.errors import UserError
from mixer.tools.paper.figures import charts, mosaic
from mixer.weights import LoadedWeights, grid_shape

HOW = (
  "red: positive weights, blue: negative, each picture scaled by its own "
  "largest; next to each unit the one closest to its negative; low frequency "
  "first"
)
_PIXELS = 28  # approximate height of a unit there
_ORDINALS = ("first", "second", "third")


def draw_figure5(
  init: Sequence[str], blocks: list[int] | None, units: int, out: str | Path
) -> str:
  """Draws figure 5; returns the names of models and files, for a sentence."""
  charts.check_out(out)
  models, blocks = _read(init, blocks, 3)
  rows = [[_panel(x, block, most=units) for block in blocks] for x in models]
  note = f"Paper, figure 5; {HOW}."
  return mosaic.draw_panels("Token-mixing units", init, note, rows, out)


def draw_figure6(
  init: Sequence[str], blocks: list[int] | None, out: str | Path
) -> str:
  """Draws figure 6; returns the names of models and files, for a sentence."""
  charts.check_out(out)
  models, blocks = _read(init, blocks, 2)
  # Units of all grids are as high as the highest, so that their rows align.
  heights = [read_units(model, blocks[0]).shape[1] for model in models]
  cell = max(h * mosaic.choose_zoom(h, _PIXELS) for h in heights)
  options = {"pixels": _PIXELS, "cell": cell, "ratio": 1.3}
  rows = [[_panel(x, block, **options) for x in models] for block in blocks]
  note = f"Paper, figure 6; {HOW}."
  return mosaic.draw_panels("All token-mixing units", init, note, rows, out)


def _read(
  init: Sequence[str], blocks: list[int] | None, most: int
) -> tuple[list[LoadedWeights], list[int]]:
  """Reads weights; returns them and `blocks`, or the first that all have."""
  checkpoints = [weights.read(name) for name in init]
  first = min((blocks_of(each.params)[:most] for each in checkpoints), key=len)
  return checkpoints, blocks or first or [0]


def _panel(checkpoint: LoadedWeights, block: int, **options) -> mosaic.Panel:
  sheet, caption = unit_mosaic(checkpoint, block, **options)
  name = mosaic.short_name(checkpoint.name)
  return mosaic.Panel(f"{name}\n{block_name(block)}\n{caption}", sheet)


def block_name(block: int) -> str:
  """Returns a title such as "MixerBlock_0, the first token-mixing MLP"."""
  ordinal = _ORDINALS[block] if block < len(_ORDINALS) else f"{block + 1}th"
  return f"MixerBlock_{block}, the {ordinal} token-mixing MLP"


def unit_mosaic(
  checkpoint: LoadedWeights,
  block: int,
  most: int | None = None,
  *,
  pixels: int = 42,
  cell: int = 0,
  ratio: float = 0.6,
) -> tuple[np.ndarray, str]:
  """Draws a block's units in opposite pairs, from left to right.

  Args:
    checkpoint: weights of a Mixer.
    block: number of the block, from 0.
    most: maximum number of units, see `some_pairs`; None: all.
    pixels: approximate height of a unit's picture.
    cell: minimum height of a unit's picture, with background around it.
    ratio: approximate width of the mosaic divided by its height.

  Returns:
    float [h, w, 3], and a caption such as "384 units, 14 x 14 tokens each".
  """
  units = read_units(checkpoint, block)  # d h w
  order = in_opposite_pairs(units)
  d, h, w = units.shape
  count = f"{d:,} units"
  if most is not None and most < d:
    order = some_pairs(order, most)
    count = f"{len(order):,} of {count}"
  sheet = mosaic.make_mosaic(
    mosaic.signed_colors(units[order]),
    mosaic.choose_columns(len(order), (h, w), ratio),
    zoom=mosaic.choose_zoom(h, pixels),
    cell=cell,
    pairs=True,
  )
  return sheet, f"{count}, {h} x {w} tokens each"


def blocks_of(params: dict) -> list[int]:
  """Returns the numbers of the blocks with token mixing, of any model."""
  return sorted(
    int(name.removeprefix("MixerBlock_"))
    for name, part in params.items()
    if name.startswith("MixerBlock_") and "token_mixing" in part
  )


def read_units(checkpoint: LoadedWeights, block: int) -> np.ndarray:
  """Returns a block's units, float64 [d, h, w], in the order of the weights."""
  blocks = blocks_of(checkpoint.params)
  if block not in blocks:
    place, advice = "", "the weights of a Mixer"
    if blocks:
      place = f" in MixerBlock_{block}"
      advice = f"one of its blocks, 0 to {blocks[-1]}"
    raise UserError(
      f"{checkpoint.name} has no token-mixing units{place}, which this figure "
      f"shows: name {advice}."
    )
  mixing = checkpoint.params[f"MixerBlock_{block}"]["token_mixing"]
  kernel = np.asarray(mixing["Dense_0"]["kernel"], np.float64)  # s d
  check_finite(checkpoint, kernel)
  try:
    grid = grid_shape(checkpoint.params, checkpoint.image_size)
    return kernel.T.reshape(kernel.shape[1], *grid)  # d h w
  except ValueError as error:
    raise UserError(
      f"{checkpoint.name} has token mixing of shape {kernel.shape}, which does "
      "not say how many rows and columns of tokens there are: name the folder "
      "of a Mixer's run."
    ) from error


def check_finite(checkpoint: LoadedWeights, kernel: np.ndarray) -> None:
  """Raises a UserError if the weights to draw are not finite."""
  if not np.isfinite(kernel).all():
    raise UserError(
      f"{checkpoint.name} has weights that are not finite: take an earlier "
      "checkpoint."
    )


def frequencies(pictures: np.ndarray) -> np.ndarray:
  """Returns the mean spatial frequencies [n], in cycles per token (or pixel).

  Args:
    pictures: [n, h, w], or [n, h, w, channels], whose energy is summed; the
      frequency of an all-zero picture is infinity, so that it is sorted last.
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

  Repeatedly takes the unit of the lowest frequency among those left, and the
  unit closest to its negative.

  Args:
    pictures: [d, h, w].

  Returns:
    int [d], a permutation; positions 2 i and 2 i + 1 are a pair, but for the
      last one if d is odd.
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
    units: maximum number; at least a pair is taken.
  """
  order = np.asarray(order)
  pairs = -(-len(order) // 2)
  count = min(max(units // 2, 1), pairs)
  chosen = np.linspace(0, pairs - 1, count).round().astype(int)
  return np.concatenate([order[2 * pair : 2 * pair + 2] for pair in chosen])
