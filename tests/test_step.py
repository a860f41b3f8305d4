# SPDX-License-Identifier: Apache-2.0
"""One update: schedules, optimizers, losses, EMA, devices and micro-batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import assert_close, batch_of, split

from mixer.models import create
from mixer.training.optimizer import (
  clip_by_global_norm,
  make_optimizer,
  make_schedule,
)
from mixer.training.sharding import pmap_update, replicate, to_host
from mixer.training.step import (
  LOSSES,
  LossConfig,
  create_state,
  soft_labels,
  train_step,
)


def make_model(**fields):
  return create(
    "Mixer",
    patch=8,
    hidden=16,
    blocks=2,
    tokens_mlp=8,
    channels_mlp=32,
    num_classes=5,
    **fields,
  )


@functools.cache
def init(model):
  images = jnp.zeros((1, 16, 16, 3))
  return jax.jit(model.init)(jax.random.key(0), images)["params"]


def train(steps, *, devices=1, model=None, objective=None, **options):
  """Trains from the same weights on the same batches; returns what came out."""
  model = model or make_model()
  objective = objective or LossConfig("softmax", 5)
  params = init(model)
  schedule = make_schedule(kind="cosine", total_steps=60, warmup_steps=5)
  options = {"learning_rate": 3e-3, "clip_norm": 1.0} | options
  optimizer = make_optimizer(params, schedule, **options)
  some = jax.local_devices()[:devices]
  update = pmap_update(
    functools.partial(
      train_step, model=model, optimizer=optimizer, objective=objective
    ),
    some,
  )
  state = create_state(params, optimizer, average=objective.ema_decay > 0)
  state = replicate(state, some)
  history = []
  for step in range(steps):
    state, metrics = update(state, split(batch_of(step % 8), devices))
    history.append({k: float(v) for k, v in metrics.items()})
  return to_host(state), history


def losses(history):
  return np.array([row["loss"] for row in history])


EVERYTHING = dict(
  model=make_model(stoch_depth=0.3, dropout=0.1),
  objective=LossConfig(
    "sigmoid", 5, label_smoothing=0.1, mixup=0.5, ema_decay=0.9, seed=3
  ),
  weight_decay=1e-3,
)


def test_eight_devices_and_micro_batches_agree_with_one_large_batch():
  parts = dataclasses.replace(EVERYTHING["objective"], accumulation=2)

  _, one = train(50, devices=1, **EVERYTHING)
  _, eight = train(50, devices=8, **EVERYTHING | {"objective": parts})

  np.testing.assert_allclose(losses(eight), losses(one), rtol=1e-5)
  assert losses(one)[-1] < 0.9 * losses(one)[0]


def test_the_first_update_equals_numpy_adam():
  """Clip, Adam, decoupled decay on kernels, schedule: big_vision's order."""
  model, batch = make_model(), batch_of(0)
  params = init(model)

  def loss(params):
    images = batch["image"].astype(np.float32) / 127.5 - 1
    logits, _ = model.apply({"params": params}, images)
    rows = np.eye(5, dtype=np.float32)[batch["label"]]
    return -(rows * jax.nn.log_softmax(logits)).sum(-1).mean()

  grads = jax.jit(jax.grad(loss))(params)
  norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
  clip = 1e-3

  def expected(path, p, g):
    g = np.asarray(g) * min(1, clip / norm)
    direction = g / (np.abs(g) + 1e-8)  # Adam's first step
    decay = 0.01 * p if path[-1].key == "kernel" else 0
    # Schedule at step 0 of a constant one without warm-up: 1.
    return p - (2e-3 * direction + decay)

  updated = apply_once(
    params, grads, learning_rate=2e-3, weight_decay=0.01, clip_norm=clip
  )

  expected = jax.tree.map_with_path(expected, params, grads)
  assert_close(updated, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [0.0, 0.3, 1.0, 7.0])
def test_clipping_is_that_of_optax_to_the_bit(length):
  rng = np.random.RandomState(0)
  tree = {"a": rng.randn(5, 3), "b": rng.randn(7)}
  norm = optax.tree.norm(tree)
  tree = jax.tree.map(lambda x: np.float32(x * length / norm), tree)
  ours, theirs = clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)

  clipped, _ = jax.jit(ours.update)(tree, ours.init(tree))

  expected, _ = jax.jit(theirs.update)(tree, theirs.init(tree))
  jax.tree.map(np.testing.assert_array_equal, clipped, expected)


def apply_once(params, grads, *, times=1, schedule=None, **options):
  schedule = schedule or make_schedule(kind="constant", total_steps=10)
  optimizer = make_optimizer(params, schedule, **options)
  state = optimizer.init(params)

  @jax.jit
  def update(params, state):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(times):
    params, state = update(params, state)
  return params


def test_momentum_accumulates_as_heavy_ball():
  params = {"head": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}}
  grads = jax.tree.map(lambda x: 0.5 * x, params)

  after = apply_once(
    params, grads, times=2, name="momentum", momentum=0.9, learning_rate=0.1
  )

  # 0.1 * 0.5, then 0.1 * (0.5 + 0.9 * 0.5).
  np.testing.assert_allclose(after["head"]["bias"], 1 - 0.05 - 0.095, rtol=1e-6)


