# SPDX-License-Identifier: Apache-2.0
"""Models of all families: logits, names of parameters, precision, options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from small_models import SIZES, count_saved, golden

from mixer.models import create, family_of, flops, names, sizes
from mixer.weights.zoo import REGISTRY

OUTPUTS = {
  "Mixer": {"stem": (16, 24), "block00": (16, 24), "block01": (16, 24)},
  "ViT": {"stem": (16, 24), "block00": (17, 24), "block01": (17, 24)},
  "BiT": {"stem": (8, 8, 32), "block1": (8, 8, 128), "block2": (4, 4, 256)},
}
every_family = pytest.mark.parametrize("family", SIZES)


def apply(model, params, images, **call):
  """Compiled: run operation by operation, each is compiled by itself."""
  return jax.jit(functools.partial(model.apply, **call))(
    {"params": params}, images
  )


def test_every_family_has_names_and_a_table():
  assert {family_of(name) for name in names()} == {"Mixer", "ViT", "BiT"}
  assert sizes("ViT-B/16")["heads"] == 12
  assert sizes("BiT-R101x1") == {"width": 1, "units": (3, 4, 23, 3)}
  assert names("ViT") == [x for x in names() if x.startswith("ViT")]
  for published in REGISTRY.values():
    create(published.model, **published.fields)


@every_family
def test_logits_agree_with_the_authors_implementation(family):
  model, params, images, expected = golden(family)

  with jax.default_matmul_precision("highest"):
    logits, out = apply(model, params, images)

  assert np.abs(logits - expected).max() <= 1e-5
  shapes = {name: x.shape[1:] for name, x in out.items()}
  features = shapes[[*OUTPUTS[family]][-1]][-1:]
  assert shapes == OUTPUTS[family] | {"pre_logits": features, "logits": (7,)}


@every_family
@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"remat": "blocks"},
    {"scan": True},
    {"stoch_depth": 0.1, "dropout": 0.1},
  ],
  ids=str,
)
def test_parameters_have_the_published_names_and_shapes(family, fields):
  model, params, _, _ = golden(family)
  if "scan" in fields and not hasattr(model, "scan"):
    return  # BiT's units differ

  made = flops.abstract_params(model.clone(**fields), (32, 32))

  assert {k: v.shape for k, v in flatten_dict(made).items()} == {
    k: v.shape for k, v in flatten_dict(params).items()
  }


@every_family
def test_bfloat16_computes_close_to_float32_and_keeps_float32_outside(family):
  model, params, images, expected = golden(family)
  model = model.clone(dtype=jnp.bfloat16)

  logits, out = apply(model, params, images)

  assert logits.dtype == out["pre_logits"].dtype == jnp.float32
  blocks = [x for name, x in out.items() if "block" in name]
  assert blocks and all(x.dtype == jnp.bfloat16 for x in blocks)
  assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
  made = flops.abstract_params(model, (32, 32))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(made))


@every_family
def test_without_a_head_the_pre_logits_come_out(family):
  model, params, images, _ = golden(family)
  body = {k: v for k, v in params.items() if k != "head"}

  x, out = apply(model.clone(num_classes=None), body, images)

  assert np.array_equal(x, out["pre_logits"])


@every_family
def test_drop_masks_are_each_examples_own(family):
  """An example's key determines its masks, whatever else is in the batch."""
  model, params, images, _ = golden(family)
  model = model.clone(dropout=0.5, stoch_depth=0.5)
  same = jnp.broadcast_to(images[:1], (4, *images.shape[1:]))
  keys = jax.random.split(jax.random.key(0), 4)

  logits, _ = apply(model, params, same, train=True, drop_keys=keys)
  single, _ = apply(model, params, same[2:3], train=True, drop_keys=keys[2:3])
  evaluated, _ = apply(model, params, same[:1])

  assert len(np.unique(np.asarray(logits)[:, 0])) == 4
  np.testing.assert_allclose(logits[2:3], single, rtol=1e-4, atol=1e-5)
  assert np.abs(logits - evaluated).max(axis=1).min() > 0
  with pytest.raises(ValueError, match="jax.random.split"):
    model.apply({"params": params}, images, train=True)


def with_nothing_zero(family, **fields):
  """Returns a small model of blocks, its parameters and images."""
  model = create(family, **SIZES[family], num_classes=5, **fields)
  images = jax.random.normal(jax.random.key(0), (4, 24, 16, 3))
  params = jax.jit(model.init)(jax.random.key(1), images)["params"]
  params = jax.tree.map(
    lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), params
  )
  return model, params, images


@pytest.mark.parametrize("family", ["Mixer", "ViT"])
def test_neither_remat_nor_scan_changes_logits_or_gradients(family):
  model, params, images = with_nothing_zero(family)

  def loss_and_gradients(**fields):
    def loss(params):
      logits, _ = model.clone(**fields).apply({"params": params}, images)
      return (logits**2).sum()

    return jax.jit(jax.value_and_grad(loss))(params)

  expected = loss_and_gradients()

  for fields in (
    {"remat": "blocks"},
    {"remat": "products"},
    {"remat": "token_mixing"},
    {"scan": True},
    {"scan": True, "remat": "token_mixing"},
  ):
    jax.tree.map(
      lambda a, b, fields=fields: np.testing.assert_allclose(
        a, b, rtol=1e-5, atol=1e-5, err_msg=str(fields)
      ),
      loss_and_gradients(**fields),
      expected,
    )


