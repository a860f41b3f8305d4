# SPDX-License-Identifier: Apache-2.0
"""Optimizers of optax by name, and layer-wise decay of the learning rate."""

import functools
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from runs import read_rows, small
from small_models import assert_close, assert_same, golden

from mixer import train
from mixer.plan import make_plan
from mixer.training.checkpoint import Checkpoints
from mixer.training.optimizer import lr_multiplier_tree, make_optimizer

RATE, STEPS = 0.01, 10
ARGUMENTS = {
  "adamw": {"weight_decay": 0.05, "b2": 0.95},
  "lion": {"weight_decay": 0.1},
  "adafactor": {"min_dim_size_to_factor": 4, "weight_decay_rate": 1e-3},
  "lamb": {"weight_decay": 0.02},
  "muon": {"weight_decay": 0.1, "beta": 0.9},
}


def kernels(tree):
  return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", tree)


def some_params():
  """Returns arrays of one to three axes."""
  params = golden("ViT").params
  block = params["Transformer"]["encoderblock_0"]
  query = block["MultiHeadDotProductAttention_0"]["query"]
  return {"mlp": block["MlpBlock_0"], "query": query, "head": params["head"]}


def schedule(step):
  return 1 - step / STEPS


def optax_directly(name, **arguments):
  """Returns optax's optimizer, whose decay acts on kernels."""
  rate = optax.linear_schedule(RATE, 0.0, STEPS)
  make = getattr(optax.contrib if name == "muon" else optax, name)
  mask = "weight_decay_mask" if name in ("adafactor", "muon") else "mask"
  return make(rate, **arguments | {mask: kernels})


def run(optimizer, params):
  """Applies ten updates with gradients of a bowl, the same for every caller."""
  target = jax.tree.map(lambda p: 0.3 * jnp.cos(jnp.arange(p.size)), params)

  @jax.jit
  def update(params, state):
    grads = jax.tree.map(lambda p, t: p - t.reshape(p.shape), params, target)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for _ in range(STEPS):
    params, state = update(params, state)
  return params


@pytest.mark.parametrize("name, arguments", ARGUMENTS.items())
def test_ten_updates_are_those_of_optax(name, arguments):
  params = some_params()
  options = {"name": name, "learning_rate": RATE, "arguments": arguments}
  make = functools.partial(make_optimizer, params, schedule, **options)
  direct = optax_directly(name, **arguments)
  expected = run(direct, params)

  assert_close(run(make(), params), expected)
  assert np.abs(expected["head"]["kernel"] - params["head"]["kernel"]).max() > 0

  halved = (".*", 0.5)
  chain = optax.chain(optax.clip_by_global_norm(0.5), direct, optax.scale(0.5))
  changed = make(clip_norm=0.5, multipliers=(halved,))
  assert_close(run(changed, params), run(chain, params))

  frozen = (("head/.*", 1.0), (".*", 0.0))
  head = {"head": params["head"]}
  after = run(make(multipliers=frozen), params)
  assert_close(after["head"], run(direct, head)["head"])
  assert_close(after | head, params)


@pytest.mark.parametrize(
  "family, expected",
  [
    (
      "Mixer",  # two blocks
      {"stem": 3, "MixerBlock_0": 2, "MixerBlock_1": 1, "pre_head": 0},
    ),
    (
      "ViT",
      {
        "cls": 3,
        "embedding": 3,
        "Transformer/posembed_input": 3,
        "Transformer/encoderblock_0": 2,
        "Transformer/encoderblock_1": 1,
        "Transformer/encoder_norm": 0,
      },
    ),
    (
      "BiT",  # two stages
      {"root_block": 3, "block1": 2, "block2": 1, "norm-pre-head": 0},
    ),
  ],
)
def test_layer_decay_falls_from_the_head_to_the_stem(family, expected):
  params = golden(family).params

  tree = lr_multiplier_tree(params, (("head/bias", 3.0),), 0.5)

  assert tree["head"] == {"kernel": 1.0, "bias": 3.0}
  factors = flatten_dict(tree, sep="/")
  for start, depth in expected.items():
    found = {x for name, x in factors.items() if name.startswith(start)}
    assert found == {0.5**depth}, start


