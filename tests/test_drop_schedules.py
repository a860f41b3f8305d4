# SPDX-License-Identifier: Apache-2.0
"""Early and late dropout and stochastic depth (arXiv 2303.01500)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from runs import read_rows, small
from scipy import stats
from small_models import SIZES, assert_close

from mixer import train
from mixer.models import create
from mixer.models.layers import ScaledKeys
from mixer.plan import make_plan, plan_summary
from mixer.training.setup import (
  abstract_inputs,
  create_optimizer,
  create_update,
)

BIT = recipes.model("BiT", width=0.5, units=(2,))
LATE = {"drop.when": "late", "drop.cutoff_steps": 2}
EARLY = {"drop.when": "early", "drop.cutoff_steps": 2}
NO_RATES = {"model.dropout": 0.0, "model.stoch_depth": 0.0}


def plan_small(digits_dir, changes):
  plan = make_plan(small(digits_dir, **changes))
  plan.complaints.raise_all()
  return plan


def program(plan, **options):
  """Returns the text of an update's program, before XLA compiles it."""
  _, optimizer = create_optimizer(plan)
  devices = jax.local_devices()
  update = create_update(plan, optimizer, devices, **options)
  return update.lower(*abstract_inputs(plan, optimizer, devices)).as_text()


@pytest.mark.parametrize(
  "changes",
  [
    {"model.dtype": "bfloat16"},  # dropout trains one bias more
    BIT,
  ],
  ids=["Mixer", "BiT"],
)
def test_where_nothing_drops_the_program_is_the_plain_one(digits_dir, changes):
  scheduled = plan_small(digits_dir, changes | LATE)

  plain = program(plan_small(digits_dir, changes | NO_RATES))

  assert program(scheduled, drops=False) == plain != program(scheduled)
  assert program(scheduled) == program(plan_small(digits_dir, changes))


@pytest.mark.usefixtures("compiled_once")
def test_a_run_drops_on_its_side_of_the_cut_off(digits_dir, tmp_path):
  """The head is 0 at first, so that the first loss is the same for all."""
  losses = {}
  for name, each in ("plain", NO_RATES), ("late", LATE), ("early", EARLY):
    changes = each | {"schedule.warmup_steps": 0, "checkpoint.best": ""}
    changes |= {"total_steps": 4, "batch": 16, "skip_evals": "test"}
    config = small(digits_dir, **changes)
    assert train.train(config, str(tmp_path / name)) == 0
    losses[name] = [x["train/loss"] for x in read_rows(tmp_path / name)]

  assert losses["late"][:2] == losses["plain"][:2]
  assert losses["late"][2] != losses["plain"][2]
  assert losses["early"][0] == losses["plain"][0]
  assert losses["early"][1] != losses["plain"][1]


@pytest.mark.parametrize("steps", [2, 7, 100])
def test_linear_rates_are_the_published_ones(digits_dir, steps):
  linear = {"drop.shape": "linear", "drop.cutoff_steps": steps}

  plan = plan_small(digits_dir, EARLY | linear)

  published = np.linspace(0.3, 0, steps)  # drop_scheduler.py
  scales = jax.vmap(plan.schedule.drop_scale)(jnp.arange(steps))
  np.testing.assert_allclose(0.3 * scales, published, rtol=1e-5, atol=1e-7)
  assert plan.schedule.drop_steps == range(steps)
  assert f"until step {steps}, linear to 0" in plan_summary(plan)


def test_linear_rates_reach_the_step(digits_dir):
  plan = plan_small(digits_dir, EARLY | {"drop.shape": "linear"})

  assert program(plan) != program(plan_small(digits_dir, EARLY))


@pytest.mark.parametrize(
  "family, fields",
  [
    ("Mixer", {"scan": True, "remat": "blocks"}),
    ("Mixer", {"kernels": "fused", "dropout": 0.0}),
    ("ViT", {"remat": "products"}),
    ("BiT", {"remat": "blocks", "units": (2,)}),
  ],
)
def test_scaled_rates_drop_as_those_rates_do(family, fields):
  """Halved rates, in values and gradients."""
  fields = {"dropout": 0.25, "stoch_depth": 0.5} | fields
  model = create(family, num_classes=5, **SIZES[family] | fields)
  images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
  params = jax.jit(model.init)(jax.random.key(1), images)["params"]
  params = jax.tree.map(
    lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), params
  )
  keys = jax.random.split(jax.random.key(2), 4)

  def loss(params, keys, model):
    call = {"train": True, "drop_keys": keys}
    return (model.apply({"params": params}, images, **call)[0] ** 2).sum()

  compute = jax.jit(jax.value_and_grad(loss), static_argnums=2)
  halved = {name: fields[name] / 2 for name in ("dropout", "stoch_depth")}
  assert_close(
    compute(params, ScaledKeys(keys, jnp.float32(0.5)), model),
    compute(params, keys, model.clone(**halved)),
    rtol=1e-4,
    atol=1e-4,
  )
  nothing, _ = compute(params, ScaledKeys(keys, jnp.float32(0)), model)
  apply = jax.jit(lambda x: model.apply({"params": x}, images)[0])
  whole = (apply(params) ** 2).sum()
  np.testing.assert_allclose(nothing, whole, rtol=1e-4)


def test_branches_are_dropped_as_often_as_the_scaled_rate_says():
  n, rate = 500, 0.5
  model = create("Mixer", num_classes=5, stoch_depth=rate, **SIZES["Mixer"])
  images = jnp.broadcast_to(
    jax.random.normal(jax.random.key(0), (1, 16, 16, 3)), (n, 16, 16, 3)
  )
  params = jax.jit(model.init)(jax.random.key(1), images[:1])["params"]
  keys = jax.random.split(jax.random.key(2), n)

  @jax.jit
  def apply(scale):
    call = {"train": True, "drop_keys": ScaledKeys(keys, scale)}
    return model.apply({"params": params}, images, **call)

  for scale in 1.0, 0.4:
    _, out = apply(jnp.float32(scale))
    change = np.abs(np.asarray(out["block01"] - out["block00"]))
    dropped = int((change.max(axis=(1, 2)) == 0).sum())  # both branches
    expected = (rate * scale) ** 2
    assert stats.binomtest(dropped, n, expected).pvalue > 1e-3
