# SPDX-License-Identifier: Apache-2.0
"""Fused kernels compute the same as the layers."""

import contextlib
import functools
import shutil
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import count_saved

from benchmarks.kernels import Errors, agree, compare, run
from mixer.errors import UserError
from mixer.models import create
from mixer.models.flops import multiply_accumulates
from mixer.models.kernels import (
  Weights,
  gpu,
  mixing_weights,
  select_kernels,
  target_device,
  tpu,
)
from mixer.models.kernels.triton import bias_gelu, layer_norm_residual
from mixer.models.layers import patch_embedding
from mixer.models.mixer import MixerBlock


class Device(NamedTuple):
  """Attributes that decide about kernels."""

  platform: str
  device_kind: str


A_GPU = Device("gpu", "NVIDIA H200")
TINY = dict(patch=4, hidden=16, blocks=2, tokens_mlp=8, channels_mlp=16)


@pytest.fixture(autouse=True)
def compiled_quickly(compiled_once):
  """Interpreted kernels take long to optimize."""


def block(tokens, channels, dtype=None, *, silent=True, **fields):
  """Returns a block, its parameters, tokens and a cotangent.

  With `silent`, its channel mixing adds nothing.
  """
  fields = dict(tokens_mlp=7, channels_mlp=1, dtype=dtype) | fields
  model = MixerBlock(**fields)
  rng = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(rng[0], (3, tokens, channels)) + 1
  params = model.init(rng[1], x)["params"]
  params = jax.tree.map(
    lambda p: p + 0.2 * jnp.cos(7.0 * jnp.arange(p.size)).reshape(p.shape),
    params,
  )
  if silent:
    params["channel_mixing"] = jax.tree.map(
      jnp.zeros_like, params["channel_mixing"]
    )
  return model, params, x, jax.random.normal(rng[2], x.shape)


def value_and_gradients(function, *arguments, cotangent):
  """Returns the output and the gradients of all arguments."""

  @jax.jit
  def both(arguments, cotangent):
    out, back = jax.vjp(function, *arguments)
    return out, back(cotangent.astype(out.dtype))

  return both(arguments, cotangent)


def assert_near(values, expected, tolerance):
  """Asserts each array within the tolerance, relative to its norm."""
  values = dict(jax.tree.leaves_with_path(values))
  expected = dict(jax.tree.leaves_with_path(expected))
  assert values.keys() == expected.keys()
  for name, right in expected.items():
    value, right = (np.asarray(x, np.float64) for x in (values[name], right))
    off = np.linalg.norm(value - right) / np.linalg.norm(right)
    assert off < tolerance, f"{name}: {off}"


@pytest.mark.parametrize(
  ("tokens", "channels", "options", "dtype", "tolerance"),
  [
    (9, 48, {"channels": 16}, jnp.float32, 1e-5),
    (49, 256, {"channels": 128}, jnp.float32, 1e-5),
    (9, 32, {"channels": 16}, jnp.bfloat16, 0.02),
  ],
)
def test_the_tpu_kernel_and_its_gradients_equal_those_of_the_layers(
  tokens, channels, options, dtype, tolerance
):
  model, params, x, cotangent = block(tokens, channels, dtype)
  weights = mixing_weights(params, "token_mixing")
  cotangent = cotangent.astype(dtype)
  options = {"dtype": jnp.dtype(dtype), "interpret": True} | options

  def plain(weights, x, mask):
    mixed = model.apply({"params": with_weights(params, weights)}, x)
    x = x.astype(jnp.float32)
    return (x + mask[:, None, None] * (mixed - x)).astype(dtype)

  # The first block's input is float32, the others' in `dtype`.
  first = x, jnp.ones(3)
  others = x.astype(dtype), jnp.array([1.0, 0.0, 2.0])
  for x, mask in first, others:
    expected, (d_weights, dx) = value_and_gradients(
      functools.partial(plain, mask=mask), weights, x, cotangent=cotangent
    )
    # The layers stop this one in bfloat16.
    shift = (mask[:, None, None] * cotangent.astype(jnp.float32)).sum((0, 2))
    d_weights = d_weights._replace(b2=shift)
    out = tpu.mix(x, weights, mask, **options)
    gradients = tpu.gradient(x, weights, mask, cotangent, **options)
    assert out.dtype == dtype and gradients[0].dtype == x.dtype
    assert_near(out, expected, tolerance)
    assert_near(gradients, (dx, d_weights), tolerance)


