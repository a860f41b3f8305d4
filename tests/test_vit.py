# SPDX-License-Identifier: Apache-2.0
"""The ViT: published sizes, initial values, pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from small_models import SIZES, golden

from mixer.models import create, flops, vit

TINY = SIZES["ViT"]


# With a 1,000-way head at 224 px: parameters as the ViT paper's authors and
# others give them; multiply-accumulates by the arithmetic below.
PARAMETERS = {
  "ViT-B/32": 88_224_232,
  "ViT-B/16": 86_567_656,
  "ViT-L/32": 306_535_400,
  "ViT-L/16": 304_326_632,
  "ViT-H/14": 632_045_800,
}


# As timm counts them.
GMACS = {"ViT-B/16": 17.6, "ViT-L/16": 61.6}


def macs_by_arithmetic(patch, hidden, blocks, mlp, heads, classes):
  patches = (224 // patch) ** 2
  s, c = patches + 1, hidden
  attention = 4 * s * c * c + 2 * s * s * c
  block = attention + 2 * s * c * mlp
  return patches * patch**2 * 3 * c + blocks * block + c * classes


@pytest.mark.parametrize("name", vit.VARIANTS)
def test_a_variant_has_the_published_parameters_and_its_arithmetic(name):
  model = create(name, num_classes=1000)

  macs = flops.multiply_accumulates(model, (224, 224))

  params = flops.abstract_params(model, (224, 224))
  assert flops.count_params(params) == PARAMETERS[name]
  assert macs == macs_by_arithmetic(*vit.VARIANTS[name], classes=1000)
  assert macs / 1e9 == pytest.approx(GMACS.get(name, macs / 1e9), rel=5e-3)


def test_initial_values_are_those_of_the_authors_code():
  model = create("ViT", num_classes=5, **TINY | {"hidden": 96}, head_bias=-6.9)
  images = jnp.zeros((1, 32, 32, 3))
  params = jax.jit(model.init)(jax.random.key(0), images)["params"]
  flat = flatten_dict(params, sep="/")

  block = "Transformer/encoderblock_0"
  attention = f"{block}/MultiHeadDotProductAttention_0"
  uniform = {  # Xavier's, over the true fans
    f"{block}/MlpBlock_0/Dense_0/kernel": 96 + 48,
    f"{attention}/query/kernel": 96 + 96,
    f"{attention}/out/kernel": 96 + 96,
  }
  for name, fans in uniform.items():
    limit = (6 / fans) ** 0.5
    assert np.abs(flat[name]).max() == pytest.approx(limit, rel=0.01)
    assert flat[name].std() == pytest.approx(limit / 3**0.5, rel=0.03)
  positions = flat["Transformer/posembed_input/pos_embedding"]
  assert positions.std() == pytest.approx(0.02, rel=0.05)
  assert flat[f"{block}/MlpBlock_0/Dense_1/bias"].std() == pytest.approx(
    1e-6, rel=0.3
  )
  for name in ("cls", "head/kernel", f"{attention}/query/bias"):
    assert not flat[name].any()
  assert np.all(flat["head/bias"] == np.float32(-6.9))


def test_mean_pooling_has_no_class_token():
  model = create("ViT", **TINY, pool="mean")
  images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
  params = model.init(jax.random.key(1), images)["params"]

  x, out = model.apply({"params": params}, images)

  assert "cls" not in params
  last = out["block01"]
  assert last.shape == (2, 16, 24)
  normal = jax.nn.standardize(last, epsilon=1e-6)
  np.testing.assert_allclose(x, normal.mean(1), atol=1e-5)


def test_a_hidden_layer_under_the_head_makes_the_pre_logits():
  model, params, images, _ = golden("ViT")
  layer = {"kernel": np.eye(24, 10, dtype=np.float32), "bias": np.ones(10)}
  head = {"kernel": np.ones((10, 7)), "bias": np.zeros(7)}
  _, plain = model.apply({"params": params}, images)

  logits, out = model.clone(representation=10).apply(
    {"params": params | {"pre_logits": layer, "head": head}}, images
  )

  expected = np.tanh(plain["pre_logits"][:, :10] + 1)
  np.testing.assert_allclose(out["pre_logits"], expected, atol=1e-5)
  np.testing.assert_allclose(logits[:, 0], expected.sum(1), atol=1e-5)


def test_the_bias_of_keys_which_the_softmax_removes_has_no_gradient():
  model, params, images, _ = golden("ViT")
  names = [
    ("Transformer", f"encoderblock_{i}", "MultiHeadDotProductAttention_0")
    for i in range(model.blocks)
  ]

  def gradients(params, dtype):
    def loss(params):
      logits, _ = model.clone(dtype=dtype).apply({"params": params}, images)
      return jax.nn.log_softmax(logits)[:, 0].mean()

    flat = flatten_dict(jax.jit(jax.grad(loss))(params))
    keys = [flat.pop((*name, "key", "bias")) for name in names]
    return keys, max(abs(x).max() for x in flat.values())

  # Whatever its value, the logits are the same: the truth is 0.
  flat = flatten_dict(params)
  for name in names:
    bias = flat[*name, "key", "bias"]
    shift = np.cos(np.arange(bias.size).reshape(bias.shape))
    flat[*name, "key", "bias"] = bias + shift
  shifted, _ = model.apply({"params": unflatten_dict(flat)}, images)
  logits, _ = model.apply({"params": params}, images)
  np.testing.assert_allclose(shifted, logits, atol=1e-5)

  for dtype, nearly in (None, 1e-6), (jnp.bfloat16, 0):
    keys, largest = gradients(params, dtype)
    assert max(abs(x).max() for x in keys) <= nearly * largest
