# SPDX-License-Identifier: Apache-2.0
"""Mixer, ViT and BiT alike: names, configs, weights against models."""

import jax
import numpy as np
import pytest
import recipes
from flax.traverse_util import flatten_dict

from mixer import weights
from mixer.errors import UserError
from mixer.models import create, flops
from mixer.models.infer import describe, infer, infer_model
from mixer.plan import make_plan
from mixer.tools.inference import made_for
from mixer.tools.weights import main

GOLDENS = "tests/goldens"
VIT = dict(name="ViT", patch=2, hidden=16, blocks=2, mlp=32, heads=2)
BIT = dict(name="BiT", width=0.5, units=(1, 1))
NOT_MIXERS = dict(tokens_mlp=None, channels_mlp=None)
NOT_BITS = NOT_MIXERS | dict(patch=None, hidden=None, blocks=None)


def plan(digits_dir, model, **changes):
  """The digits recipe with another model, which sets a Mixer's sizes."""
  config = recipes.load("digits")
  config.data.data_dir = digits_dir
  config.model.update(NOT_BITS | model)
  config.update(changes)
  return make_plan(config)


@pytest.mark.parametrize("model", [VIT, BIT], ids=["ViT", "BiT"])
def test_a_config_makes_a_model_of_any_family(digits_dir, model):
  found = plan(digits_dir, model)

  assert not found.complaints.problems
  fields = {key: value for key, value in model.items() if key != "name"}
  assert found.model.module == create(
    model["name"], num_classes=10, dtype="float32", **fields
  )
  assert found.model.multiply_accumulates > 0


@pytest.mark.parametrize(
  "model, words",
  [
    (
      VIT | dict(tokens_mlp=3),
      "config.model.tokens_mlp is of Mixer, MixerVariation; ViT has no such "
      "field: leave it",
    ),
    (BIT | dict(gelu="tanh"), "gelu is of Mixer, ViT, MixerVariation; BiT has"),
    (BIT | dict(patch=4), "patch is of Mixer, ViT, MixerVariation; BiT has no"),
    (dict(name="Mixer-B/16", pool="mean"), "pool is of ViT; Mixer-B/16 has"),
    (VIT | dict(heads=3), "heads=3 do not divide hidden=16"),
    (VIT | dict(patch=3), "8 x 8 px are not divided by patches of 3 px"),
    (VIT | dict(pool="max"), "config.model.pool = 'max' is none of None"),
    (VIT | dict(heads=0), "config.model.heads = 0 must be 1 or more"),
    (BIT | dict(remat="token_mixing"), "config.model: remat='token_mixing' is"),
    (BIT | dict(width=0.1), "config.model.width = 0.1 must be 0.5 or more"),
    (BIT | dict(width=0.7), "width=0.7 makes 44.8 channels"),
    (BIT | dict(units=(1, 0)), "numbers of residual units, one for each stage"),
  ],
)
def test_a_model_that_cannot_be_is_said_before_anything_compiles(
  digits_dir, model, words
):
  problems = plan(digits_dir, model).complaints.problems

  assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize("family", ["vit", "bit"])
def test_the_shapes_make_the_model_and_it_gives_the_golden_logits(family):
  checkpoint = weights.read(f"{GOLDENS}/{family}_tiny.npz")
  golden = np.load(f"{GOLDENS}/{family}_tiny_io.npz")

  model = infer_model(checkpoint.params, gelu=checkpoint.gelu)

  logits, _ = jax.jit(model.apply)(
    {"params": checkpoint.params}, golden["images"]
  )
  np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
  assert checkpoint.image_size == ((32, 32) if family == "vit" else None)
  body = {k: v for k, v in checkpoint.params.items() if k != "head"}
  assert infer_model(body).num_classes is None


@pytest.mark.parametrize(
  "name, fields, words",
  [
    ("Mixer-S/32", {}, "Mixer-S/32"),
    ("Mixer-S/16", dict(patch=8), "Mixer-S/8"),
    ("Mixer-S/16", dict(tokens_mlp=1024), "Mixer-S/16 with tokens_mlp=1024"),
    ("ViT-B/32", {}, "ViT-B/32"),
    ("ViT-B/16", dict(pool="mean"), "ViT-B/16 with pool='mean'"),
    ("ViT-B/16", dict(image_channels=1), "ViT-B/16 with image_channels=1"),
    ("BiT-R50x3", {}, "BiT-R50x3"),
  ],
)
def test_shapes_name_the_variant_and_the_fields_that_differ(
  name, fields, words
):
  model = create(name, num_classes=7, **fields)
  shapes = jax.eval_shape(
    model.init,
    jax.random.key(0),
    np.zeros((1, 96, 96, model.image_channels), "f"),
  )

  inferred = infer(shapes["params"])

  assert inferred == model and describe(inferred) == words


def old_names(params):
  """As ViT's files were named before Linen."""
  renamed = (
    ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
    ("LayerNorm_1", "LayerNorm_2"),
    ("MlpBlock_0", "MlpBlock_3"),
  )
  for name, array in flatten_dict(params, sep="/").items():
    for now, before in renamed:
      name = name.replace(now, before)
    yield name, array