@pytest.fixture
def interpreted(monkeypatch):
  """Runs the GPU kernels on this machine."""
  for name in "mix_tokens", "mix_channels":
    run = functools.partial(getattr(gpu, name), interpret=True)
    monkeypatch.setattr(gpu, name, run)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
  ("tokens", "channels", "hidden", "dtype", "tolerance"),
  [
    (9, 48, (7, 5), jnp.float32, 1e-5),
    (16, 32, (8, 16), jnp.float32, 1e-5),  # no padding
    (49, 150, (7, 5), jnp.float32, 1e-5),
    # More than one tile.
    (17, 130, (33, 200), jnp.float32, 1e-5),
    (17, 130, (33, 200), jnp.bfloat16, 0.02),
  ],
)
def test_the_gpu_block_and_its_gradients_equal_those_of_the_layers(
  tokens, channels, hidden, dtype, tolerance
):
  fields = {"tokens_mlp": hidden[0], "channels_mlp": hidden[1]}
  # In float32: a CPU may sum the layers' products in bfloat16.
  plain, params, x, cotangent = block(tokens, channels, **fields, silent=False)
  fused = gpu.GpuMixerBlock(**fields, dtype=dtype)

  for tokens_in in x, x.astype(dtype):
    (out, gradients), (expected, right) = (
      value_and_gradients(
        lambda params, x, model=model: model.apply({"params": params}, x),
        params,
        tokens_in,
        cotangent=cotangent,
      )
      for model in (fused, plain)
    )
    assert out.dtype == dtype and gradients[1].dtype == tokens_in.dtype
    assert_near(out, expected, tolerance)
    if dtype == jnp.bfloat16:  # stopped in both
      for each in gradients, right:
        assert not each[0]["token_mixing"]["Dense_1"].pop("bias").any()
    assert_near(gradients, right, tolerance)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gpu_gelu_is_the_tanh_form_also_far_from_zero(dtype):
  x = jnp.linspace(-40, 40, 1031).reshape(1, 1, -1)
  x = jnp.concatenate([x, jnp.sign(x) * 1e4], axis=1).astype(dtype)
  bias = jnp.linspace(-1, 1, x.shape[-1])

  def expected(x, bias):
    return jax.nn.gelu(x.astype(jnp.float32) + bias).astype(dtype)

  (out, (dx, _)), (right, (right_dx, _)) = (
    value_and_gradients(gelu, x, bias, cotangent=jnp.ones_like(x))
    for gelu in (functools.partial(bias_gelu, axis=2, interpret=True), expected)
  )
  # jax's own loses 1e-5 where the tanh is nearly 1.
  rtol = 1e-5 if dtype == jnp.float32 else 0.01
  for value, exact in (out, right), (dx, right_dx):
    value, exact = (np.asarray(x, np.float32) for x in (value, exact))
    np.testing.assert_allclose(value, exact, rtol=rtol, atol=2e-5)


def test_the_layer_norm_kernel_pads_with_zeros():
  x = jax.random.normal(jax.random.key(0), (2, 5, 6))
  _, y = layer_norm_residual(x, jnp.ones(6), jnp.ones(6), 8, jnp.float32, True)
  assert y.shape == (2, 8, 6)
  assert not y[:, 5:].any() and y[:, :5].all()


@pytest.mark.parametrize("grid", [(3, 2), (1, 1)])
def test_a_product_of_patches_equals_the_convolution(grid):
  images = jax.random.normal(
    jax.random.key(0), (2, grid[0] * 4, grid[1] * 4, 3)
  )
  convolution, product = (
    patch_embedding(8, 4, None, "stem", as_product=flag)
    for flag in (False, True)
  )
  params = convolution.init(jax.random.key(1), images)
  np.testing.assert_allclose(
    product.apply(params, images),
    convolution.apply(params, images),
    rtol=1e-5,
    atol=1e-6,
  )


def with_weights(params, weights: Weights):
  """Replaces the token mixing in a block's parameters."""
  return params | {
    "LayerNorm_0": {"scale": weights.gamma, "bias": weights.beta},
    "token_mixing": {
      "Dense_0": {"kernel": weights.w1, "bias": weights.b1},
      "Dense_1": {"kernel": weights.w2, "bias": weights.b2},
    },
  }


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"scan": True, "remat": "blocks"},
    {"remat": "products"},
    {"remat": "token_mixing"},
  ],
)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_kernels_with_drop_path_have_the_same_gradients(device, fields):
  images = jax.random.normal(jax.random.key(0), (4, 12, 12, 3))
  keys = jax.random.split(jax.random.key(1), 4)
  plain = create(
    "Mixer",
    **TINY,
    num_classes=5,
    stoch_depth=0.5,
    stoch_depth_rescale=True,
    head_bias=1.0,
    kernels="plain",
  )
  fused = plain.clone(kernels="fused", **fields)
  params = plain.init(jax.random.key(2), images)["params"]
  kernel = params["head"]["kernel"]
  params["head"]["kernel"] = kernel + jnp.cos(jnp.arange(80.0)).reshape(16, 5)

  def step(model):
    def loss(params):
      run = {"train": True, "drop_keys": keys}
      return (model.apply({"params": params}, images, **run)[0] ** 2).sum()

    return jax.jit(jax.value_and_grad(loss))(params)

  with target_device(A_GPU) if device == "gpu" else contextlib.nullcontext():
    made = fused.init(jax.random.key(2), images)["params"]
    value, gradients = step(fused)
  assert jax.tree.structure(made) == jax.tree.structure(params)
  expected, right = step(plain)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    gradients,
    right,
  )


