# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from kept import numbers_kept

from mixer import weights
from mixer.models import create, flops, names

SMALL = {
  "Mixer": dict(tokens_mlp=8, channels_mlp=32),
  "ViT": dict(mlp=32, heads=2),
}
GOLDENS = "tests/goldens"
TINY = dict(patch=8, hidden=24, blocks=2, tokens_mlp=12, channels_mlp=48)

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


@pytest.fixture(scope="module")
def tiny():
  params = weights.load(f"{GOLDENS}/mixer_tiny.npz")
  golden = np.load(f"{GOLDENS}/mixer_tiny_io.npz")
  model = create("Mixer", num_classes=7, **TINY)
  return model, params, golden["images"], golden["logits"]


def test_the_expected_numbers_cover_every_variant():
  assert set(names("Mixer")) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_variant_has_the_papers_parameters_and_costs_its_gmacs(name):
  headless, with_head, macs = EXPECTED[name]

  body = create(name)
  whole = create(name, num_classes=1000)

  params = flops.abstract_params(whole, (224, 224))
  assert flops.count_params(params) == with_head
  del params["head"]
  assert flops.count_params(params) == headless
  assert flops.multiply_accumulates(body, (224, 224)) == macs


def test_multiply_accumulates_include_convolutions_products_and_loops():
  model = create("Mixer", num_classes=7, **TINY)
  s, c = 16, 24
  block = 2 * s * TINY["tokens_mlp"] * c + 2 * s * c * TINY["channels_mlp"]
  by_hand = s * 8 * 8 * 3 * c + 2 * block + c * 7

  assert flops.multiply_accumulates(model, (32, 32)) == by_hand


def test_logits_agree_with_the_authors_implementation(tiny):
  model, params, images, expected = tiny

  with jax.default_matmul_precision("highest"):
    logits, out = model.apply({"params": params}, images)

  assert np.abs(logits - expected).max() <= 1e-5
  assert out["pre_logits"].shape == (3, 24)
  assert out["block01"].shape == (3, 16, 24)


def test_parameters_have_the_published_names(tiny):
  _, params, images, _ = tiny

  for fields in (
    {},
    {"remat": "blocks"},
    {"scan": True},
    {"stoch_depth": 0.1, "dropout": 0.1},
  ):
    made = flops.abstract_params(
      create("Mixer", num_classes=7, **TINY, **fields), images.shape[1:3]
    )
    assert set(flatten_dict(made)) == set(flatten_dict(params))


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


def test_bfloat16_computes_close_to_float32_and_keeps_float32_outside(tiny):
  model, params, images, expected = tiny

  logits, out = model.clone(dtype=jnp.bfloat16).apply(
    {"params": params}, images
  )

  assert logits.dtype == jnp.float32
  assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
  made = flops.abstract_params(model.clone(dtype=jnp.bfloat16), (32, 32))
  assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {
    jnp.dtype("float32")
  }


def test_tokens_are_kept_in_bfloat16_and_added_to_in_float32(tiny):
  model, params, images, _ = tiny
  # Two branches that are a bias each.
  params = params | {
    "MixerBlock_0": jax.tree.map(jnp.zeros_like, params["MixerBlock_0"])
  }
  shifts = np.linspace(0.1, 1, 16), np.linspace(-1, 1, 24)
  for mixing, shift in zip(("token", "channel"), shifts, strict=True):
    layer = params["MixerBlock_0"][f"{mixing}_mixing"]["Dense_1"]
    layer["bias"] = jnp.float32(shift)

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
def test_gpus_store_tokens_and_their_cotangents_in_bfloat16(
  tiny, platform, held
):
  model, params, images, _ = tiny
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
    norm = jnp.linalg.norm(gradient)
    # The shift of a whole token is normalised away: its gradient is 0.
    if "token_mixing/Dense_1/bias" in name:
      norm = jnp.linalg.norm(exact[name.replace("token", "channel")])
    assert jnp.linalg.norm(rounded[name] - gradient) < 0.03 * norm, name


def of_family(family, **fields):
  """A small model, parameters of which none is zero, and images."""
  sizes = dict(patch=8, hidden=16, blocks=3) | SMALL[family]
  model = create(family, **sizes, num_classes=5, **fields)
  images = jax.random.normal(jax.random.key(0), (4, 24, 16, 3))
  params = model.init(jax.random.key(1), images)["params"]
  params = jax.tree.map(
    lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), params
  )
  return model, params, images


