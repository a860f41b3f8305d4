# SPDX-License-Identifier: Apache-2.0
"""The fused kernels do what the plain layers do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer.models import create
from mixer.models.cost import multiply_accumulates
from mixer.models.fused_token_mixing import gpu, tpu, weights_of
from mixer.models.fused_token_mixing.arithmetic import Weights
from mixer.models.mixer import MixerBlock

TINY = dict(patch=4, hidden=16, blocks=2, tokens_mlp=8, channels_mlp=16)


@pytest.fixture(autouse=True)
def compiled_quickly(compiled_once):
  """Interpreted kernels take long to optimise."""


def block(tokens, channels, dtype=None, **fields):
  """A block whose channel mixing adds nothing, tokens, and a cotangent."""
  fields = dict(tokens_mlp=7, channels_mlp=1, dtype=dtype) | fields
  model = MixerBlock(**fields)
  rng = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(rng[0], (3, tokens, channels)) + 1
  params = model.init(rng[1], x)["params"]
  params = jax.tree.map(
    lambda p: p + 0.2 * jnp.cos(7.0 * jnp.arange(p.size)).reshape(p.shape),
    params,
  )
  params["channel_mixing"] = jax.tree.map(
    jnp.zeros_like, params["channel_mixing"]
  )
  return model, params, x, jax.random.normal(rng[2], x.shape)


def value_and_gradients(function, *arguments, cotangent):
  """What it leaves, and the gradients of all arguments."""

  @jax.jit
  def both(arguments, cotangent):
    out, back = jax.vjp(function, *arguments)
    return out, back(cotangent.astype(out.dtype))

  return both(arguments, cotangent)


def assert_near(values, expected, tolerance):
  """Each array within the tolerance, relative to its norm."""
  values = dict(jax.tree.leaves_with_path(values))
  expected = dict(jax.tree.leaves_with_path(expected))
  assert values.keys() == expected.keys()
  for name, right in expected.items():
    value, right = (np.asarray(x, np.float64) for x in (values[name], right))
    off = np.linalg.norm(value - right) / np.linalg.norm(right)
    assert off < tolerance, f"{name}: {off}"


@pytest.mark.parametrize(
  ("kernels", "tokens", "channels", "hidden", "options", "dtype", "tolerance"),
  [
    (tpu, 9, 48, 7, {"channels": 16}, jnp.float32, 1e-5),
    (tpu, 49, 256, 7, {"channels": 128}, jnp.float32, 1e-5),
    (tpu, 9, 32, 7, {"channels": 16}, jnp.bfloat16, 0.02),
    (gpu, 9, 48, 7, {}, jnp.float32, 1e-5),
    (gpu, 49, 150, 7, {}, jnp.float32, 1e-5),
    (gpu, 9, 32, 7, {}, jnp.bfloat16, 0.02),
    # More hidden units than a program works on at once.
    (gpu, 17, 33, 300, {}, jnp.float32, 1e-5),
    (gpu, 17, 33, 300, {}, jnp.bfloat16, 0.02),
  ],
)
def test_kernels_and_gradients_are_those_of_the_layers(
  kernels, tokens, channels, hidden, options, dtype, tolerance
):
  model, params, x, cotangent = block(
    tokens, channels, dtype, tokens_mlp=hidden
  )
  weights = weights_of(params)
  cotangent = cotangent.astype(dtype)
  how = {"dtype": jnp.dtype(dtype), "interpret": True} | options

  def plain(weights, x, kept):
    mixed = model.apply({"params": with_weights(params, weights)}, x)
    x = x.astype(jnp.float32)
    return (x + kept[:, None, None] * (mixed - x)).astype(dtype)

  # Tokens come to the first block in float32, and to the others in `dtype`.
  of_first = x, jnp.ones(3)
  of_others = x.astype(dtype), jnp.array([1.0, 0.0, 2.0])
  for x, kept in of_first, of_others:
    expected, (d_weights, dx) = value_and_gradients(
      functools.partial(plain, kept=kept), weights, x, cotangent=cotangent
    )
    out = kernels.mix(x, weights, kept, **how)
    gradients = kernels.gradient(x, weights, kept, cotangent, **how)
    assert out.dtype == dtype and gradients[0].dtype == x.dtype
    assert_near(out, expected, tolerance)
    assert_near(gradients, (dx, d_weights), tolerance)


def with_weights(params, weights: Weights):
  """A block's parameters, with these for its token mixing."""
  return params | {
    "LayerNorm_0": {"scale": weights.scale, "bias": weights.shift},
    "token_mixing": {
      "Dense_0": {"kernel": weights.kernel_in, "bias": weights.bias_in},
      "Dense_1": {"kernel": weights.kernel_out, "bias": weights.bias_out},
    },
  }


@pytest.mark.parametrize("fields", [{}, {"scan": True, "remat": "blocks"}])
def test_a_model_that_drops_paths_has_the_same_gradients(fields):
  images = jax.random.normal(jax.random.key(0), (4, 12, 12, 3))
  keys = jax.random.split(jax.random.key(1), 4)
  plain = create(
    "Mixer",
    **TINY,
    num_classes=5,
    stoch_depth=0.5,
    stoch_depth_rescale=True,
    head_bias=1.0,
  )
  fused = plain.clone(token_mixing="fused", **fields)
  params = plain.init(jax.random.key(2), images)["params"]
  kernel = params["head"]["kernel"]
  params["head"]["kernel"] = kernel + jnp.cos(jnp.arange(80.0)).reshape(16, 5)

  def step(model):
    def loss(params):
      run = {"train": True, "drop_keys": keys}
      return (model.apply({"params": params}, images, **run)[0] ** 2).sum()

    return jax.jit(jax.value_and_grad(loss))(params)

  made = fused.init(jax.random.key(2), images)["params"]
  assert jax.tree.structure(made) == jax.tree.structure(params)
  value, gradients = step(fused)
  expected, right = step(plain)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    gradients,
    right,
  )


def test_an_image_costs_what_it_costs_in_plain_layers():
  model = create("Mixer", **TINY, num_classes=5)
  fused = model.clone(token_mixing="fused")
  size = 12, 12
  assert multiply_accumulates(fused, size) == multiply_accumulates(model, size)


@pytest.mark.parametrize(
  ("name", "fields", "words"),
  [
    ("Mixer", {"gelu": "exact"}, "not for gelu='exact': take token_mixing="),
    ("Mixer", {"dropout": 0.1}, "not for dropout=0.1: take token_mixing="),
    ("Mixer", {"token_mixing": "fast"}, "'fast' is none of plain, fused"),
    ("MixerVariation", {}, "is of Mixer, and not of MixerVariation"),
  ],
)
def test_what_the_kernel_does_not_do_is_refused(name, fields, words):
  model = create(name, **TINY, **({"token_mixing": "fused"} | fields))
  with pytest.raises(ValueError, match=words):
    model.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))


def test_a_program_for_gpus_has_the_kernels_of_gpus():
  images = jax.ShapeDtypeStruct((2, 12, 12, 3), jnp.float32)
  model = create("Mixer", **TINY, token_mixing="fused")
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]

  def loss(params, images):
    return model.apply({"params": params}, images)[0].sum()

  traced = jax.jit(jax.grad(loss)).trace(params, images)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  kernels = [line for line in text.splitlines() if "triton" in line]
  assert len(kernels) == 2 * model.blocks
