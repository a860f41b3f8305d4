# SPDX-License-Identifier: Apache-2.0
"""The Mixer: table 1 of the paper, initial values, precision, drop path."""

from copy import deepcopy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from small_models import SIZES, golden

from mixer.models import create, flops, names

TINY = SIZES["Mixer"]


# Paper, table 1: exact counts behind its "19 M", "18 M" and so on, without and
# with a 1,000-way head, and GMACs of a 224 px image without head, derived from
# the table's sizes by hand.
EXPECTED = {
  "Mixer-S/32": (18_591_624, 19_104_624, 1_001_914_368),
  "Mixer-S/16": (18_015_264, 18_528_264, 3_776_446_464),
  "Mixer-B/32": (59_524_428, 60_293_428, 3_236_954_112),
  "Mixer-B/16": (59_111_472, 59_880_472, 12_600_999_936),
  "Mixer-L/32": (205_914_264, 206_939_264, 11_252_269_056),
  "Mixer-L/16": (207_171_168, 208_196_168, 44_546_654_208),
  "Mixer-H/14": (431_069_952, 432_350_952, 120_988_631_040),
}


@pytest.mark.parametrize("name", names("Mixer"))
def test_a_variant_has_the_papers_parameters_and_costs_its_gmacs(name):
  headless, with_head, macs = EXPECTED[name]

  params = flops.abstract_params(create(name, num_classes=1000), (224, 224))

  assert flops.count_params(params) == with_head
  del params["head"]
  assert flops.count_params(params) == headless
  assert flops.multiply_accumulates(create(name), (224, 224)) == macs


def test_multiply_accumulates_include_convolutions_products_and_loops():
  model = golden("Mixer").model
  s, c = 16, 24
  block = 2 * s * TINY["tokens_mlp"] * c + 2 * s * c * TINY["channels_mlp"]
  by_hand = s * 8 * 8 * 3 * c + 2 * block + c * 7

  assert flops.multiply_accumulates(model, (32, 32)) == by_hand


def test_product_bytes_are_those_of_one_images_factors_and_results():
  model = golden("Mixer").model
  s, c = 16, 24
  tokens, channels = c * TINY["tokens_mlp"], s * TINY["channels_mlp"]
  block = 4 * s * c + 2 * tokens + 2 * channels
  by_hand = 32 * 32 * 3 + s * c + 2 * block + c + 7

  assert flops.product_bytes(model, (32, 32)) == 4 * by_hand
  half = model.clone(dtype=jnp.bfloat16)
  assert flops.product_bytes(half, (32, 32)) == pytest.approx(
    2 * by_hand, rel=0.01
  )


def test_initial_values_are_distributed_as_in_the_authors_code():
  """LeCun normal kernels over the true fan-in, zero biases, zero head."""
  model = create("Mixer-S/32", num_classes=10, head_bias=-6.9)
  images = jnp.zeros((1, 224, 224, 3))
  params = jax.jit(model.init)(jax.random.key(0), images)["params"]
  flat = flatten_dict(params, sep="/")

  fan_in = {
    "stem/kernel": 32 * 32 * 3,
    "MixerBlock_0/token_mixing/Dense_0/kernel": 49,
    "MixerBlock_3/token_mixing/Dense_1/kernel": 256,
    "MixerBlock_5/channel_mixing/Dense_0/kernel": 512,
    "MixerBlock_7/channel_mixing/Dense_1/kernel": 2048,
  }
  for name, fan in fan_in.items():
    values = np.asarray(flat[name])
    deviation = fan**-0.5
    assert values.std() == pytest.approx(deviation, rel=0.03)
    assert abs(values.mean()) < 0.03 * deviation
    # Truncated at two deviations of the normal that it is cut from.
    assert np.abs(values).max() <= 2 * deviation / 0.87962566 * (1 + 1e-6)
  assert not flat["head/kernel"].any()
  assert np.all(flat["head/bias"] == np.float32(-6.9))
  biases = [v for k, v in flat.items() if k.endswith("Dense_0/bias")]
  assert not any(v.any() for v in biases)
  assert np.all(flat["MixerBlock_0/LayerNorm_0/scale"] == 1)


def test_tokens_are_kept_in_bfloat16_and_added_to_in_float32():
  model, params, images, _ = golden("Mixer")
  # Two branches that are a bias each.
  block = jax.tree.map(jnp.zeros_like, params["MixerBlock_0"])
  shifts = np.linspace(0.1, 1, 16), np.linspace(-1, 1, 24)
  block["token_mixing"]["Dense_1"]["bias"] += shifts[0]
  block["channel_mixing"]["Dense_1"]["bias"] += shifts[1]
  params = params | {"MixerBlock_0": block}

  _, out = model.clone(dtype=jnp.bfloat16).apply({"params": params}, images)

  x, bfloat16 = np.asarray(out["stem"]), jnp.bfloat16
  x = (x + np.float32(shifts[0][:, None])).astype(bfloat16)
  x = (x.astype(np.float32) + np.float32(shifts[1])).astype(bfloat16)
  assert out["stem"].dtype == np.float32
  assert out["block00"].dtype == bfloat16
  assert np.array_equal(out["block00"], x)


@pytest.mark.parametrize(
  ("platform", "held"), [("cuda", True), ("tpu", False), ("cpu", False)]
)
def test_gpus_store_tokens_and_their_cotangents_in_bfloat16(platform, held):
  model, params, images, _ = golden("Mixer")
  model = model.clone(dtype=jnp.bfloat16)

  def loss(params):
    return model.apply({"params": params}, images)[0].sum()

  traced = jax.jit(jax.grad(loss)).trace(params)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  barriers = [x for x in text.splitlines() if "optimization_barrier" in x]
  assert all("bf16>" in x for x in barriers)
  # Per block: two branches and one layer norm, forward and backward.
  assert len(barriers) == (2 * 3 * model.blocks if held else 0)


