# SPDX-License-Identifier: Apache-2.0
"""Weights for another resolution, which is another number of tokens.

Of a Mixer only the token-mixing MLPs know how many tokens there are. Their
first layer maps the S tokens to D_S hidden units, their second one back. Of a
ViT only the position embeddings do (mixer/weights/positions.py). Letters in
shape comments: h w rows and columns of tokens, s = h * w tokens in row-major
order, d hidden units, t tiles.
"""

import math

import jax
import numpy as np

from mixer.errors import UserError
from mixer.weights.baseline_sizes import VitSizes
from mixer.weights.infer_model import read_sizes
from mixer.weights.positions import resize_positions
from mixer.weights.sizes import Sizes

MIXING = "token_mixing"
Grid = tuple[int, int]  # rows and columns of tokens


def grid_shape(params: dict, image_size: Grid | None = None) -> Grid:
  """Rows and columns of the tokens that weights were made for.

  Args:
    params: of a Mixer or a ViT, whose class token does not count.
    image_size: height and width in pixels that they were made for, if known;
      None means square images.

  Raises:
    UserError: they are of neither, or the tokens make no square.
  """
  sizes = _sizes(params)
  image_size = image_size or sizes.image_size
  if image_size is None:
    raise UserError(
      f"These weights are for {sizes.tokens} tokens, which make no square: say "
      "how many rows and columns with grid=(rows, columns)."
    )
  return image_size[0] // sizes.patch, image_size[1] // sizes.patch


def _sizes(params: dict) -> Sizes | VitSizes:
  sizes = read_sizes(params)
  if sizes is None:
    raise UserError(
      "These weights have no token-mixing MLPs and no position embeddings: "
      "they are neither a Mixer's nor a ViT's."
    )
  if sizes.takes_any_size:
    raise UserError(
      f"These weights are of {sizes.name}, which takes images of any size as "
      "it is: there is nothing to grow."
    )
  return sizes


def integer_factor(old: Grid, new: Grid) -> int:
  """The K of appendix C, by which both sides of a token grid grow.

  Raises:
    UserError: it is no whole number.
  """
  factor = new[0] // old[0]
  if factor < 1 or new != (factor * old[0], factor * old[1]):
    rows, columns = (f"{b / a:.4g}" for a, b in zip(old, new, strict=True))
    times = rows if rows == columns else f"{rows} and {columns}"
    raise UserError(
      f"{old[0]} x {old[1]} tokens grow to {new[0]} x {new[1]} by {times}, "
      "which is no whole number, as the paper's growth needs: take a multiple "
      "of the old resolution, or interpolate, which is beyond the paper "
      "(config.init_growth='interpolate', or grow(params, tokens=...))."
    )
  return factor


def grow(
  params: dict,
  *,
  factor: int | None = None,
  tokens: Grid | None = None,
  grid: Grid | None = None,
) -> dict:
  """Makes weights for images of another size.

  With `factor` as the paper does (section 3, appendix C): every K x K-th part
  of the larger image is mixed by itself, as before, by a copy of the old
  token-mixing MLPs; fine-tuning then joins the parts. D_S becomes K * K times
  as large. Until then the model's pre_logits are the mean of those that the
  old model gives for the K * K parts.

  With `tokens`, beyond the paper: the input and output weights of a hidden unit
  are pictures over the tokens; they are resized to the new grid, bilinearly,
  and D_S stays. A ViT, which has no tiles, has its position
  embeddings resized so, as the ViT paper does.

  Args:
    params: of a Mixer or a ViT, as `load` gives them.
    factor: K, a whole number: 2 for 448 px instead of 224.
    tokens: rows and columns wanted, such as (24, 24).
    grid: rows and columns that there are; None means a square.

  Returns:
    Nested dict like `params`; all but the token-mixing MLPs, or the position
    embeddings, are the same arrays.

  Raises:
    UserError: the factor is not whole or not for a Mixer, both or neither are
      given, or the weights are of another family.
  """
  if (factor is None) == (tokens is None):
    raise UserError("Give grow either factor=2 or tokens=(24, 24).")
  old = grid_shape(params) if grid is None else tuple(grid)
  if factor is not None and (factor != int(factor) or factor < 1):
    raise UserError(
      f"factor={factor} is no whole number from 1 on, as the paper's growth "
      "needs: give tokens=(rows, columns) to interpolate, which is beyond the "
      "paper."
    )
  sizes = _sizes(params)
  if math.prod(old) != sizes.tokens:
    raise UserError(
      f"grid={old} makes {old[0]} x {old[1]} tokens, but these weights are for "
      f"{sizes.tokens} tokens."
    )
  if tokens is not None and min(tokens) < 1:
    raise UserError(f"tokens={tokens} must be rows and columns, from 1 on.")
  if isinstance(sizes, VitSizes):
    if factor is not None:
      raise UserError(
        "A ViT has no token-mixing MLPs to copy for every tile: give "
        "tokens=(rows, columns), which interpolates its position embeddings "
        "(config.init_growth='interpolate')."
      )
    return resize_positions(params, sizes, old, tuple(tokens))

  def change(mixing: dict) -> dict:
    if factor is not None:
      return _tile(mixing, old, int(factor))
    return _interpolate(mixing, old, tuple(tokens))

  return {
    name: part | {MIXING: change(part[MIXING])}
    if isinstance(part, dict) and MIXING in part
    else part
    for name, part in params.items()
  }


def _tile(mixing: dict, grid: Grid, factor: int) -> dict:
  """Copies of a token-mixing MLP side by side, one a tile."""
  places = _tile_places(grid, factor)  # t s
  t, s = places.shape
  first, second = mixing["Dense_0"], mixing["Dense_1"]
  d = len(first["bias"])
  w1 = np.zeros((t * s, t, d), np.float32)
  w2 = np.zeros((t, d, t * s), np.float32)
  b2 = np.zeros(t * s, np.float32)
  for tile, place in enumerate(places):
    w1[place, tile] = first["kernel"]
    w2[tile][:, place] = second["kernel"]
    b2[place] = second["bias"]
  return {
    "Dense_0": {
      "kernel": w1.reshape(t * s, t * d),
      "bias": np.tile(first["bias"], t),
    },
    "Dense_1": {"kernel": w2.reshape(t * d, t * s), "bias": b2},
  }


def _tile_places(grid: Grid, factor: int) -> np.ndarray:
  """[t, s]: where in the large image's row-major order a tile's token lies."""
  (h, w), k = grid, factor
  places = np.arange(k * h * k * w).reshape(k, h, k, w)
  return places.transpose(0, 2, 1, 3).reshape(k * k, h * w)


def _interpolate(mixing: dict, old: Grid, new: Grid) -> dict:
  """Resizes what hidden units look for and where they write to."""
  first, second = mixing["Dense_0"], mixing["Dense_1"]

  def resize(pictures: np.ndarray) -> np.ndarray:  # n s -> n s'
    resized = jax.image.resize(
      pictures.reshape(-1, *old), (len(pictures), *new), "linear"
    )
    return np.asarray(resized).reshape(len(pictures), math.prod(new))

  # A hidden unit sums over the tokens: of more tokens each one counts less.
  share = np.float32(math.prod(old) / math.prod(new))
  return {
    "Dense_0": {
      "kernel": resize(np.asarray(first["kernel"]).T).T * share,
      "bias": first["bias"],
    },
    "Dense_1": {
      "kernel": resize(np.asarray(second["kernel"])),
      "bias": resize(np.asarray(second["bias"])[None])[0],
    },
  }
