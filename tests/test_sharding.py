# SPDX-License-Identifier: Apache-2.0
"""A sharded state: the same updates as a replicated one, and its layout."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import assert_same, batch_of, split

from mixer.config import default
from mixer.data_plan import DataPlan
from mixer.models import create, flops
from mixer.plan import ModelPlan, Plan, SchedulePlan
from mixer.training.checkpoint import Checkpoints
from mixer.training.setup import (
  abstract_inputs,
  abstract_state,
  create_optimizer,
  create_sharding,
  create_update,
  initial_state,
)
from mixer.training.sharding import (
  AXIS,
  Sharded,
  pad_and_split,
  shard_shape,
  unsplit,
)
from mixer.training.step import is_schedule

pytestmark = pytest.mark.usefixtures("compiled_once")

# Adam's default would blow up the rounding of gradients that should be 0.
EPS = 1e-3
CASES = {
  "adam": dict(
    ema_decay=0.9, optimizer=dict(weight_decay=1e-2, clip_norm=0.1, eps=EPS)
  ),
  "momentum": dict(
    accumulation=2,
    optimizer=dict(
      name="momentum",
      accumulator_dtype="bfloat16",
      learning_rate=0.1,
      weight_decay=1e-2,
      clip_norm=1.0,
      multipliers=(("stem/.*|.*/bias", 0.0), ("head/.*", 2.0)),
    ),
  ),
  "plain": dict(optimizer=dict(accumulator_dtype="bfloat16", eps=EPS)),
}


def make_plan(*, sharded, num_classes=5, **options):
  """Plans a model whose parameters no number of devices divides."""
  config = default()
  config.batch = 16
  config.model.num_classes = num_classes
  config.optimizer.learning_rate = 1e-2
  config.schedule.kind = "constant"
  config.shard_state = sharded
  accumulation = options.pop("accumulation", 1)
  config.update(options)
  model = create(
    "Mixer",
    patch=8,
    hidden=18,
    blocks=1,
    tokens_mlp=7,
    channels_mlp=30,
    num_classes=num_classes,
  )
  params = flops.abstract_params(model, (16, 16))
  rng = np.random.RandomState(0)
  return Plan(
    config,
    devices=8,
    data=DataPlan(image_size=(16, 16), accumulation=accumulation),
    schedule=SchedulePlan(total_steps=10),
    model=ModelPlan(
      model,
      abstract_params=params,
      initial_params=jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), params
      ),
    ),
  )


@functools.cache
def make_update(case, sharded, devices):
  """The plan of a case, and its update, compiled once."""
  plan = make_plan(sharded=sharded, **CASES[case])
  _, optimizer = create_optimizer(plan)
  return plan, create_update(plan, optimizer, jax.local_devices()[:devices])


def train(case, steps, *, sharded=True, devices=8, state=None):
  """Goes on from `state` by some updates; returns it on the host, and rows."""
  plan, update = make_update(case, sharded, devices)
  some = jax.local_devices()[:devices]
  state = first_state(plan) if state is None else state
  step, history = int(state.step), []
  state = create_sharding(plan).put(state, some)
  for seed in range(step, step + steps):
    state, metrics = update(state, split(batch_of(seed), devices))
    history.append({key: float(x) for key, x in metrics.items()})
    for x in metrics.values():
      for copy in x.addressable_shards:
        np.testing.assert_array_equal(copy.data, x)
  return fetch(plan, state, some), history


def fetch(plan, state, devices):
  template = abstract_state(plan, create_optimizer(plan)[1])
  return create_sharding(plan).fetch(state, template, devices)


def first_state(plan):
  return initial_state(plan, create_optimizer(plan)[1])


def assert_close(a, b):
  def check(x, y):
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    # Of bfloat16, the last bit may be rounded the other way.
    rtol = 0.01 if x.dtype == jnp.bfloat16 else 2e-5
    x, y = x.astype(np.float64), y.astype(np.float64)
    np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7)

  jax.tree.map(check, a, b)


@functools.cache
def run(case, *, sharded):
  return train(case, 5, sharded=sharded)


@pytest.mark.parametrize("case", CASES)
def test_a_sharded_run_equals_a_replicated_one(case):
  replicated, expected = run(case, sharded=False)

  sharded, history = run(case, sharded=True)

  assert_close(sharded, replicated)
  for row, other in zip(history, expected, strict=True):
    assert row == pytest.approx(other, rel=2e-5)


def test_without_norms_in_it_the_update_is_the_same_to_the_bit():
  # From moments of zero: whether XLA rounds a product before it adds another
  # term depends on the length of an array, and shares are shorter.
  sharded, replicated = (train("plain", 1, sharded=x)[0] for x in (True, False))

  assert_same(sharded, replicated)


def test_a_device_keeps_its_share_of_the_state_alone():
  plan = make_plan(sharded=True, **CASES["adam"])
  state = first_state(plan)

  placed = create_sharding(plan).put(state, jax.local_devices())

  def kept(tree):  # by the first device
    return sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(tree))

  share = sum(-(-x.size // 8) for x in jax.tree.leaves(state.params))
  assert kept(placed.params) == kept(placed.average) == share
  counts = [x for x in jax.tree.leaves(state.opt_state) if x.ndim == 0]
  assert kept(placed.opt_state) == 2 * share + len(counts)


@pytest.mark.parametrize("case", CASES)
def test_several_hosts_take_the_axes_of_the_state(case):
  plan = make_plan(sharded=True, **CASES[case])

  state = abstract_state(plan, create_optimizer(plan)[1])

  hash(create_sharding(plan).axes(state))  # as jax.pmap does there


@pytest.mark.parametrize("sharded", [True, False])
def test_evaluators_are_given_whole_parameters_on_every_device(sharded):
  plan = make_plan(sharded=sharded, **CASES["adam"])
  state = first_state(plan)
  devices = jax.local_devices()
  sharding = create_sharding(plan)
  placed = sharding.put(state, devices)

  whole = sharding.gather(placed.eval_params, devices)

  for x, y in zip(*map(jax.tree.leaves, (whole, state.params)), strict=True):
    assert len(x.addressable_shards) == 8
    for copy in x.addressable_shards:
      np.testing.assert_array_equal(copy.data, y)


@pytest.mark.parametrize("case", CASES)
def test_the_update_takes_and_returns_what_it_is_said_to(case):
  plan, update = make_update(case, True, 8)
  devices = jax.local_devices()
  state = create_sharding(plan).put(first_state(plan), devices)

  shapes, batch = abstract_inputs(plan, create_optimizer(plan)[1], devices)
  lowered = update.lower(shapes, batch)

  def same(x, y):
    assert (x.shape, x.dtype) == (y.shape, y.dtype)

  jax.tree.map(same, state, shapes)
  jax.tree.map(same, lowered.out_info[0], shapes)
  text, parameters = lowered.as_text(), len(jax.tree.leaves(shapes.params))
  assert text.count("stablehlo.reduce_scatter") == parameters
  assert text.count("stablehlo.all_gather") == parameters
  # Of the loss, three norms that are logged, and one that clipping asks for.
  clips = bool(plan.config.optimizer.clip_norm)
  assert text.count("stablehlo.all_reduce") == 4 + clips


@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize("devices", [8, 3, 1])
def test_a_state_comes_back_from_the_devices_as_it_went(sharded, devices):
  plan = make_plan(sharded=sharded, num_classes=1, **CASES["momentum"])
  some = jax.local_devices()[:devices]
  rng = np.random.RandomState(1)
  state = jax.tree.map(
    lambda x: np.asarray(rng.normal(0, 9, x.shape)).astype(x.dtype),
    abstract_state(plan, create_optimizer(plan)[1]),
  )

  placed = create_sharding(plan).put(state, some)
  back = fetch(plan, placed, some)

  assert_same(back, state)


def test_a_run_goes_on_bit_for_bit_from_what_was_saved():
  undisturbed, _ = run("adam", sharded=True)

  half, _ = train("adam", 2)
  resumed, _ = train("adam", 3, state=half)

  assert_same(resumed, undisturbed)


@pytest.mark.parametrize("sharded, devices", [(True, 8), (False, 2)])
def test_a_run_goes_on_with_sharding_turned_over_on_other_devices(
  sharded, devices, tmp_path
):
  undisturbed, _ = run("adam", sharded=True)
  after = make_plan(sharded=not sharded, **CASES["adam"])

  half, _ = train("adam", 2, sharded=sharded)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(2, half)
  template = abstract_state(after, create_optimizer(after)[1])
  _, restored = checkpoints.restore(template)
  checkpoints.close()
  resumed, _ = train(
    "adam", 3, sharded=not sharded, devices=devices, state=restored
  )

  assert_same(restored, half)
  assert_close(resumed, undisturbed)


def test_an_update_that_is_not_finite_leaves_the_shares_as_they_are():
  state, _ = run("adam", sharded=True)
  bias = state.params["head"]["bias"].copy()
  bias[4] = np.inf
  head = state.params["head"] | {"bias": bias}
  state = state.replace(params=state.params | {"head": head})

  after, history = train("adam", 1, state=state)

  def next_of_schedule(x):
    return x._replace(count=x.count + 1) if is_schedule(x) else x

  assert history[0]["skipped"] == after.skipped == after.skipped_in_a_row == 1
  moments = jax.tree.map(next_of_schedule, state.opt_state, is_leaf=is_schedule)
  assert_same(
    (after.params, after.opt_state, after.average),
    (state.params, moments, state.average),
  )
  assert after.step == state.step + 1


def test_padding_does_not_count():
  """Not even where an optimizer makes something of zeros."""
  rng = np.random.RandomState(0)
  tree = {"a": rng.randn(8, 5, 3), "b": rng.randn(7), "c": rng.randn(1)}
  tree = jax.tree.map(np.float32, tree)

  def step(shares):
    sharding = Sharded(tree)
    shares = sharding.mask_padding(jax.tree.map(lambda x: x + 1, shares))
    return sharding.gather_params(shares), sharding.norm(shares)

  shares = jax.tree.map(
    lambda x: pad_and_split(x, 8).reshape(8, *shard_shape(x.shape, 8)), tree
  )
  whole, norm = jax.pmap(step, axis_name=AXIS, out_axes=None)(shares)

  expected = jax.tree.map(lambda x: x + 1, tree)
  jax.tree.map(np.testing.assert_array_equal, whole, expected)
  squares = sum((x**2).sum() for x in jax.tree.leaves(expected))
  np.testing.assert_allclose(norm, np.sqrt(squares), rtol=1e-6)


@pytest.mark.parametrize(
  "shape, devices, share",
  [
    ((768, 3072), 8, (96, 3072)),  # as it lies
    ((16, 16, 3, 768), 32, (8, 3, 768)),  # two axes merged
    ((196, 384), 8, (9408,)),  # all merged
    ((21843,), 8, (2731,)),  # 5 zeros at the end
    ((), 4, (1,)),
    ((5, 3), 1, (5, 3)),
  ],
)
def test_shares_merge_no_more_axes_than_they_must(shape, devices, share):
  x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)

  rows = pad_and_split(x, devices)

  assert shard_shape(shape, devices) == share
  assert rows.shape == (devices * share[0], *share[1:])
  assert_same(unsplit(rows, shape), x)
  np.testing.assert_array_equal(pad_and_split(jnp.asarray(x), devices), rows)
