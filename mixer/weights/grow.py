# SPDX-License-Identifier: Apache-2.0
"""Weights for another resolution, which is another number of tokens.

In a Mixer only the token-mixing MLPs depend on the number of tokens: their
first layer maps the S tokens to D_S hidden units, their second one back. In a
ViT only the position embeddings do.

Letters in shape comments: h w rows and columns of tokens, s = h * w tokens in
row-major order, c channels, d hidden units, t tiles.
"""

import math

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mixer.errors import UserError
from mixer.models.base import TokenModel
from mixer.models.infer import describe_params, infer, infer_image_size
from mixer.models.vit import VisionTransformer
from mixer.weights.io import MAX_BYTES

Grid = tuple[int, int]  # rows and columns of tokens


def grid_shape(params: dict, image_size: Grid | None = None) -> Grid:
  """Returns the rows and columns of the tokens that weights are for.

  Args:
    params: of a Mixer or a ViT, whose class token does not count.
    image_size: height and width in pixels that they are for, if known; None
      means square images.

  Raises:
    UserError: the weights are of neither, or the number of tokens is no square.
  """
  model = _token_model(params)
  image_size = image_size or infer_image_size(params)
  if image_size is None:
    raise UserError(
      f"These weights are for {model.trained_tokens(params)} tokens, which are "
      "no square: give their rows and columns with grid=(rows, columns)."
    )
  return image_size[0] // model.patch, image_size[1] // model.patch


def _token_model(params: dict) -> TokenModel:
  model = infer(params)
  if not isinstance(model, TokenModel):
    raise UserError(
      f"These weights are of {describe_params(params)}: only a Mixer's and a "
      "ViT's grow."
    )
  return model


def integer_factor(old: Grid, new: Grid) -> int:
  """Returns the K of appendix C, by which both sides of a token grid grow.

  Raises:
    UserError: it is not an integer.
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
  """Grows weights to images of another size.

  With `factor`, as the paper does (section 3, appendix C): a copy of the old
  token-mixing MLPs mixes each of the K x K tiles of the larger image by itself;
  fine-tuning then joins the tiles. D_S becomes K * K times as large. The grown
  model's pre_logits are the mean of those that the old model gives for the
  K * K tiles.

  With `tokens`, beyond the paper: the input and output weights of a hidden unit
  are pictures over the tokens; they are resized to the new grid, bilinearly,
  and D_S stays. A ViT has no tiles: its position embeddings are resized, as
  the ViT paper does.

  Args:
    params: of a Mixer or a ViT, from `load`.
    factor: K, an integer: 2 for 448 px instead of 224.
    tokens: new rows and columns, such as (24, 24).
    grid: old rows and columns; None means a square.

  Returns:
    Nested dict like `params`; all but the token-mixing MLPs, or the position
    embeddings, are the same arrays.

  Raises:
    UserError: the factor is no integer or not for a Mixer, both or neither are
      given, or the weights are of another family.
  """
  if (factor is None) == (tokens is None):
    raise UserError("Give grow either factor=2 or tokens=(24, 24).")
  model = _token_model(params)
  old = grid_shape(params) if grid is None else tuple(grid)
  if factor is not None and (factor != int(factor) or factor < 1):
    raise UserError(
      f"factor={factor} is no whole number from 1 on, as the paper's growth "
      "needs: give tokens=(rows, columns) to interpolate, which is beyond the "
      "paper."
    )
  trained = model.trained_tokens(params)
  if math.prod(old) != trained:
    raise UserError(
      f"grid={old} makes {old[0]} x {old[1]} tokens, but these weights are for "
      f"{trained} tokens."
    )
  if tokens is not None and min(tokens) < 1:
    raise UserError(f"tokens={tokens} must be rows and columns, from 1 on.")
  times = factor**4 if factor else math.prod(tokens) / trained
  size = times * sum(
    array.nbytes
    for name, array in flatten_dict(params, sep="/").items()
    if "token_mixing" in name or "posembed" in name
  )
  if size > MAX_BYTES:
    raise UserError(
      f"The grown weights would take {size / 2**30:,.0f} GiB, and no model "
      f"here takes more than {MAX_BYTES / 2**30:g}: ask for fewer tokens."
    )
  if isinstance(model, VisionTransformer):
    if factor is not None:
      raise UserError(
        "A ViT has no token-mixing MLPs to copy for every tile: give "
        "tokens=(rows, columns), which interpolates its position embeddings "
        "(config.init_growth='interpolate')."
      )
    return resize_posemb(params, old, tuple(tokens))

  def change(mixing: dict) -> dict:
    if factor is not None:
      return _tile(mixing, old, int(factor))
    return _interpolate(mixing, old, tuple(tokens))

  return {
    name: part | {"token_mixing": change(part["token_mixing"])}
    if name.startswith("MixerBlock_")
    else part
    for name, part in params.items()
  }


def resize_posemb(params: dict, old: Grid, new: Grid) -> dict:
  """Resizes a ViT's position embeddings, as the ViT paper does.

  Bilinear, with the corners' embeddings staying in the corners, as in the
  authors' code (google-research/vision_transformer). The class token's is kept.

  Args:
    params: of a ViT.
    old, new: grids of patches.
  """
  # Here, because the import takes a tenth of a second.
  from scipy import ndimage

  encoder = params["Transformer"]
  [positions] = np.asarray(encoder["posembed_input"]["pos_embedding"])  # s c
  token, grid = np.split(positions, [len(positions) - math.prod(old)])
  grid = grid.reshape(*old, -1)  # h w c
  zoom = [after / before for after, before in zip(new, old, strict=True)]
  grid = ndimage.zoom(grid, (*zoom, 1), order=1)
  resized = np.concatenate([token, grid.reshape(math.prod(new), -1)])
  embedded = {"pos_embedding": resized[None]}  # 1 s c
  return params | {"Transformer": encoder | {"posembed_input": embedded}}


def _tile(mixing: dict, grid: Grid, factor: int) -> dict:
  """Puts copies of a token-mixing MLP side by side, one per tile."""
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
  """Returns [t, s] indices of the tiles' tokens in the large image."""
  (h, w), k = grid, factor
  places = np.arange(k * h * k * w).reshape(k, h, k, w)
  return places.transpose(0, 2, 1, 3).reshape(k * k, h * w)


def _interpolate(mixing: dict, old: Grid, new: Grid) -> dict:
  """Resizes the input and output weights of hidden units, as pictures."""
  first, second = mixing["Dense_0"], mixing["Dense_1"]

  def resize(pictures: np.ndarray) -> np.ndarray:  # n s -> n s'
    resized = jax.image.resize(
      pictures.reshape(-1, *old), (len(pictures), *new), "linear"
    )
    return np.asarray(resized).reshape(len(pictures), math.prod(new))

  # A hidden unit sums over the tokens: with more tokens, each counts less.
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
