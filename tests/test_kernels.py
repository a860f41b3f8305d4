# SPDX-License-Identifier: Apache-2.0
"""Fused kernels compute the same as the layers."""

import collections
import functools
import importlib
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax import linen as nn
from small_models import assert_close, count_saved

from benchmarks.kernels import Errors, agree, compare, run
from mixer.errors import UserError
from mixer.models import create
from mixer.models.flops import multiply_accumulates
from mixer.models.kernels import (
  gpu,
  has_triton,
  mixing_weights,
  select_kernels,
  target_device,
  tpu,
)
from mixer.models.layers import multiply_patches
from mixer.models.mixer import MixerBlock

# Attributes that decide about kernels.
Device = collections.namedtuple("Device", "platform, device_kind")
CPU = Device("cpu", "cpu")
H200 = Device("gpu", "NVIDIA H200")
A100 = Device("gpu", "NVIDIA A100-SXM4-40GB")
TPU = Device("tpu", "TPU v4")
# Modules of GPU kernels, and their custom calls.
BACKENDS = {"triton": "__gpu$xla.gpu.triton", "mosaic": "mosaic_gpu_v2"}
TINY = dict(patch=4, hidden=16, blocks=2, tokens_mlp=8, channels_mlp=16)
IMAGES = jax.ShapeDtypeStruct((4, 12, 12, 3), jnp.float32)


@pytest.fixture(autouse=True)
def compiled_quickly(compiled_once):
  """Interpreted kernels take long to optimize."""


@pytest.fixture(params=BACKENDS)
def backend(request):
  """Names each module of GPU kernels, without those of another jax."""
  skip_without(request.param)
  return request.param


def skip_without(backend):
  pytest.importorskip(f"mixer.models.kernels.{backend}", exc_type=ImportError)


@functools.cache
def interpreted(backend):
  """Returns a backend's kernels, which then run on this machine."""
  module = importlib.import_module(f"mixer.models.kernels.{backend}")
  names = "layer_norm", "layer_norm_gradient", "bias_gelu", "bias_gelu_gradient"
  run = types.ModuleType(backend)
  for name in names:
    setattr(run, name, functools.partial(getattr(module, name), interpret=True))
  return run


@pytest.fixture
def on_this_machine(monkeypatch):
  """Runs the Triton kernels of a GPU's models on this machine."""
  skip_without("triton")
  monkeypatch.setattr(gpu.GpuMixerBlock, "passes", interpreted("triton"))


def block(tokens, channels, dtype):
  """Returns a block, its parameters, tokens and a cotangent.

  Its channel mixing adds nothing.
  """
  model = MixerBlock(tokens_mlp=7, channels_mlp=1, dtype=dtype)
  rng = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(rng[0], (3, tokens, channels)) + 1
  params = model.init(rng[1], x)["params"]
  params = jax.tree.map(
    lambda p: p + 0.2 * jnp.cos(7.0 * jnp.arange(p.size)).reshape(p.shape),
    params,
  )
  silent = jax.tree.map(jnp.zeros_like, params["channel_mixing"])
  params["channel_mixing"] = silent
  return model, params, x, jax.random.normal(rng[2], x.shape)


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

  @jax.jit
  def layers(x, mask):
    """Returns the output, and the gradients of the parameters and of x."""

    def mix(params, x):
      mixed = model.apply({"params": params}, x)
      x = x.astype(jnp.float32)
      return (x + mask[:, None, None] * (mixed - x)).astype(dtype)

    out, back = jax.vjp(mix, params, x)
    return out, *back(cotangent)

  # The first block's input is float32, the others' in `dtype`.
  first = x, jnp.ones(3)
  others = x.astype(dtype), jnp.array([1.0, 0.0, 2.0])
  for x, mask in first, others:
    expected, d_params, dx = layers(x, mask)
    # The layers stop this one in bfloat16.
    shift = (mask[:, None, None] * cotangent.astype(jnp.float32)).sum((0, 2))
    d_weights = mixing_weights(d_params, "token_mixing")._replace(b2=shift)
    out = tpu.mix(x, weights, mask, **options)
    gradients = tpu.gradient(x, weights, mask, cotangent, **options)
    assert out.dtype == dtype and gradients[0].dtype == x.dtype
    assert_near(out, expected, tolerance)
    assert_near(gradients, (dx, d_weights), tolerance)


