# SPDX-License-Identifier: Apache-2.0
"""A ViT's position embeddings for images of another size."""

import numpy as np
from scipy import ndimage

from mixer.weights.baseline_sizes import VitSizes

Grid = tuple[int, int]  # rows and columns of tokens


def resize_positions(
  params: dict, sizes: VitSizes, old: Grid, new: Grid
) -> dict:
  """Interpolates position embeddings, as the ViT paper does for fine-tuning.

  Bilinearly, so that the embeddings of the corners stay in the corners, as the
  authors' code does it (google-research/vision_transformer). That of the class
  token is kept.

  Args:
    params: of a ViT.
    sizes: theirs.
    old, new: grids of patches.

  Returns:
    Nested dict like `params`; all but the position embeddings are the same
    arrays.
  """
  encoder = params["Transformer"]
  [positions] = np.asarray(encoder["posembed_input"]["pos_embedding"])  # s c
  first = len(positions) - sizes.tokens  # that of the class token, or none
  grid = positions[first:].reshape(*old, -1)  # h w c
  zoom = [after / before for after, before in zip(new, old, strict=True)]
  grid = ndimage.zoom(grid, (*zoom, 1), order=1)
  resized = np.concatenate([positions[:first], grid.reshape(-1, sizes.hidden)])
  embedded = {"pos_embedding": resized[None]}  # 1 s c
  return params | {"Transformer": encoder | {"posembed_input": embedded}}