def test_layer_decay_knows_blocks_of_any_name():
  params = golden("Mixer").params
  own = {key.replace("MixerBlock", "Smear"): x for key, x in params.items()}

  factors, ours = (lr_multiplier_tree(x, (), 0.5) for x in (params, own))

  assert [*ours.values()] == [*factors.values()]


def test_layer_decay_is_on_the_rate_of_every_optimizer():
  params = golden("Mixer").params
  for name in "momentum", "lion":
    options = {"name": name, "learning_rate": RATE}
    make = functools.partial(make_optimizer, params, schedule, **options)
    whole = run(make(), params)
    decayed = run(make(layer_decay=0.5), params)
    stem = (("stem/.*", 0.125),)

    assert_close(whole["head"], decayed["head"])
    multiplied = run(make(multipliers=stem), params)
    assert_close(multiplied["stem"], decayed["stem"])
    assert np.abs(multiplied["stem"]["bias"] - whole["stem"]["bias"]).max() > 0


@pytest.mark.parametrize("name, arguments", ARGUMENTS.items())
def test_its_state_comes_back_from_a_checkpoint(name, arguments, tmp_path):
  params = some_params()
  optimizer = make_optimizer(
    params, schedule, name=name, learning_rate=RATE, arguments=arguments
  )
  template = jax.eval_shape(optimizer.init, params)
  state = jax.tree.map(
    lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape), template
  )
  checkpoints = Checkpoints(tmp_path)

  checkpoints.save(1, state)

  assert_same(checkpoints.restore(template)[1], state)


@pytest.mark.usefixtures("compiled_once")
def test_a_run_trains_goes_on_and_shards(digits_dir, tmp_path):
  config = small(digits_dir, total_steps=4, batch=16, optimizer__name="lion")
  config.checkpoint.every_steps = 2
  config.model.dropout = config.model.stoch_depth = 0.0
  config.schedule.kind, config.schedule.warmup_steps = "constant", 0
  config.optimizer.weight_decay = 0.0
  config.optimizer.arguments = {"weight_decay": 0.05}

  def losses_of_run(name):
    assert train.train(config, str(tmp_path / name)) == 0
    return [row["train/loss"] for row in read_rows(tmp_path / name)]

  losses = losses_of_run("whole")
  assert losses[-1] != losses[0]
  shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
  shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
  assert losses_of_run("resumed") == losses

  config.shard_state = True
  np.testing.assert_allclose(losses_of_run("shared"), losses, rtol=1e-4)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"name": "admw"}, "'admw' is .*did you mean adamw"),
    ({"name": "schedule_free_adamw"}, "'schedule_free_adamw' is none"),
    ({"name": "adamw", "weight_decay": 0.1}, r"optimizer.arguments.weight_dec"),
    (
      {"name": "adafactor", "weight_decay": 0.1},
      r"optimizer.arguments.weight_decay_rate",
    ),
    ({"name": "adamw", "b2": 0.9}, r"optimizer.b2 = 0.9 is .*arguments.b2"),
    ({"name": "lion", "arguments": {"eps": 1.0}}, "eps is unknown.*b1, b2, mu"),
    ({"name": "lars", "arguments": {"eps": "x"}}, "not with these arguments"),
    ({"name": "nadamw", "arguments": {"lr": 1}}, "lr is unknown: .*eps_root"),
    ({"name": "dpsgd"}, "arguments.l2_norm_clip is missing.* seed"),
    ({"name": "lbfgs"}, "makes no updates from gradients alone"),
    ({"arguments": {"b1": 0.5}}, "'b1': 0.5.* not for adam"),
    ({"layer_decay": 1.5}, "layer_decay = 1.5 must be 0 to 1"),
  ],
)
def test_what_optax_does_not_take_is_refused_with_what_it_takes(
  digits_dir, changes, words
):
  config = small(digits_dir)
  config.optimizer.weight_decay = 0.0
  config.optimizer.update(changes)

  [complaint] = make_plan(config).complaints.problems

  assert re.search(words, complaint), complaint