@pytest.mark.parametrize(
  "fields",
  [
    {"remat": "blocks"},
    {"remat": "products"},
    {"remat": "token_mixing"},
    {"scan": True},
    {"scan": True, "remat": "blocks"},
    {"scan": True, "remat": "products"},
    {"scan": True, "remat": "token_mixing"},
  ],
)
@pytest.mark.parametrize("family", ["Mixer", "ViT"])
def test_neither_remat_nor_scan_changes_logits_or_gradients(family, fields):
  model, params, images = of_family(family)

  def loss(params, model):
    return (model.apply({"params": params}, images)[0] ** 2).sum()

  plain = jax.value_and_grad(loss)(params, model)
  remat = jax.value_and_grad(loss)(params, model.clone(**fields))

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    plain,
    remat,
  )


@pytest.mark.parametrize("family", ["Mixer", "ViT"])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_scan_drops_and_rounds_as_blocks_in_turn_do(family, dtype):
  model, params, images = of_family(
    family,
    stoch_depth=0.4,
    dropout=0.2,
    stoch_depth_rescale=True,
    dtype=dtype,
  )
  keys = jax.random.split(jax.random.key(2), 4)

  def run(model):
    return model.apply({"params": params}, images, train=True, drop_keys=keys)

  (logits, out), (expected, in_turn) = run(model.clone(scan=True)), run(model)

  assert out.keys() == in_turn.keys()
  tolerance = 1e-5 if dtype is None else 0.05
  for name in ("block00", "block02"):
    assert out[name].dtype == in_turn[name].dtype
  np.testing.assert_allclose(logits, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", ["Mixer", "ViT"])
def test_remat_policies_save_less_the_more_they_recompute(family):
  model, params, images = of_family(family)

  def left(**fields):
    return numbers_kept(model.clone(**fields), params, images)

  nothing = left(remat="none")
  assert left(remat="blocks") < left(remat="products") < nothing
  # Of 4 images and 3 blocks, tokens of 16 channels and 32 hidden units; but not
  # the bias with which the first branch ends.
  tokens, bias = {"Mixer": (6, 6), "ViT": (7, 16)}[family]
  more = left(remat="token_mixing") - left(remat="blocks")
  assert more == 3 * (4 * tokens * (16 + 32) - bias)
  assert left(scan=True, remat="blocks") < left(scan=True) < nothing
  in_a_loop = left(scan=True, remat="token_mixing")
  assert in_a_loop - left(scan=True, remat="blocks") == more


@pytest.mark.parametrize("scan, grows", [(False, True), (True, False)])
def test_a_scanned_program_is_as_long_for_many_blocks_as_for_few(scan, grows):
  def count_products(blocks):
    model = create("Mixer", scan=scan, **{**TINY, "blocks": blocks})
    images = jnp.zeros((1, 32, 32, 3))
    params = flops.abstract_params(model, (32, 32))

    def apply(params):
      return model.apply({"params": params}, images)[0]

    return str(jax.make_jaxpr(apply)(params)).count("dot_general")

  assert (count_products(6) > count_products(3)) == grows


@pytest.mark.parametrize(
  "name, field, message",
  [
    ("Mixer-S/32", {"remat": "all"}, "'all' is none of none, products, token_"),
    ("Mixer-S/32", {"gelu": "erf"}, "gelu='erf' is none of tanh, exact"),
    ("Mixer-S/32", {"kernels": "fast"}, "'fast' is none of auto, plain, fused"),
    ("ViT-B/16", {"pool": "max"}, "pool='max' is none of token, mean"),
  ],
)
def test_an_unknown_word_is_refused_with_the_known_ones(name, field, message):
  with pytest.raises(ValueError, match=message):
    create(name, **field)


def test_stochastic_depth_drops_whole_branches_and_leaves_the_rest_as_it_is(
  tiny,
):
  _, params, images, _ = tiny
  model = create("Mixer", num_classes=7, **TINY, stoch_depth=0.5)
  images = jnp.broadcast_to(images[:1], (400, *images.shape[1:]))
  keys = jax.random.split(jax.random.key(0), 400)

  _, out = model.apply({"params": params}, images, train=True, drop_keys=keys)
  _, whole = model.apply({"params": params}, images[:1])

  # The first block has rate 0, the second the full rate on two branches: each
  # example is one of four, among them the input of the block and the block.
  np.testing.assert_allclose(
    out["block00"], jnp.broadcast_to(whole["block00"], (400, 16, 24)), atol=1e-5
  )
  kinds = np.unique(np.round(np.asarray(out["block01"]), 3), axis=0)
  assert len(kinds) == 4

  def share_like(expected):
    close = np.abs(out["block01"] - expected).max(axis=(1, 2)) < 1e-4
    return close.mean()

  assert share_like(whole["block00"]) == pytest.approx(0.25, abs=0.08)
  assert share_like(whole["block01"]) == pytest.approx(0.25, abs=0.08)


def test_rescaled_stochastic_depth_keeps_the_mean(tiny):
  _, params, images, _ = tiny
  model = create(
    "Mixer",
    num_classes=7,
    **(TINY | {"blocks": 2}),
    stoch_depth=0.3,
    stoch_depth_rescale=True,
  )
  # Without its token mixing the last block is linear in its mask.
  params = dict(params)
  params["MixerBlock_1"] = jax.tree.map(jnp.zeros_like, params["MixerBlock_1"])
  mixing = dict(params["MixerBlock_1"]["channel_mixing"])
  mixing["Dense_1"] = {"kernel": jnp.zeros((48, 24)), "bias": jnp.ones(24)}
  params["MixerBlock_1"] = params["MixerBlock_1"] | {"channel_mixing": mixing}
  images = jnp.broadcast_to(images[:1], (2000, *images.shape[1:]))
  keys = jax.random.split(jax.random.key(0), 2000)

  _, out = model.apply({"params": params}, images, train=True, drop_keys=keys)

  added = np.asarray(out["block01"] - out["block00"])
  assert set(np.unique(np.round(added, 3))) == {0.0, np.float32(1.429)}
  assert added.mean() == pytest.approx(1.0, abs=0.05)


def test_dropout_masks_are_each_examples_own_and_differ_within_it(tiny):
  _, params, images, _ = tiny
  model = create("Mixer", num_classes=7, **TINY, dropout=0.5)
  same = jnp.broadcast_to(images[:1], (4, *images.shape[1:]))
  keys = jax.random.split(jax.random.key(0), 4)

  logits, _ = model.apply({"params": params}, same, train=True, drop_keys=keys)
  alone, _ = model.apply(
    {"params": params}, same[2:3], train=True, drop_keys=keys[2:3]
  )

  assert len(np.unique(np.asarray(logits)[:, 0])) == 4
  np.testing.assert_allclose(logits[2:3], alone, rtol=1e-5)


def test_dropping_without_keys_is_refused_with_an_example(tiny):
  _, params, images, _ = tiny
  model = create("Mixer", num_classes=7, **TINY, dropout=0.5)

  with pytest.raises(ValueError, match="jax.random.split"):
    model.apply({"params": params}, images, train=True)


def test_without_a_head_the_pre_logits_come_out(tiny):
  _, params, images, _ = tiny
  body = {k: v for k, v in params.items() if k != "head"}

  x, out = create("Mixer", **TINY).apply({"params": body}, images)

  assert x is out["pre_logits"]


@pytest.mark.parametrize(
  "shape, words",
  [
    ((1, 30, 32, 3), ("30 x 32 px", "8 px", "32 x 32 px")),
    ((1, 32, 32, 1), ("1 channels", "3", "image_channels=1")),
    ((1, 64, 64, 3), ("64 x 64 px", "64 tokens", "16", "32 x 32 px")),
    ((32, 32, 3), ("[n, height, width, channels]", "image[None]")),
  ],
)
def test_images_that_do_not_fit_are_refused_with_both_numbers(
  tiny, shape, words
):
  model, params, _, _ = tiny

  with pytest.raises(ValueError) as error:
    model.apply({"params": params}, np.zeros(shape, np.float32))

  assert all(word in str(error.value) for word in words)


def test_unknown_names_and_fields_are_refused_with_the_nearest():
  with pytest.raises(ValueError, match="Mixer-B/17.*Mixer-B/16"):
    create("Mixer-B/17")
  with pytest.raises(ValueError, match="'token_mlp'.*'tokens_mlp'"):
    create("Mixer-B/16", token_mlp=3)
  with pytest.raises(ValueError, match="hidden, blocks.*Mixer-S/32"):
    create("Mixer", patch=8)
