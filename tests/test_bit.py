# SPDX-License-Identifier: Apache-2.0
"""The BiT: published sizes, initial values, resolutions, remat, drop path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, path_aware_map
from small_models import assert_close, golden

from mixer.models import bit, create, flops

# Parameters with a 1,000-way head, as the authors' and others' tables give
# them; the arithmetic below covers the rest.
PUBLISHED_COUNTS = {
  "BiT-R50x1": 25_549_352,
  "BiT-R50x3": 217_319_080,
  "BiT-R101x1": 44_541_480,
  "BiT-R101x3": 387_934_888,
  "BiT-R152x2": 236_335_208,
  "BiT-R152x4": 936_533_224,
}
# Multiply-accumulates of one 224 px image, without head.
GMACS = {"BiT-R50x1": 4.10, "BiT-R152x4": 183.0}


def parameters_by_arithmetic(width, units, classes):
  channels = round(64 * width)
  count, x = 7 * 7 * 3 * channels, channels
  for stage, depth in enumerate(units):
    middle = channels << stage
    for unit in range(depth):
      count += 2 * x + x * middle  # gn1, conv1
      count += 2 * middle + 9 * middle**2  # gn2, conv2
      count += 2 * middle + 4 * middle**2  # gn3, conv3
      if unit == 0:
        count += 4 * x * middle  # conv_proj
      x = 4 * middle
  return count + 2 * x + (x + 1) * classes


@pytest.fixture(scope="module")
def short():
  """Returns only the first stage, without head, on 16 px: quick to compile."""
  _, params, images, _ = golden("BiT")
  params = {k: v for k, v in params.items() if k in ("root_block", "block1")}
  params["norm-pre-head"] = params["block1"]["unit02"]["gn1"]
  return create("BiT", width=0.5, units=(2,)), params, images[:, 8:24, 8:24]


def test_the_authors_later_copy_differs_only_at_the_stems_border(monkeypatch):
  model, params, images, _ = golden("BiT")
  expected = np.load("tests/goldens/bit_tiny_io.npz")["big_vision_logits"]
  pad = functools.partial(jnp.pad, constant_values=-np.inf)
  monkeypatch.setattr(bit.jnp, "pad", pad)

  with jax.default_matmul_precision("highest"):
    logits, _ = model.apply({"params": params}, images)

  assert np.abs(logits - expected).max() <= 1e-5


@pytest.mark.parametrize("name", bit.VARIANTS)
def test_a_variant_has_the_published_parameters_and_its_arithmetic(name):
  params = flops.abstract_params(create(name, num_classes=1000), (224, 224))

  count = flops.count_params(params)
  assert count == parameters_by_arithmetic(*bit.VARIANTS[name], 1000)
  assert count == PUBLISHED_COUNTS.get(name, count)


@pytest.mark.parametrize("name", GMACS)
def test_a_variant_costs_its_gmacs(name):
  macs = flops.multiply_accumulates(create(name), (224, 224))

  assert macs / 1e9 == pytest.approx(GMACS[name], rel=0.01)


def test_initial_values_are_those_of_the_authors_code():
  model = create("BiT", num_classes=5, width=0.5, units=(1,), head_bias=-6.9)
  images = jnp.zeros((1, 32, 32, 3))
  params = jax.jit(model.init)(jax.random.key(0), images)["params"]

  for name, value in flatten_dict(params, sep="/").items():
    if name.endswith("scale"):
      assert np.all(value == 1)
    elif name == "head/bias":
      assert np.all(value == np.float32(-6.9))
    elif name.endswith("bias") or name == "head/kernel":
      assert not value.any()
    else:  # LeCun normal
      fan_in = np.prod(value.shape[:3])
      assert value.std() == pytest.approx(fan_in**-0.5, rel=0.1)


def test_any_resolution_is_taken_and_halved_five_times_rounded_up():
  model = create("BiT", width=0.5, units=(1, 1, 1, 1))
  params = flops.abstract_params(model, (32, 32))

  for size, out_size in ((32, 1), (33, 2), (100, 4), (224, 7)):
    images = jnp.zeros((1, size, 32, 3))
    _, out = jax.eval_shape(model.apply, {"params": params}, images)
    assert out["block4"].shape == (1, out_size, 1, 1024)


def test_filters_of_any_scale_and_shift_compute_the_same():
  model, params, images, expected = golden("BiT")
  # Standardisation takes both away.
  moved = path_aware_map(
    lambda path, x: 3 * x + 0.5 if "conv" in path[-2] else x, params
  )

  logits, _ = model.apply({"params": moved}, images)

  np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_gradients_in_bfloat16_are_as_large_as_in_float32(short):
  model, params, _ = short
  images = jax.random.normal(jax.random.key(0), (32, 16, 16, 3))

  def gradients(dtype):
    def loss(params):
      features, _ = model.clone(dtype=dtype).apply({"params": params}, images)
      return jax.nn.log_softmax(features)[:, 0].mean()

    return flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")

  exact, rounded = gradients(None), gradients(jnp.bfloat16)

  # ReLUs near 0 turn over, so that directions differ more than lengths.
  for name, gradient in exact.items():
    ratio = jnp.linalg.norm(rounded[name]) / jnp.linalg.norm(gradient)
    assert ratio == pytest.approx(1, abs=0.08), name


def test_remat_changes_neither_features_nor_gradients(short):
  model, params, images = short

  def loss(params, model):
    return (model.apply({"params": params}, images)[0] ** 2).sum()

  compute = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  expected = compute(params, model)

  for policy in "products", "blocks":
    found = compute(params, model.clone(remat=policy))
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_stochastic_depth_drops_the_last_units_branch_at_the_whole_rate(short):
  model, params, images = short
  model = model.clone(stoch_depth=0.4)
  same = jnp.broadcast_to(images[:1], (300, *images.shape[1:]))
  keys = jax.random.split(jax.random.key(0), 300)

  def block1(**fields):
    _, out = model.clone(**fields).apply(
      {"params": params}, same, train=True, drop_keys=keys
    )
    return out["block1"]

  whole = block1(stoch_depth=0.0)[0]
  dropped, rescaled = block1(), block1(stoch_depth_rescale=True)

  # Either the first unit's output, or the second's branch added to it.
  stays = np.abs(dropped - whole).max(axis=(1, 2, 3)) < 1e-4
  assert stays.mean() == pytest.approx(0.6, abs=0.08)
  shortcut = dropped[~stays]
  assert np.abs(shortcut - shortcut[0]).max() < 1e-5
  np.testing.assert_allclose(
    rescaled[stays][0], shortcut[0] + (whole - shortcut[0]) / 0.6, atol=1e-4
  )
  np.testing.assert_allclose(rescaled[~stays], shortcut, atol=1e-5)


def test_dropout_masks_only_the_heads_input():
  model, params, images, _ = golden("BiT")
  keys = jax.random.split(jax.random.key(0), len(images))

  logits, out = model.clone(dropout=0.5).apply(
    {"params": params}, images, train=True, drop_keys=keys
  )
  expected, evaluated = model.apply({"params": params}, images)

  np.testing.assert_allclose(
    out["pre_logits"], evaluated["pre_logits"], rtol=1e-5, atol=1e-6
  )
  assert np.abs(logits - expected).min() > 0