def test_a_bfloat16_accumulator_is_stored_so():
  params = {"kernel": jnp.ones((3, 3))}
  schedule = make_schedule(kind="constant", total_steps=10)

  for name in ("adam", "momentum"):
    options = dict(learning_rate=0.1, accumulator_dtype="bfloat16")
    optimizer = make_optimizer(params, schedule, name=name, **options)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(optimizer.init(params))}
    assert jnp.dtype("bfloat16") in dtypes


def test_decay_follows_the_schedule_and_not_the_learning_rate():
  params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
  grads = jax.tree.map(jnp.zeros_like, params)

  for lr in (1e-3, 1e-1):
    warm = make_schedule(kind="linear", total_steps=10, warmup_steps=4)
    after = apply_once(
      params, grads, times=3, schedule=warm, learning_rate=lr, weight_decay=0.1
    )
    # Factors 0, 1/4, 2/4.
    expected = 1 * (1 - 0.025) * (1 - 0.05)
    np.testing.assert_allclose(after["kernel"], expected, rtol=1e-6)
    assert np.all(after["bias"] == 1)


@pytest.mark.parametrize(
  "kind, end, expected",
  [
    ("linear", 0.0, [0, 0.5, 1, 0.75, 0.5, 0.25, 0, 0]),
    ("linear", 0.2, [0, 0.5, 1, 0.8, 0.6, 0.4, 0.2, 0.2]),
    ("cosine", 0.0, [0, 0.5, 1, 0.853553, 0.5, 0.146447, 0, 0]),
    ("constant", 0.0, [0, 0.5, 1, 1, 1, 1, 1, 1]),
  ],
)
def test_schedules_rise_from_zero_and_fall_to_the_end(kind, end, expected):
  schedule = make_schedule(kind=kind, total_steps=6, warmup_steps=2, end=end)

  np.testing.assert_allclose(
    [schedule(step) for step in range(8)], expected, atol=1e-6
  )


def test_freezing_leaves_parameters_alone_and_out_of_the_norm():
  state, history = train(
    3, multipliers=(("head/.*", 1.0), (".*", 0.0)), weight_decay=0.1
  )
  params = init(make_model())

  np.testing.assert_array_equal(
    state.params["stem"]["kernel"], params["stem"]["kernel"]
  )
  assert state.params["head"]["kernel"].any()
  moments = [
    leaf for leaf in jax.tree.leaves(state.opt_state) if np.ndim(leaf) == 4
  ]
  assert not moments  # none is kept for the frozen stem


def test_multipliers_scale_the_learning_rate_by_name():
  params = {"stem": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}}
  grads = jax.tree.map(jnp.ones_like, params)

  after = apply_once(
    params,
    grads,
    name="momentum",
    learning_rate=0.1,
    multipliers=(("stem/.*", 0.5),),
  )

  np.testing.assert_allclose(after["stem"]["kernel"], 0.95)
  np.testing.assert_allclose(after["head"]["kernel"], 0.9)


def test_a_pattern_that_matches_nothing_is_refused():
  params = {"stem": {"kernel": jnp.ones(2)}}

  with pytest.raises(ValueError, match="'haed/.*'.*stem/kernel"):
    apply_once(
      params, params, learning_rate=0.1, multipliers=(("haed/.*", 0.0),)
    )
  with pytest.raises(ValueError, match="freezes every parameter"):
    apply_once(params, params, learning_rate=0.1, multipliers=((".*", 0.0),))


def test_the_average_follows_the_parameters():
  """The first update has a learning rate of 0, and leaves both in place."""
  before = init(make_model())

  after, _ = train(2, objective=LossConfig("softmax", 5, ema_decay=0.9))

  expected = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, before, after.params)
  assert_close(after.average, expected)
  assert after.eval_params is after.average


def test_losses_agree_with_scikit_learn():
  from sklearn.metrics import log_loss

  rng = np.random.RandomState(0)
  logits = rng.randn(6, 4).astype(np.float32)
  labels = rng.randint(0, 4, 6)
  rows = soft_labels(jnp.array(labels), 4)

  softmax = LOSSES["softmax"](logits, rows)
  sigmoid = LOSSES["sigmoid"](logits, rows)

  probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  assert softmax.mean() == pytest.approx(
    log_loss(labels, probabilities, labels=range(4)), rel=1e-5
  )
  # Four binary problems, summed over classes.
  binary = sum(
    log_loss(labels == k, 1 / (1 + np.exp(-logits[:, k])), labels=[False, True])
    for k in range(4)
  )
  assert sigmoid.mean() == pytest.approx(binary, rel=1e-5)


def test_metrics_are_the_norms_they_say():
  state, history = train(1)
  squares = sum((p**2).sum() for p in jax.tree.leaves(state.params))

  # The first update has a learning rate of 0: nothing moves.
  assert history[0]["update_norm"] == 0
  assert history[0]["parameter_norm"] == pytest.approx(
    float(np.sqrt(squares)), rel=1e-5
  )
  assert history[0]["loss"] == pytest.approx(np.log(5), rel=1e-5)
