# SPDX-License-Identifier: Apache-2.0
"""Permuted patches equal originals under permuted weights of a Mixer."""

import functools

import jax
import numpy as np
import pytest
from small_models import assert_close

from benchmarks.permutations import permute_params
from mixer.data import preprocess
from mixer.models import create, flops
from mixer.training.optimizer import make_optimizer, make_schedule
from mixer.training.sharding import pmap_update, replicate, to_host
from mixer.training.step import LossConfig, create_state, train_step

PATCH, SEED, STEPS = 4, 3, 30
MODEL = create(
  "Mixer",
  patch=PATCH,
  hidden=16,
  blocks=2,
  tokens_mlp=8,
  channels_mlp=32,
  num_classes=5,
)
APPLY = jax.jit(MODEL.apply)
PERMUTE = f"permute_patches({PATCH}, seed={SEED})"

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module", autouse=True)
def exact_products():
  with jax.default_matmul_precision("highest"):
    yield


@pytest.fixture(scope="module")
def images():
  """uint8 [steps, n, 12, 8, 3], with classes that can be learned."""
  rng = np.random.RandomState(0)
  labels = np.arange(STEPS * 16) % 5
  shown = rng.randint(256, size=(5, 12, 8, 3))[labels]
  noise = rng.randint(256, size=shown.shape)
  mixed = ((2 * shown + noise) // 3).astype(np.uint8)
  return mixed.reshape(STEPS, 16, 12, 8, 3), labels.reshape(STEPS, 16)


@pytest.fixture(scope="module")
def params():
  """Random ones, biases and scales as well."""
  rng = np.random.RandomState(1)
  return jax.tree.map(
    lambda x: (0.2 * rng.randn(*x.shape)).astype(np.float32),
    flops.abstract_params(MODEL, (12, 8)),
  )


def permuted(batch):
  transform = preprocess.parse(PERMUTE)
  return np.stack([transform(each, np.random.default_rng()) for each in batch])


@pytest.fixture(scope="module")
def train(params):
  """Trains with mixup, clipping, decay and Adam.

  (params, images, labels) -> losses [steps], parameters.
  """
  schedule = make_schedule(kind="linear", total_steps=STEPS, warmup_steps=3)
  optimizer = make_optimizer(
    params, schedule, learning_rate=1e-2, weight_decay=1e-3, clip_norm=1.0
  )
  devices = jax.devices()[:1]
  step = pmap_update(
    functools.partial(
      train_step,
      model=MODEL,
      optimizer=optimizer,
      objective=LossConfig("softmax", num_classes=5, mixup=0.3),
    ),
    devices,
  )

  def train(params, images, labels):
    state = replicate(create_state(params, optimizer, average=False), devices)
    losses = []
    for image, label in zip(images, labels, strict=True):
      batch = {
        "image": image[None],
        "label": label[None].astype(np.int32),
        "index": np.arange(len(label), dtype=np.uint32)[None],
      }
      state, metrics = step(state, batch)
      losses.append(float(metrics["loss"]))
    return np.array(losses), to_host(state.params)

  return train


def test_permuted_weights_see_in_permuted_images_what_was_there(images, params):
  batch = images[0][0] / np.float32(127.5) - 1
  logits, out = APPLY({"params": params}, batch)

  changed = permute_params(params, PATCH, SEED)
  other, shown = APPLY({"params": changed}, permuted(batch))

  np.testing.assert_allclose(other, logits, atol=1e-5)
  np.testing.assert_allclose(shown["pre_logits"], out["pre_logits"], atol=1e-5)
  unlike, _ = APPLY({"params": params}, permuted(batch))
  assert np.abs(unlike - logits).max() > 0.1


def test_whole_training_on_permuted_patches_is_that_on_originals(
  images, params, train
):
  pixels, labels = images
  here = permute_params(params, PATCH, SEED)

  original, end = train(params, pixels, labels)
  patches, other_end = train(here, list(map(permuted, pixels)), labels)

  np.testing.assert_allclose(patches, original, rtol=1e-5)
  assert original[-5:].mean() < 0.7 * original[0]
  # The weights have stayed permuted; but for a bias that adds the same to all
  # channels of a token, which every LayerNorm takes away again: its gradient is
  # nothing but rounding, which Adam makes steps of.
  end = permute_params(end, PATCH, SEED)
  for tree in end, other_end:
    for block in "MixerBlock_0", "MixerBlock_1":
      del tree[block]["token_mixing"]["Dense_1"]["bias"]
  assert_close(other_end, end, rtol=1e-7, atol=1e-4)