@pytest.mark.usefixtures("interpreted")
def test_remat_saves_as_much_with_gpu_kernels_as_with_layers():
  model = create("Mixer", **TINY, num_classes=5, kernels="plain")
  images = jax.random.normal(jax.random.key(0), (4, 12, 12, 3))
  params = model.init(jax.random.key(2), images)["params"]

  def saved(remat, model):
    with target_device(A_GPU):
      return count_saved(model.clone(remat=remat), params, images)

  fused = model.clone(kernels="fused")
  for policy in "blocks", "token_mixing":
    assert saved(policy, fused) == saved(policy, model)
  # Products of the library, which have their own derivative, are saved.
  products = saved("products", fused)
  assert saved("token_mixing", fused) < products < saved("none", fused)


def test_kernels_cost_as_many_multiply_accumulates_as_layers():
  model = create("Mixer", **TINY, num_classes=5, kernels="plain")
  fused = model.clone(kernels="fused")
  size = 12, 12
  assert multiply_accumulates(fused, size) == multiply_accumulates(model, size)


@pytest.mark.parametrize(
  ("name", "fields", "words"),
  [
    ("Mixer", {"gelu": "exact"}, "not for gelu='exact': take kernels='plain'"),
    ("Mixer", {"dropout": 0.1}, "not for dropout=0.1: take kernels='plain'"),
    ("MixerVariation", {}, "is for Mixer, and not for MixerVariation"),
  ],
)
def test_options_that_kernels_do_not_support_are_refused(name, fields, words):
  model = create(name, **TINY, **({"kernels": "fused"} | fields))
  with pytest.raises(ValueError, match=words):
    model.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))


@pytest.mark.parametrize(
  ("kind", "device", "chosen"),
  [
    ("auto", A_GPU, "gpu"),
    ("auto", Device("gpu", "NVIDIA A100-SXM4-40GB"), "plain"),
    ("auto", Device("tpu", "TPU v4"), "plain"),
    ("plain", A_GPU, "plain"),
    ("fused", Device("gpu", "NVIDIA A100-SXM4-40GB"), "gpu"),
    ("fused", Device("tpu", "TPU v4"), "tpu"),
  ],
)
def test_kernels_are_the_default_where_they_are_known_to_be_faster(
  kind, device, chosen
):
  with target_device(device):
    assert select_kernels(kind, gelu="tanh", dropout=0.0) == chosen


@pytest.mark.parametrize("fields", [{"gelu": "exact"}, {"dropout": 0.1}])
def test_layers_run_options_that_kernels_do_not_support(fields):
  with target_device(A_GPU):
    fields = {"gelu": "tanh", "dropout": 0.0} | fields
    assert select_kernels("auto", **fields) == "plain"


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_a_program_for_an_h200_has_kernels_by_default():
  images = jax.ShapeDtypeStruct((2, 12, 12, 3), jnp.float32)
  model = create("Mixer", **TINY)
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]

  def loss(params, images):
    return model.apply({"params": params}, images)[0].sum()

  # Pallas asks the mesh for the GPU's kind.
  mesh = jax.sharding.AbstractMesh(
    (1,),
    ("batch",),
    (jax.sharding.AxisType.Explicit,),
    abstract_device=jax.sharding.AbstractDevice(
      device_kind=A_GPU.device_kind, num_cores=None, platform="gpu"
    ),
  )
  with target_device(A_GPU), jax.sharding.use_abstract_mesh(mesh):
    traced = jax.jit(jax.grad(loss)).trace(params, images)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  kernels = [line for line in text.splitlines() if "triton" in line]
  # Per branch: layer norm, GELU, and their gradients.
  assert len(kernels) == 8 * model.blocks
  assert "convolution" not in text


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_the_gpu_comparison_accepts_right_kernels(dtype):
  sizes = {"hidden": 24, "tokens_mlp": 12, "channels_mlp": 40}
  found = compare(sizes, tokens=9, examples=2, dtype=dtype)
  assert agree(**found)
  near = 1e-5 if dtype is None else 0.02
  assert 0 < max(found["kernels"]) < near


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_the_gpu_comparison_rejects_wrong_kernels(wrong):
  layers = Errors(1e-3, 1e-3, 1e-3)
  assert agree(layers, Errors(2e-3, 1e-3, 1e-3))
  assert not agree(layers, Errors(1e-3, 1e-3, wrong))


def test_the_gpu_comparison_requires_a_gpu():
  with pytest.raises(UserError, match="no GPU here"):
    run("Mixer-S/16")
  with pytest.raises(UserError, match="--models: 'S/16' is none of Mixer-"):
    run("S/16")


@pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="needs a GPU")
def test_kernels_agree_with_layers_on_this_machines_gpu(environment):
  kept = {
    name: value
    for name, value in environment.items()
    if name not in ("JAX_PLATFORMS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
  }
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.kernels"],
    capture_output=True,
    text=True,
    env=kept,
  )
  assert done.returncode == 0, done.stderr