def test_gradients_in_bfloat16_are_as_large_as_in_float32():
  """Sums over tokens in bfloat16 would come out a third too small."""
  model = create("Mixer", num_classes=7, **TINY | {"blocks": 6})
  images = jax.random.normal(jax.random.key(0), (128, 32, 32, 3))
  params = jax.jit(model.init)(jax.random.key(1), images)["params"]
  params["head"]["kernel"] = jax.random.normal(jax.random.key(2), (24, 7))

  def gradients(dtype):
    def loss(params):
      logits, _ = model.clone(dtype=dtype).apply({"params": params}, images)
      return jax.nn.log_softmax(logits)[:, 0].mean()

    return flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")

  exact, rounded = gradients(None), gradients(jnp.bfloat16)

  for name, gradient in exact.items():
    if "token_mixing/Dense_1/bias" not in name:
      norm = jnp.linalg.norm(gradient)
      assert jnp.linalg.norm(rounded[name] - gradient) < 0.03 * norm, name


def gradients_of_shifts(model, params, images):
  """Returns those of the token-mixing MLPs' last biases, and of all else."""

  def loss(params):
    keys = jax.random.split(jax.random.key(3), len(images))
    run = {"train": True, "drop_keys": keys}
    logits, _ = model.apply({"params": params}, images, **run)
    return jax.nn.log_softmax(logits)[:, 0].mean()

  flat = flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")
  shifts = [k for k in flat if k.endswith("token_mixing/Dense_1/bias")]
  assert len(shifts) == model.blocks
  return [flat.pop(k) for k in shifts], list(flat.values())


@pytest.mark.parametrize("kernels", ["plain", "fused"])
@pytest.mark.parametrize("fields", [{}, {"scan": True, "stoch_depth": 0.5}])
def test_a_bias_that_layer_norms_remove_has_no_gradient(kernels, fields):
  model, params, images, _ = golden("Mixer")
  model, params = model.clone(kernels=kernels, **fields), deepcopy(params)
  logits, _ = model.apply({"params": params}, images)

  # Whatever its value, the logits are the same: the truth is 0.
  for i in range(model.blocks):
    layer = params[f"MixerBlock_{i}"]["token_mixing"]["Dense_1"]
    layer["bias"] += np.cos(np.arange(16, dtype=np.float32))
  shifted, _ = model.apply({"params": params}, images)
  np.testing.assert_allclose(shifted, logits, atol=1e-5)

  for dtype, nearly in (None, 1e-6), (jnp.bfloat16, 0):
    shifts, others = gradients_of_shifts(
      model.clone(dtype=dtype), params, images
    )
    largest = max(abs(x).max() for x in others)
    assert max(abs(x).max() for x in shifts) <= nearly * largest


def test_dropout_leaves_that_bias_its_gradient():
  model, params, images, _ = golden("Mixer")
  model = model.clone(dropout=0.3)

  exact, _ = gradients_of_shifts(model, params, images)
  rounded, _ = gradients_of_shifts(
    model.clone(dtype=jnp.bfloat16), params, images
  )

  for one, other in zip(exact, rounded, strict=True):
    assert jnp.linalg.norm(one - other) < 0.05 * jnp.linalg.norm(one)


@pytest.mark.parametrize("family", ["Mixer", "ViT"])
def test_stochastic_depth_drops_whole_branches_and_leaves_the_rest_as_it_is(
  family,
):
  model, params, images, _ = golden(family)
  model = model.clone(stoch_depth=0.5)
  images = jnp.broadcast_to(images[:1], (400, *images.shape[1:]))
  keys = jax.random.split(jax.random.key(0), 400)

  _, out = model.apply({"params": params}, images, train=True, drop_keys=keys)
  _, whole = model.apply({"params": params}, images[:1])

  # The first block has rate 0, the second the full rate on two branches: each
  # example is one of four, among them the input of the block and the block.
  np.testing.assert_allclose(
    out["block00"], whole["block00"].repeat(400, axis=0), atol=1e-5
  )
  kinds = np.unique(np.round(np.asarray(out["block01"]), 3), axis=0)
  assert len(kinds) == 4

  for kind in whole["block00"], whole["block01"]:
    alike = np.abs(out["block01"] - kind).max(axis=(1, 2)) < 1e-4
    assert alike.mean() == pytest.approx(0.25, abs=0.08)


def test_rescaled_stochastic_depth_keeps_the_mean():
  model, params, images, _ = golden("Mixer")
  model = model.clone(stoch_depth=0.3, stoch_depth_rescale=True)
  # Without its token mixing the last block is linear in its mask.
  block = jax.tree.map(jnp.zeros_like, params["MixerBlock_1"])
  block["channel_mixing"]["Dense_1"]["bias"] += 1
  params = params | {"MixerBlock_1": block}
  images = jnp.broadcast_to(images[:1], (2000, *images.shape[1:]))
  keys = jax.random.split(jax.random.key(0), 2000)

  _, out = model.apply({"params": params}, images, train=True, drop_keys=keys)

  added = np.asarray(out["block01"] - out["block00"])
  assert set(np.unique(np.round(added, 3))) == {0.0, np.float32(1.429)}
  assert added.mean() == pytest.approx(1.0, abs=0.05)