@pytest.mark.parametrize("family", ["Mixer", "ViT"])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_scan_drops_and_rounds_as_blocks_in_turn_do(family, dtype):
  model, params, images = with_nothing_zero(
    family, stoch_depth=0.4, dropout=0.2, stoch_depth_rescale=True, dtype=dtype
  )
  keys = jax.random.split(jax.random.key(2), 4)

  logits, out = apply(
    model.clone(scan=True), params, images, train=True, drop_keys=keys
  )
  expected, in_turn = apply(model, params, images, train=True, drop_keys=keys)

  assert out.keys() == in_turn.keys()
  tolerance = 1e-5 if dtype is None else 0.05
  for name in ("block00", "block01"):
    assert out[name].dtype == in_turn[name].dtype
  np.testing.assert_allclose(logits, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", ["Mixer", "ViT"])
def test_remat_policies_save_less_the_more_they_recompute(family):
  model, params, images = with_nothing_zero(family)

  def saved(**fields):
    return count_saved(model.clone(**fields), params, images)

  everything = saved(remat="none")
  assert saved(remat="blocks") < saved(remat="products") < everything
  # For 4 images and 2 blocks, tokens of 24 channels and 48 hidden units, but
  # not the bias at the end of the first branch.
  tokens, bias = {"Mixer": (6, 6), "ViT": (7, 24)}[family]
  more = saved(remat="token_mixing") - saved(remat="blocks")
  assert more == 2 * (4 * tokens * (24 + 48) - bias)
  assert saved(scan=True, remat="blocks") < saved(scan=True) < everything
  in_a_loop = saved(scan=True, remat="token_mixing")
  assert in_a_loop - saved(scan=True, remat="blocks") == more


@pytest.mark.parametrize("scan, grows", [(False, True), (True, False)])
def test_a_scanned_program_is_as_long_for_many_blocks_as_for_few(scan, grows):
  def count_products(blocks):
    model = create("Mixer", scan=scan, **{**SIZES["Mixer"], "blocks": blocks})
    images = jnp.zeros((1, 32, 32, 3))
    params = flops.abstract_params(model, (32, 32))

    def apply(params):
      return model.apply({"params": params}, images)[0]

    return str(jax.make_jaxpr(apply)(params)).count("dot_general")

  assert (count_products(6) > count_products(3)) == grows


@pytest.mark.parametrize(
  "name, fields, message",
  [
    ("Mixer-B/17", {}, "Mixer-B/17.*Mixer-B/16"),
    ("ViT-B/61", {}, "ViT-B/61.*ViT-B/16"),
    ("Mixer-B/16", {"token_mlp": 3}, "'token_mlp'.*'tokens_mlp'"),
    ("Mixer", {"patch": 8}, "hidden, blocks.*Mixer-S/32"),
    ("ViT", {"patch": 2, "mlp": 32}, "heads.*name a variant: ViT-B/32"),
    ("MixerVariation", {"untied": True}, "patch, hidden.*as fields.$"),
    ("Mixer-S/32", {"remat": "all"}, "'all' is none of none, products, token_"),
    ("Mixer-S/32", {"gelu": "erf"}, "gelu='erf' is none of tanh, exact"),
    ("Mixer-S/32", {"kernels": "fast"}, "'fast' is none of auto, plain, fused"),
    ("ViT-B/16", {"pool": "max"}, "pool='max' is none of token, mean"),
    ("BiT-R50x1", {"remat": "token_mixing"}, "'products' or 'blocks'"),
  ],
)
def test_unknown_names_fields_and_words_are_refused_with_the_known_ones(
  name, fields, message
):
  with pytest.raises(ValueError, match=message):
    create(name, **fields)


@pytest.mark.parametrize(
  "family, shape, fields, words",
  [
    *(
      (family, (1, 32, 32, 1), {}, ("1 channels", "3", "image_channels=1"))
      for family in SIZES
    ),
    *(
      (family, (32, 32, 3), {}, ("[n, height, width, channels]", "image[None]"))
      for family in SIZES
    ),
    ("Mixer", (1, 30, 32, 3), {}, ("30 x 32 px", "8 px", "32 x 32 px")),
    ("ViT", (1, 30, 32, 3), {}, ("30 x 32 px", "8 px", "32 x 32 px")),
    ("Mixer", (1, 64, 64, 3), {}, ("64 x 64 px", "64 tokens", "16", "32 x 32")),
    ("ViT", (1, 64, 64, 3), {}, ("64 tokens", "are for 16", "32 x")),
    ("ViT", (1, 32, 32, 3), {"heads": 5}, ("heads=5", "hidden=24")),
    ("ViT", (1, 32, 32, 3), {"pool": "mean"}, ("a class token", "'token'")),
  ],
)
def test_misfits_are_refused_with_both_numbers(family, shape, fields, words):
  model, params, _, _ = golden(family)

  with pytest.raises(ValueError) as error:
    model.clone(**fields).apply({"params": params}, np.zeros(shape, "f"))

  assert all(word in str(error.value) for word in words), error.value
