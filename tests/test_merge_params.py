# SPDX-License-Identifier: Apache-2.0
"""Loaded weights against a model: the head, and why they do not fit."""

import numpy as np
import pytest
from small_models import SIZES

from mixer import weights
from mixer.errors import UserError
from mixer.models import create, flops

TINY = SIZES["Mixer"]
FILE = "tests/goldens/mixer_tiny.npz"


def shapes(name="Mixer", size=32, **fields):
  sizes = TINY if name == "Mixer" else {}
  model = create(name, **{"num_classes": 7} | sizes | fields)
  return flops.abstract_params(model, (size, size))


def test_a_head_of_the_same_width_is_kept_unless_told_otherwise():
  params = weights.load(FILE)

  kept, note = weights.merge_params(params, shapes())
  zeros, _ = weights.merge_params(params, shapes(), head="zeros")

  assert np.array_equal(kept["head"]["kernel"], params["head"]["kernel"])
  assert "kept" in note
  assert not zeros["head"]["kernel"].any()


def test_a_head_of_another_width_is_replaced_by_zeros_and_said():
  fitted, note = weights.merge_params(weights.load(FILE), shapes(num_classes=5))

  assert fitted["head"]["kernel"].shape == (24, 5)
  assert not fitted["head"]["kernel"].any()
  assert "7 classes" in note and "(5)" in note


def test_a_new_head_has_the_models_bias():
  fitted, _ = weights.merge_params(
    weights.load(FILE), shapes(num_classes=5), head_bias=-6.9
  )

  assert np.all(fitted["head"]["bias"] == np.float32(-6.9))
  assert not fitted["head"]["kernel"].any()


def test_the_hidden_layer_under_a_head_goes_with_it():
  given = weights.load(FILE) | {"pre_logits": {"bias": np.zeros(24)}}

  fitted, _ = weights.merge_params(given, shapes(num_classes=5))

  assert "pre_logits" not in fitted
  with pytest.raises(UserError, match="pre_logits/bias: .*missing in the mod"):
    weights.merge_params(given, shapes())


@pytest.mark.parametrize(
  "options, words",
  [
    (
      dict(size=64),
      "token_mixing/Dense_0/kernel: (16, 12) in the weights, (64",
    ),
    (
      dict(hidden=32),
      "LayerNorm_0/bias: (24,) in the weights, (32,) in the model",
    ),
    (dict(blocks=3), "MixerBlock_2/LayerNorm_0/bias: missing in the weights"),
    (dict(blocks=1), "missing in the model"),
  ],
)
def test_what_does_not_fit_is_listed_with_both_shapes(options, words):
  with pytest.raises(UserError) as error:
    weights.merge_params(weights.load(FILE), shapes(**options))

  assert words in str(error.value)


def test_a_long_list_ends_with_a_count_and_block_10_is_behind_block_9():
  with pytest.raises(UserError) as error:
    weights.merge_params(B16, shapes("Mixer-B/16", 448))

  lines = str(error.value).splitlines()
  # Of each of 12 blocks, both kernels and the second bias.
  assert len(lines) == 1 + 8 + 1 and lines[-1] == "  and 28 more"
  assert [line.split("/")[0].strip() for line in lines[1:9]] == [
    *3 * ["MixerBlock_0"],
    *3 * ["MixerBlock_1"],
    *2 * ["MixerBlock_2"],
  ]


B16 = shapes("Mixer-B/16", 224, num_classes=1000)


@pytest.mark.parametrize(
  "name, size, fields, words",
  [
    (
      "Mixer-B/16",
      448,
      {},
      "for 196 tokens (224 px / 16), the model is for 784 tokens (448 px / "
      "16): grow them by 2 (config.init_growth='tiles' with "
      "config.model.tokens_mlp=1536).",
    ),
    (
      "Mixer-B/16",
      448,
      {"tokens_mlp": 4 * 384},
      "grow them by 2 (config.init_growth='tiles').",
    ),
    (
      "Mixer-B/16",
      192,
      {},
      "the model is for 144 tokens (192 px / 16): no whole factor apart, so "
      "interpolate (config.init_growth='interpolate', beyond the paper)",
    ),
    ("Mixer-B/32", 224, {}, "are of Mixer-B/16, the model is Mixer-B/32"),
    ("Mixer-L/16", 224, {}, "are of Mixer-B/16, the model is Mixer-L/16"),
    (
      "Mixer-B/16",
      224,
      {"blocks": 13},
      "the model is a Mixer with patch=16, hidden=768, blocks=13, "
      "tokens_mlp=384, channels_mlp=3072: choose",
    ),
    (
      "Mixer-B/16",
      224,
      {"tokens_mlp": 400},
      "tokens_mlp is 384 in the weights, 400 in the model: set "
      "config.model.tokens_mlp=384.",
    ),
    (
      "Mixer-B/16",
      224,
      {"image_channels": 1},
      "image_channels is 3 in the weights, 1 in the model: take weights for "
      "1-channel images.",
    ),
  ],
)
def test_the_first_sentence_explains_a_mixers_misfit(name, size, fields, words):
  with pytest.raises(UserError) as error:
    weights.merge_params(B16, shapes(name, size, **fields))

  reason = str(error.value).splitlines()[0]
  assert words in reason
  assert "num_classes" not in reason  # the head is replaced anyway