@pytest.mark.parametrize(
  ("backend", "tokens", "channels", "hidden", "dtype", "near"),
  [
    ("triton", 9, 48, (7, 5), None, 1e-5),
    ("triton", 16, 32, (8, 16), None, 1e-5),  # no padding
    ("triton", 49, 150, (7, 5), None, 1e-5),
    # More than one tile.
    ("triton", 17, 130, (33, 200), None, 1e-5),
    ("triton", 17, 130, (33, 200), jnp.bfloat16, 0.02),
    ("mosaic", 16, 128, (7, 128), None, 1e-5),  # no padding
    ("mosaic", 17, 384, (33, 640), None, 1e-5),  # rows one by one
    ("mosaic", 20, 384, (33, 640), jnp.bfloat16, 0.02),
  ],
)
def test_the_gpu_block_and_its_gradients_equal_those_of_the_layers(
  backend, tokens, channels, hidden, dtype, near
):
  skip_without(backend)
  sizes = dict(hidden=channels, tokens_mlp=hidden[0], channels_mlp=hidden[1])
  found = compare(sizes, tokens, 3, dtype, {backend: interpreted(backend)})
  assert 0 < max(found[backend]) < near
  assert agree(*found.values())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gpu_gelu_is_the_tanh_form_also_far_from_zero(backend, dtype):
  x = np.linspace(-40, 40, 1024).reshape(1, 1, -1)
  x = jnp.asarray(np.concatenate([x, np.sign(x) * 1e4], axis=1), dtype)
  bias = np.linspace(-1, 1, x.shape[-1], dtype=np.float32)
  passes = interpreted(backend)
  out = passes.bias_gelu(x, bias, 2)
  dx, _ = passes.bias_gelu_gradient(x, bias, jnp.ones_like(x), 2)
  x = np.asarray(x, np.float64) + bias
  tanh = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
  slope = (1 - tanh**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
  rtol = 1e-5 if dtype == jnp.float32 else 0.01
  for value, exact in (out, x * (1 + tanh)), (dx, 1 + tanh + x * slope):
    value = np.asarray(value, np.float64)
    np.testing.assert_allclose(value, exact / 2, rtol=rtol, atol=2e-5)


def test_the_gpu_layer_norm_pads_with_zeros(backend):
  x = jax.random.normal(jax.random.key(0), (2, 5, 128))
  ones = jnp.ones(128)
  y = interpreted(backend).layer_norm(x, ones, ones, 8, jnp.float32)
  exact = np.asarray(x, np.float64)
  exact -= exact.mean(axis=-1, keepdims=True)
  exact = 1 + exact / np.sqrt((exact**2).mean(axis=-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(y[:, :5], exact, rtol=1e-5, atol=1e-5)
  assert y.shape == (2, 8, 128) and not y[:, 5:].any()


@pytest.mark.parametrize("grid", [(3, 2), (1, 1)])
def test_a_product_of_patches_equals_the_convolution(grid):
  images = jax.random.normal(
    jax.random.key(0), (2, grid[0] * 4, grid[1] * 4, 3)
  )
  convolution, product = (
    nn.Conv(8, (4, 4), (4, 4), "VALID", conv_general_dilated=each)
    for each in (None, multiply_patches)
  )
  params = convolution.init(jax.random.key(1), images)
  np.testing.assert_allclose(
    product.apply(params, images),
    convolution.apply(params, images),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.usefixtures("on_this_machine")
@pytest.mark.parametrize(
  ("device", "fields"),
  [
    (CPU, {}),  # by the TPU's kernels
    (CPU, {"scan": True, "remat": "blocks"}),
    (H200, {}),
    (H200, {"scan": True, "remat": "blocks"}),
    (H200, {"remat": "products"}),
    (H200, {"remat": "token_mixing"}),
  ],
)
def test_kernels_with_drop_path_have_the_same_gradients(device, fields):
  images = jax.random.normal(jax.random.key(0), IMAGES.shape)
  keys = jax.random.split(jax.random.key(1), 4)
  drop = {"stoch_depth": 0.5, "stoch_depth_rescale": True, "head_bias": 1.0}
  plain = create("Mixer", **TINY, num_classes=5, **drop, kernels="plain")
  fused = plain.clone(kernels="fused", **fields)
  params = plain.init(jax.random.key(2), images)["params"]
  kernel = params["head"]["kernel"]
  params["head"]["kernel"] = kernel + jnp.cos(jnp.arange(80.0)).reshape(16, 5)

  def step(model):
    def loss(params):
      run = {"train": True, "drop_keys": keys}
      return (model.apply({"params": params}, images, **run)[0] ** 2).sum()

    return jax.jit(jax.value_and_grad(loss))(params)

  with target_device(device):
    made = fused.init(jax.random.key(2), images)["params"]
    value, gradients = step(fused)
  assert jax.tree.structure(made) == jax.tree.structure(params)
  expected, right = step(plain)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert_close(gradients, right, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("on_this_machine")
def test_remat_saves_as_much_with_gpu_kernels_as_with_layers():
  model = create("Mixer", **TINY, num_classes=5, kernels="plain")
  images = jax.random.normal(jax.random.key(0), IMAGES.shape)
  params = model.init(jax.random.key(2), images)["params"]

  def saved(remat, model):
    with target_device(H200):
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
  ("kind", "device", "fields", "chosen"),
  [
    ("auto", H200, {}, "gpu" if has_triton() else "plain"),
    ("auto", H200, {"gelu": "exact"}, "plain"),
    ("auto", H200, {"dropout": 0.1}, "plain"),
    ("auto", A100, {}, "plain"),
    ("auto", TPU, {}, "plain"),
    ("plain", H200, {}, "plain"),
    ("fused", A100, {}, "gpu"),
    ("fused", TPU, {}, "tpu"),
  ],
)
def test_kernels_are_the_default_where_they_are_known_to_be_faster(
  kind, device, fields, chosen
):
  fields = {"gelu": "tanh", "dropout": 0.0} | fields
  with target_device(device):
    assert select_kernels(kind, **fields) == chosen


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("kind", ["NVIDIA H200", "NVIDIA B200"])
def test_a_gpu_program_has_a_kernel_for_each_pass(backend, kind, monkeypatch):
  model = create("Mixer-B/32", blocks=2, dtype=jnp.bfloat16, kernels="fused")
  images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  kernels = importlib.import_module(f"mixer.models.kernels.{backend}")
  monkeypatch.setattr(gpu.GpuMixerBlock, "passes", kernels)

  def loss(params, images):
    return model.apply({"params": params}, images)[0].sum()

  with target_device(Device("gpu", kind)):
    traced = jax.jit(jax.grad(loss)).trace(params, images)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  # Per branch: layer norm, GELU, and their gradients. Two blocks may share.
  assert text.count(BACKENDS[backend]) in (8, 16)
  assert "convolution" not in text


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
  dropped = "JAX_PLATFORMS", "JAX_DISABLE_MOST_OPTIMIZATIONS"
  kept = {k: v for k, v in environment.items() if k not in dropped}
  done = runs.run([sys.executable, "-m", "benchmarks.kernels"], kept)
  assert done.returncode == 0, done.stderr
