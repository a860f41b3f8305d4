# SPDX-License-Identifier: Apache-2.0
"""Weights for another resolution, against the model that they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SIZES, assert_close, random_params

from mixer import weights
from mixer.errors import UserError
from mixer.models import create
from mixer.models.infer import infer_model

TINY = SIZES["Mixer"]
FILE = "tests/goldens/mixer_tiny.npz"
VIT = "tests/goldens/vit_tiny.npz"


def images(rng, *size):
  return jnp.asarray(rng.uniform(-1, 1, (2, *size, 3)), jnp.float32)


def pre_logits(model, params, image):
  _, out = jax.jit(model.apply)({"params": params}, image)
  return np.asarray(out["pre_logits"])


@pytest.mark.parametrize(
  "name, fields, factor, grid",
  [
    ("Mixer", TINY, 2, (4, 4)),
    ("Mixer", TINY, 3, (4, 4)),
    ("Mixer", TINY, 2, (2, 5)),
    ("Mixer-B/32", dict(blocks=2), 2, (7, 7)),
  ],
)
@jax.default_matmul_precision("highest")
def test_the_grown_model_is_the_mean_of_the_old_one_over_tiles(
  name, fields, factor, grid
):
  small = create(name, **fields)
  height, width = (side * small.patch for side in grid)
  rng = np.random.default_rng(1)
  params = random_params(small, (height, width), scale=0.2)
  image = images(rng, height * factor, width * factor)
  tiles = [
    tile
    for row in np.split(image, factor, axis=1)
    for tile in np.split(row, factor, axis=2)
  ]

  grown = weights.grow(params, factor=factor, grid=grid)

  large = small.clone(tokens_mlp=factor**2 * small.tokens_mlp)
  expected = np.mean([pre_logits(small, params, x) for x in tiles], axis=0)
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(
    pre_logits(large, grown, image), expected, atol=1e-5
  )


def test_a_token_sees_its_own_tile_alone_and_all_of_it():
  params = weights.load(FILE)
  model = create("Mixer", **(TINY | {"tokens_mlp": 48}))
  grown = weights.grow(params, factor=2)
  image = images(np.random.default_rng(1), 64, 64)[:1]

  def first_token(image):  # of the tile at the bottom left: row 4 of 8
    return model.apply({"params": grown}, image)[1]["block01"][0, 4 * 8].sum()

  sees = np.abs(jax.jit(jax.grad(first_token))(image))[0].max(-1) > 0
  assert sees[32:, :32].all()
  assert not sees[:32].any() and not sees[32:, 32:].any()


def test_growing_by_one_and_to_the_same_tokens_changes_nothing():
  params = weights.load(FILE)

  for how in {"factor": 1}, {"tokens": (4, 4)}:
    assert_close(weights.grow(params, **how), params, rtol=1e-7)


def test_what_does_not_mix_tokens_is_left_alone():
  params = weights.load(FILE)

  for how in ({"factor": 2}, {"tokens": (6, 6)}):
    grown = weights.grow(params, **how)
    assert grown["stem"] is params["stem"]
    assert grown["head"] is params["head"]
    for part in ("LayerNorm_0", "LayerNorm_1", "channel_mixing"):
      assert grown["MixerBlock_1"][part] is params["MixerBlock_1"][part]


@pytest.mark.parametrize("side", [8, 6, 3])
def test_interpolated_units_answer_to_a_smooth_picture_as_before(side):
  """Filters and pictures that are smooth give the same sums on any grid."""
  params = weights.load(FILE)
  mixing = params["MixerBlock_0"]["token_mixing"]
  coarse = (np.arange(4) + 0.5) / 4
  fine = (np.arange(side) + 0.5) / side
  mixing["Dense_0"]["kernel"] = np.float32(
    np.outer(1 + coarse, 2 - coarse).reshape(16, 1) * np.ones(12)
  )
  mixing["Dense_1"]["kernel"] = np.ones((12, 16), np.float32)
  mixing["Dense_1"]["bias"] = np.full(16, 0.5, np.float32)

  grown = weights.grow(params, tokens=(side, side))["MixerBlock_0"]

  new = grown["token_mixing"]
  assert new["Dense_0"]["kernel"].shape == (side**2, 12)
  before = mixing["Dense_0"]["kernel"].sum(0)
  np.testing.assert_allclose(new["Dense_0"]["kernel"].sum(0), before, rtol=0.03)
  drawn = new["Dense_0"]["kernel"][:, 0].reshape(side, side)
  exact = np.outer(1 + fine, 2 - fine) * 16 / side**2
  np.testing.assert_allclose(drawn, exact, rtol=0.13)  # the edge is held
  np.testing.assert_allclose(new["Dense_1"]["kernel"], 1, rtol=1e-6)
  np.testing.assert_allclose(new["Dense_1"]["bias"], 0.5, rtol=1e-6)


@pytest.mark.parametrize(
  "family, given, words",
  [
    ("mixer", dict(factor=1.5), "factor=1.5 is no whole number.*interpolate"),
    ("mixer", dict(factor=0), "factor=0 is no whole number"),
    ("mixer", dict(), "either factor=2 or tokens"),
    ("mixer", dict(factor=2, tokens=(4, 4)), "either factor=2 or tokens"),
    ("mixer", dict(tokens=(0, 4)), "rows and columns, from 1 on"),
    ("mixer", dict(factor=1_000), "GiB.*fewer tokens"),
    ("mixer", dict(tokens=(100_000, 100_000)), "GiB.*fewer tokens"),
    ("vit", dict(tokens=(100_000, 100_000)), "GiB.*fewer tokens"),
    ("mixer", dict(factor=2, grid=(3, 5)), "3 x 5.*16 tokens"),
    ("vit", dict(factor=2), "no token-mixing MLPs to copy for every tile"),
    ("vit", dict(tokens=(3, 3), grid=(4, 5)), "are for 16 tokens"),
    ("bit", dict(tokens=(3, 3)), "width=0.5.*images of any size: only a Mixer"),
  ],
)
def test_growth_that_cannot_be_is_refused(family, given, words):
  params = weights.load(f"tests/goldens/{family}_tiny.npz")

  with pytest.raises(UserError, match=words):
    weights.grow(params, **given)


@pytest.mark.parametrize(
  "old, new, words",
  [
    ((14, 14), (24, 24), r"by 1\.714, which is no whole number.*interpolate"),
    ((14, 14), (8, 8), r"by 0\.5714"),
    ((14, 14), (28, 42), "by 2 and 3"),
  ],
)
def test_a_factor_that_is_not_whole_is_told(old, new, words):
  with pytest.raises(UserError, match=words):
    weights.integer_factor(old, new)
  assert weights.integer_factor((14, 14), (28, 28)) == 2


def position_embeddings(params):
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
  params = weights.load(VIT)
  old = position_embeddings(params)[0]

  grown = position_embeddings(weights.grow(params, tokens=tokens))[0]

  assert np.array_equal(grown[0], old[0])  # of the class token
  expected = resize_by_hand(old[1:].reshape(4, 4, 24), *tokens)
  np.testing.assert_allclose(
    grown[1:].reshape(*tokens, 24), expected, atol=1e-6
  )


def test_all_else_stays_and_the_model_takes_the_other_size():
  params = weights.load(VIT)

  grown = weights.grow(params, tokens=(3, 5))

  model = infer_model(grown)
  logits, _ = jax.jit(model.apply)({"params": grown}, np.zeros((1, 24, 40, 3)))
  assert logits.shape == (1, 7)
  assert grown["cls"] is params["cls"]
  blocks = grown["Transformer"], params["Transformer"]
  assert blocks[0]["encoderblock_1"] is blocks[1]["encoderblock_1"]


def test_without_a_class_token_every_position_is_of_the_grid():
  params = weights.load(VIT)
  encoder = dict(params["Transformer"])
  grid = position_embeddings(params)[:, 1:]
  encoder["posembed_input"] = {"pos_embedding": grid}
  params = {k: v for k, v in params.items() if k != "cls"}

  grown = weights.grow(params | {"Transformer": encoder}, tokens=(7, 7))

  expected = resize_by_hand(grid.reshape(4, 4, 24), 7, 7)
  np.testing.assert_allclose(
    position_embeddings(grown).reshape(7, 7, 24), expected, atol=1e-6
  )
