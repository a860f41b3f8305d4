# SPDX-License-Identifier: Apache-2.0
"""SAM and GSAM: the definitions in NumPy, devices, resumption, the plan."""

import functools

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from small_models import assert_close, assert_same, batch_of, split

from mixer.config import default
from mixer.plan import make_plan, plan_summary
from mixer.tools.preflight.roofline import find_machines
from mixer.training import setup
from mixer.training.checkpoint import Checkpoints
from mixer.training.optimizer import make_schedule
from mixer.training.sam import make_radius

pytestmark = pytest.mark.usefixtures("compiled_once")

BATCH, IMAGES, STEPS, PEAK, END = 32, 4, 8, 0.1, 0.1
SAM = {"rho": 0.05, "images": IMAGES}
GSAM = SAM | {"rho_min": 0.01, "alpha": 0.4}
SIZES = dict(patch=8, hidden=16, blocks=1, tokens_mlp=8, channels_mlp=32)


def plan_of(sam, *, devices=1, model=None, **keys):
  """Plans a small Mixer with momentum and a linear schedule."""
  config = default()
  config.batch, config.total_steps = BATCH, STEPS
  config.model.update(name="Mixer", num_classes=5, **SIZES | (model or {}))
  config.data.update(name="imagenet2012", ops="central_crop(16)", examples=99)
  config.optimizer.update(name="momentum", learning_rate=PEAK, clip_norm=1.0)
  config.schedule.update(kind="linear", warmup_steps=2, end=END)
  config.sam.update(sam)
  config.update(keys)
  return make_plan(config, devices=devices)


def first_params(plan):
  rng = np.random.RandomState(0)
  return jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32),
    plan.model.abstract_params,
  )


def train(plan, steps=5, state=None):
  """Returns the state after more updates, on the host, and their metrics."""
  _, optimizer = setup.create_optimizer(plan)
  devices = jax.local_devices()[: plan.devices]
  sharding = setup.create_sharding(plan)
  if state is None:
    state = setup._create(plan, optimizer)(first_params(plan))
  update, rows = setup.create_update(plan, optimizer, devices), []
  start = int(state.step)
  state = sharding.put(jax.device_get(state), devices)
  for step in range(start, start + steps):
    batch = batch_of(step, BATCH)
    state, metrics = update(state, split(batch, plan.devices))
    rows.append({name: float(x) for name, x in metrics.items()})
  return sharding.fetch(state, template(plan), devices), rows


def template(plan):
  return setup.abstract_state(plan, setup.create_optimizer(plan)[1])


def columns(rows, names=("loss", "sharpness")):
  return {name: np.array([row[name] for row in rows]) for name in names}


@functools.cache
def reference(kind):
  return train(plan_of({"SAM": SAM, "GSAM": GSAM}[kind]))


def train_in_numpy(plan, rho, rho_min, alpha, images):
  """Two gradients a group, as SAM and GSAM define them; heavy ball, clipping.

  rho is big_vision's, from the learning rates themselves, but never negative.
  """
  vector, unravel = ravel_pytree(first_params(plan))
  weights = np.asarray(vector, np.float64)

  @jax.jit
  def value_and_grad(vector, images, labels):
    def loss(vector):
      params, pixels = unravel(vector), images.astype(np.float32) / 127.5 - 1
      logits, _ = plan.model.module.apply({"params": params}, pixels)
      rows = jax.nn.one_hot(labels, 5)
      return -(rows * jax.nn.log_softmax(logits)).sum(-1).mean()

    return jax.value_and_grad(loss)(vector)

  rates = [0, PEAK / 2, *np.linspace(PEAK, END * PEAK, STEPS - 1)]
  lr_max, lr_min = PEAK, END * PEAK
  trace, rows = 0, []
  for step, lr in enumerate(rates[:5]):
    radius = rho_min + (rho - rho_min) * (lr - lr_min) / (lr_max - lr_min)
    groups, batch = [], batch_of(step, BATCH)
    for i in range(0, BATCH, images):
      part = [batch[key][i : i + images] for key in ("image", "label")]
      clean, g = map(np.float64, value_and_grad(np.float32(weights), *part))
      there = weights + max(radius, 0) * g / (np.linalg.norm(g) + 1e-12)
      perturbed, robust = map(
        np.float64, value_and_grad(np.float32(there), *part)
      )
      unit = robust / np.linalg.norm(robust)
      orthogonal = g - (g @ unit) * unit
      groups.append((clean, perturbed - clean, robust - alpha * orthogonal))
    loss, sharpness, g = (np.mean(x, axis=0) for x in zip(*groups, strict=True))
    trace = 0.9 * trace + g / max(1, np.linalg.norm(g))
    weights = weights - lr * trace
    rows.append({"loss": loss, "sharpness": sharpness})
  return weights, rows