@pytest.mark.parametrize(
  "fields, name, size, model_fields, words",
  [
    (
      {},
      "ViT-B/16",
      384,
      {},
      "for 196 tokens (224 px / 16), the model is for 576 tokens (384 px / "
      "16): interpolate them (config.init_growth='interpolate')",
    ),
    ({}, "ViT-L/16", 224, {}, "are of ViT-B/16, the model is ViT-L/16"),
    (
      {},
      "ViT-B/16",
      224,
      {"heads": 6},
      "the model is a ViT with patch=16, hidden=768, blocks=12, mlp=3072, "
      "heads=6",
    ),
    (
      {},
      "ViT-B/32",
      224,
      {},
      "are of ViT-B/16, the model is ViT-B/32: choose the same with "
      "config.model.name",
    ),
    (
      {},
      "ViT-B/16",
      224,
      {"pool": "mean"},
      "pool is 'token' in the weights, 'mean' in the model: set "
      "config.model.pool='token'",
    ),
    (
      {"representation": 768},
      "ViT-B/16",
      224,
      {},
      "representation is 768 in the weights, None in the model: set "
      "config.model.representation=768, or begin with a new head",
    ),
    ({}, "Mixer-B/16", 224, {}, "are of a ViT, the model is a Mixer"),
    (
      {},
      "BiT-R50x1",
      224,
      {"width": 0.5},
      "are of BiT-R50x1, the model is a BiT with width=0.5, units=(3, 4, 6, 3)",
    ),
    ({}, "BiT-R101x1", 224, {}, "are of BiT-R50x1, the model is BiT-R101x1"),
    (
      {},
      "BiT-R50x1",
      224,
      {"image_channels": 1},
      "image_channels is 3 in the weights, 1 in the model",
    ),
  ],
)
def test_the_first_sentence_explains_a_baselines_misfit(
  fields, name, size, model_fields, words
):
  baseline = "BiT-R50x1" if name.startswith("BiT") else "ViT-B/16"

  with pytest.raises(UserError) as error:
    weights.merge_params(
      shapes(baseline, 224, **fields), shapes(name, size, **model_fields)
    )

  assert words in str(error.value).splitlines()[0]


def test_weights_that_were_grown_are_recognised():
  grown = shapes("Mixer-B/16", 448, tokens_mlp=4 * 384)

  with pytest.raises(UserError, match="tokens_mlp=1536, as they were grown by"):
    weights.merge_params(grown, shapes("Mixer-B/16", 448))


def test_other_token_mixing_is_not_taken_for_grown():
  other = shapes("Mixer-B/16", 448, tokens_mlp=5 * 384)

  with pytest.raises(UserError, match=r"config.model.tokens_mlp=1920\."):
    weights.merge_params(other, shapes("Mixer-B/16", 448))


def test_weights_of_another_family_are_named():
  vit = {"Transformer": {"encoder_norm": {"bias": np.zeros(24)}}}

  with pytest.raises(
    UserError, match="They are of a ViT, the model is a Mixer"
  ):
    weights.merge_params(vit, shapes())
  with pytest.raises(UserError, match=r"another model \(conv1, fc\)"):
    weights.merge_params({"conv1": np.zeros(1), "fc": np.zeros(1)}, shapes())


def test_a_kept_head_of_another_width_is_refused():
  with pytest.raises(UserError, match=r"head/bias: \(7,\).*\(5,\)") as error:
    weights.merge_params(weights.load(FILE), shapes(num_classes=5), head="keep")

  assert "num_classes is 7 in the weights, 5 in the model" in str(error.value)
