# SPDX-License-Identifier: Apache-2.0
"""A ViT's weights at another resolution."""

import jax
import numpy as np
import pytest

from mixer import weights
from mixer.errors import UserError
from mixer.models.infer import infer_model

FILE = "tests/goldens/vit_tiny.npz"


def positions(params):
  return params["Transformer"]["posembed_input"]["pos_embedding"]


def resize_by_hand(grid, rows, columns):
  """Bilinear, with the corners in the corners: one axis after the other."""
  for axis, wanted in enumerate((rows, columns)):
    old = grid.shape[axis]
    places = np.linspace(0, old - 1, wanted)
    grid = np.apply_along_axis(
      lambda line, p=places, n=old: np.interp(p, np.arange(n), line), axis, grid
    )
  return grid


@pytest.mark.parametrize("tokens", [(8, 8), (6, 5), (3, 2), (1, 4)])
def test_the_grids_part_is_resized_bilinearly_and_the_tokens_kept(tokens):
  params = weights.load(FILE)
  old = positions(params)[0]

  grown = positions(weights.grow(params, tokens=tokens))[0]

  assert np.array_equal(grown[0], old[0])  # of the class token
  expected = resize_by_hand(old[1:].reshape(4, 4, 24), *tokens)
  np.testing.assert_allclose(
    grown[1:].reshape(*tokens, 24), expected, atol=1e-6
  )


def test_all_else_stays_and_the_model_takes_the_other_size():
  params = weights.load(FILE)

  grown = weights.grow(params, tokens=(3, 5))

  model = infer_model(grown)
  logits, _ = jax.jit(model.apply)({"params": grown}, np.zeros((1, 24, 40, 3)))
  assert logits.shape == (1, 7)
  assert grown["cls"] is params["cls"]
  blocks = grown["Transformer"], params["Transformer"]
  assert blocks[0]["encoderblock_1"] is blocks[1]["encoderblock_1"]


def test_without_a_class_token_every_position_is_of_the_grid():
  params = weights.load(FILE)
  encoder = dict(params["Transformer"])
  grid = positions(params)[:, 1:]
  encoder["posembed_input"] = {"pos_embedding": grid}
  params = {k: v for k, v in params.items() if k != "cls"}

  grown = weights.grow(params | {"Transformer": encoder}, tokens=(7, 7))

  expected = resize_by_hand(grid.reshape(4, 4, 24), 7, 7)
  np.testing.assert_allclose(
    positions(grown).reshape(7, 7, 24), expected, atol=1e-6
  )


@pytest.mark.parametrize(
  "given, words",
  [
    (dict(factor=2), "no token-mixing MLPs to copy for every tile"),
    (dict(tokens=(0, 3)), "rows and columns, from 1 on"),
    (dict(tokens=(3, 3), grid=(4, 5)), "are for 16 tokens"),
  ],
)
def test_what_a_vit_does_not_do_is_refused(given, words):
  with pytest.raises(UserError, match=words):
    weights.grow(weights.load(FILE), **given)


def test_a_bit_has_nothing_to_grow():
  with pytest.raises(UserError, match="width=0.5.*any size as it is"):
    weights.grow(weights.load("tests/goldens/bit_tiny.npz"), tokens=(3, 3))