@pytest.mark.parametrize(
  "kind, options",
  [("SAM", SAM | {"rho_min": 0.05, "alpha": 0}), ("GSAM", GSAM)],
)
def test_five_steps_agree_with_two_passes_in_numpy(kind, options):
  weights, expected = train_in_numpy(plan_of({}), **options)

  state, rows = reference(kind)

  assert_close(columns(rows), columns(expected), rtol=1e-6, atol=1e-6)
  params = ravel_pytree(state.params)[0]
  assert_close(params, weights, rtol=1e-6, atol=1e-6)
  assert min(columns(rows)["sharpness"][1:]) > 1e-3


@pytest.mark.parametrize(
  "kind, end, expected",
  [  # Two steps of warm-up, then four down.
    ("linear", 0.01, [0.1 - 0.4 / 99, 0.1 + 0.4 * 49 / 99, 0.5, 0.4, 0.1]),
    ("linear", 0.5, [0.0, 0.1, 0.5, 0.4, 0.1]),
    ("cosine", 0.0, [0.1, 0.3, 0.5, 0.1 + 0.4 * (2 + 2**0.5) / 4, 0.1]),
    ("constant", 0.0, [0.5] * 5),
  ],
)
def test_rho_follows_the_learning_rate_and_stays_positive(kind, end, expected):
  schedule = make_schedule(kind=kind, total_steps=6, warmup_steps=2, end=end)

  radius = make_radius(schedule, 6, rho=0.5, rho_min=0.1)

  values = [float(radius(step)) for step in (0, 1, 2, 3, 6)]
  np.testing.assert_allclose(values, expected, atol=1e-6)


def test_gsam_with_one_rho_and_no_alpha_is_sam():
  same = SAM | {"rho_min": SAM["rho"], "alpha": 0.0}

  assert train(plan_of(same))[1] == reference("SAM")[1]


def test_a_tiny_rho_is_the_plain_step_with_the_same_mixup_and_drop_masks():
  keys = dict(mixup=0.5, accumulation=BATCH // IMAGES, ema_decay=0.9)
  keys["model"] = dict(dropout=0.2, stoch_depth=0.3, blocks=2)

  state, rows = train(plan_of(SAM | {"rho": 1e-7}, **keys))

  plain, expected = train(plan_of({}, **keys))
  losses, others = columns(rows, ["loss"]), columns(expected, ["loss"])
  assert_close(losses, others, rtol=1e-6, atol=1e-6)
  assert max(abs(columns(rows)["sharpness"])) < 1e-5
  close = functools.partial(assert_close, rtol=1e-6, atol=2e-6)
  close(state.params, plain.params)
  close(state.average, plain.average)


@pytest.mark.parametrize(
  "keys",
  [
    dict(devices=2, accumulation=4),
    dict(devices=8, shard_state=True),
    dict(model=dict(scan=True), max_per_device=8),
    dict(model=dict(remat="blocks", kernels="fused")),
  ],
  ids=str,
)
def test_devices_shares_and_micro_batches_do_not_change_the_losses(keys):
  state, rows = train(plan_of(GSAM, **keys))

  expected_state, expected = reference("GSAM")
  assert_close(columns(rows), columns(expected), rtol=1e-5, atol=2e-6)
  assert_close(state.params, expected_state.params, rtol=1e-6, atol=1e-5)


def test_a_run_goes_on_bit_for_bit(tmp_path):
  plan = plan_of(GSAM)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(2, train(plan, 2)[0])
  _, restored = checkpoints.restore(template(plan))
  checkpoints.close()

  resumed, rows = train(plan, 3, restored)

  undisturbed, expected = reference("GSAM")
  assert rows == expected[2:]
  assert_same(resumed, undisturbed)


def test_a_perturbed_pass_that_is_not_finite_is_skipped():
  before, _ = train(plan_of(GSAM), 2)

  after, [row] = train(plan_of(SAM | {"rho": 3e38}), 1, before)

  assert row["skipped"] == after.skipped_in_a_row == 1
  assert np.isfinite(row["loss"])
  assert_same(after.params, before.params)


def test_sam_counts_its_arithmetic_twice_and_machines_take_whole_groups():
  plan, plain = plan_of({"rho": 0.1}, batch=4096), plan_of({}, batch=4096)

  assert plan.flops_per_image == 2 * plain.flops_per_image
  machines = find_machines(plan, ["v5e"], within=1e9)["machines"]
  assert machines and not any(each["images"] % 64 for each in machines)


@pytest.mark.parametrize(
  "sam, devices, words",
  [
    ({"rho": 0.1, "images": 5}, 1, ["sam.images = 5", "8 or 16 or 32"]),
    ({"rho": 0.1, "images": 8}, 8, ["sam.images = 8", "1 or 2 or 4"]),
    (SAM | {"rho_min": 0.2}, 1, ["sam.rho_min = 0.2", "sam.rho = 0.05"]),
  ],
)
def test_the_plan_refuses_and_says_what_to_take(sam, devices, words):
  [problem] = plan_of(sam, devices=devices).complaints.problems

  assert all(word in problem for word in words)


def test_the_summary_warns_of_keys_without_rho():
  assert "config.sam.rho" in plan_summary(plan_of({"alpha": 0.2}))