def test_a_vits_file_of_old_is_evaluated_with_its_hidden_layer(tmp_path):
  params = weights.load(f"{GOLDENS}/vit_tiny.npz")
  golden = np.load(f"{GOLDENS}/vit_tiny_io.npz")
  params["pre_logits"] = {
    "kernel": np.eye(24, dtype="f"),
    "bias": np.zeros(24, "f"),
  }
  np.savez(tmp_path / "old.npz", **dict(old_names(params)))

  found = weights.load(tmp_path / "old.npz")

  model = infer_model(found)
  _, out = jax.jit(model.apply)({"params": found}, golden["images"])
  head = params["head"]
  expected = np.arctanh(out["pre_logits"]) @ head["kernel"] + head["bias"]
  assert model.representation == 24
  np.testing.assert_allclose(expected, golden["logits"], atol=1e-3)
  # Fine-tuned it goes with the head.
  wanted = create("ViT", patch=8, hidden=24, blocks=2, mlp=48, heads=4)
  wanted = flops.abstract_params(wanted.clone(num_classes=3), (32, 32))
  fitted, _ = weights.merge_params(found, wanted)
  assert "pre_logits" not in fitted


def shapes(name, size=224, **fields):
  model = create(name, **{"num_classes": 7} | fields)
  return flops.abstract_params(model, (size, size))


@pytest.mark.parametrize(
  "given, model, words",
  [
    (
      ("ViT-B/16", 224, {}),
      ("ViT-B/16", 384, {}),
      "for 196 tokens (224 px / 16), the model is for 576 tokens (384 px / "
      "16): interpolate them (config.init_growth='interpolate')",
    ),
    (
      ("ViT-B/16", 224, {}),
      ("ViT-L/16", 224, {}),
      "are of ViT-B/16, the model is ViT-L/16",
    ),
    (
      ("ViT-B/16", 224, {}),
      ("ViT-B/16", 224, dict(heads=6)),
      "the model is a ViT with patch=16, hidden=768, blocks=12, mlp=3072, "
      "heads=6",
    ),
    (
      ("ViT-B/16", 224, {}),
      ("ViT-B/32", 224, {}),
      "are of ViT-B/16, the model is ViT-B/32: choose the same with "
      "config.model.name",
    ),
    (
      ("ViT-B/16", 224, {}),
      ("ViT-B/16", 224, dict(pool="mean")),
      "pool is 'token' in the weights, 'mean' in the model: set "
      "config.model.pool='token'",
    ),
    (
      ("ViT-B/16", 224, dict(representation=768)),
      ("ViT-B/16", 224, {}),
      "representation is 768 in the weights, None in the model: set "
      "config.model.representation=768, or begin with a new head",
    ),
    (
      ("ViT-B/16", 224, {}),
      ("Mixer-B/16", 224, {}),
      "are of a ViT, the model is a Mixer",
    ),
    (
      ("BiT-R50x1", 224, {}),
      ("BiT-R50x1", 224, dict(width=0.5)),
      "are of BiT-R50x1, the model is a BiT with width=0.5, units=(3, 4, 6, 3)",
    ),
    (
      ("BiT-R50x1", 224, {}),
      ("BiT-R101x1", 224, {}),
      "are of BiT-R50x1, the model is BiT-R101x1",
    ),
    (
      ("BiT-R50x1", 224, {}),
      ("BiT-R50x1", 224, dict(image_channels=1)),
      "image_channels is 3 in the weights, 1 in the model",
    ),
  ],
)
def test_the_first_sentence_says_why_weights_do_not_fit(given, model, words):
  name, size, fields = given

  with pytest.raises(UserError) as error:
    weights.merge_params(
      shapes(name, size, **fields), shapes(model[0], model[1], **model[2])
    )

  assert words in str(error.value).splitlines()[0]


def test_convert_says_what_it_has_converted(tmp_path, capsys):
  vit, bit = tmp_path / "vit.npz", tmp_path / "bit.npz"

  assert main(["convert", f"{GOLDENS}/vit_tiny.npz", str(vit)]) == 0
  assert main(["convert", f"{GOLDENS}/bit_tiny.npz", str(bit)]) == 0
  assert (
    main(["convert", f"{GOLDENS}/vit_tiny.npz", str(vit), "--tokens=6x6"]) == 0
  )

  told = capsys.readouterr().out
  for words in (
    "a ViT with patch=8, hidden=24, blocks=2, mlp=48, heads=4, 16 tokens "
    "(32 px / 8), 7 classes",
    "a BiT with width=0.5, units=(2, 1), images of any size, 7 classes",
    "Grown by interpolation: a ViT",
    "36 tokens (48 px / 8)",
  ):
    assert words in told
  assert weights.read(vit).image_size == (48, 48)
  assert main(["convert", str(bit), str(bit), "--grow=2"]) == 2
  assert "any size as it is" in capsys.readouterr().err


def test_images_are_made_for_the_weights_or_as_in_the_paper():
  vit, bit = (
    weights.read(f"{GOLDENS}/{family}_tiny.npz") for family in ("vit", "bit")
  )

  assert made_for(vit) == (32, 32)
  assert made_for(bit) == (224, 224)
