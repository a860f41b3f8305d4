# SPDX-License-Identifier: Apache-2.0
"""The model of parameters, inferred from their names and shapes."""

import pytest
from small_models import SIZES, golden

from mixer.models import create, flops
from mixer.models.infer import describe, infer, infer_model


@pytest.mark.parametrize("family", SIZES)
def test_the_shapes_make_the_model(family):
  expected, params, _, _ = golden(family)

  model = infer_model(params)

  assert model == expected
  body = {name: part for name, part in params.items() if name != "head"}
  assert infer_model(body).num_classes is None


def test_fields_that_shapes_do_not_tell_are_set():
  model = infer_model(golden("Mixer").params, gelu="exact", dropout=0.1)

  assert (model.gelu, model.dropout, model.num_classes) == ("exact", 0.1, 7)


@pytest.mark.parametrize(
  "name, fields, words",
  [
    ("Mixer-S/32", {}, "Mixer-S/32"),
    ("Mixer-S/16", dict(patch=8), "Mixer-S/8"),
    ("Mixer-S/16", dict(tokens_mlp=1024), "Mixer-S/16 with tokens_mlp=1024"),
    ("ViT-B/32", {}, "ViT-B/32"),
    ("ViT-B/16", dict(pool="mean"), "ViT-B/16 with pool='mean'"),
    ("ViT-B/16", dict(image_channels=1), "ViT-B/16 with image_channels=1"),
    ("ViT-B/16", dict(representation=9), "ViT-B/16 with representation=9"),
    ("BiT-R50x3", {}, "BiT-R50x3"),
  ],
)
def test_shapes_name_the_variant_and_the_fields_that_differ(
  name, fields, words
):
  model = create(name, num_classes=7, **fields)

  inferred = infer(flops.abstract_params(model, (96, 96)))

  assert inferred == model and describe(inferred) == words
