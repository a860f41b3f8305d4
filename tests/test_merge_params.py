# SPDX-License-Identifier: Apache-2.0
"""Loaded weights against a model: the head, and why they do not fit."""

import numpy as np
import pytest
from small_models import SIZES

from mixer import weights
from mixer.errors import UserError
from mixer.models import create, flops

FILE = "tests/goldens/mixer_tiny.npz"


def shapes(name="Mixer", size=32, **fields):
  model = create(name, **{"num_classes": 7} | SIZES.get(name, {}) | fields)
  return flops.abstract_params(model, (size, size))


def test_a_head_is_kept_where_it_fits_else_replaced_by_zeros_and_the_bias():
  params = weights.load(FILE)

  kept, note = weights.merge_params(params, shapes())
  zeros, _ = weights.merge_params(params, shapes(), head="zeros")
  other, told = weights.merge_params(
    params, shapes(num_classes=5), head_bias=-6.9
  )

  assert np.array_equal(kept["head"]["kernel"], params["head"]["kernel"])
  assert "kept" in note
  assert not zeros["head"]["kernel"].any()
  assert other["head"]["kernel"].shape == (24, 5)
  assert not other["head"]["kernel"].any()
  assert np.all(other["head"]["bias"] == np.float32(-6.9))
  assert "7 classes" in told and "(5)" in told


def test_the_hidden_layer_under_a_head_goes_with_it():
  given = weights.load(FILE) | {"pre_logits": {"bias": np.zeros(24)}}

  fitted, _ = weights.merge_params(given, shapes(num_classes=5))

  assert "pre_logits" not in fitted
  with pytest.raises(UserError, match="pre_logits/bias: .*missing in the mod"):
    weights.merge_params(given, shapes())


def test_a_long_list_ends_with_a_count_and_block_10_is_behind_block_9():
  with pytest.raises(UserError) as error:
    weights.merge_params(
      shapes("Mixer-B/16", 224), shapes("Mixer-B/16", 448, blocks=13)
    )

  first, *listed, last = str(error.value).splitlines()
  # Of each of 12 blocks, both kernels and the second bias; all of the last.
  assert len(listed) == 8 and last == "  and 40 more"
  assert [line.split("/")[0].strip() for line in listed] == [
    *3 * ["MixerBlock_0"],
    *3 * ["MixerBlock_1"],
    *2 * ["MixerBlock_2"],
  ]


@pytest.mark.parametrize(
  "name, fields, words",
  [
    ("Mixer", {}, "token_mixing/Dense_0/kernel: (16, 12) in the weights, (64"),
    ("Mixer", {"hidden": 32}, "LayerNorm_0/bias: (24,) in the weights, (32,)"),
    ("Mixer", {"blocks": 3}, "MixerBlock_2/LayerNorm_0/bias: missing in the w"),
    ("Mixer", {"blocks": 1}, "missing in the model"),
    ("Mixer", {}, "16 tokens (32 px / 8); the model is a Mixer with patch=8, "),
    ("Mixer", {}, ": grow them by 2 (config.init_growth='tiles' with config."),
    ("Mixer", {}, "config.model.tokens_mlp=48)."),
    ("ViT", {}, "64 tokens (64 px / 8): interpolate them (config.init_growth"),
    ("ViT", {"heads": 6}, "heads=6, 64 tokens"),
    ("ViT", {"pool": "mean"}, "pool='mean', 64 tokens"),
    ("BiT", {"width": 1.0}, "of any size; the model is a BiT with width=1.0"),
    ("BiT", {"image_channels": 1}, "image_channels=1, images of any size: ch"),
  ],
)
def test_a_misfit_is_told_with_shapes_models_and_remedy(name, fields, words):
  with pytest.raises(UserError) as error:
    weights.merge_params(shapes(name), shapes(name, 64, **fields))

  assert words in str(error.value)


def test_tokens_that_are_no_whole_factor_apart_are_interpolated():
  with pytest.raises(UserError, match="no whole factor.*'interpolate'"):
    weights.merge_params(shapes(), shapes(size=48))


def test_weights_of_another_model_are_named():
  vit, mixer = shapes("ViT"), shapes("Mixer-S/16", 224)

  with pytest.raises(UserError, match="of a ViT .*; the model is Mixer-S/16,"):
    weights.merge_params(vit, mixer)
  with pytest.raises(UserError, match=r"another model \(conv1, fc\)"):
    weights.merge_params({"conv1": np.zeros(1), "fc": np.zeros(1)}, mixer)


@pytest.mark.parametrize("fields", [{"num_classes": 5}, {"representation": 9}])
def test_a_head_that_alone_differs_can_be_a_new_one(fields):
  with pytest.raises(UserError, match="Only their head.*init_head='zeros'"):
    weights.merge_params(shapes("ViT"), shapes("ViT", **fields), head="keep")
