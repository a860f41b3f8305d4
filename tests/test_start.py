# SPDX-License-Identifier: Apache-2.0
"""A run that starts from weights: growth, GELU and head, decided beforehand."""

import json
import re

import jax
import numpy as np
import pytest
import recipes
from small_models import assert_same

from mixer import evaluate, train, weights
from mixer.errors import UserError
from mixer.models import create
from mixer.plan import make_plan, plan_summary

pytestmark = pytest.mark.usefixtures("compiled_once")

TINY = dict(patch=2, hidden=16, blocks=2, tokens_mlp=8, channels_mlp=32)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  """Weights for 8 x 8 px, in which nothing is zero."""
  model = create("Mixer", num_classes=5, **TINY)
  params = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3)))["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: x + rng.normal(0, 0.02, x.shape), params)
  path = tmp_path_factory.mktemp("weights") / "small.npz"
  weights.save(path, params)
  return path


def transfer(half_digits, pretrained, arg="finetune", **changes):
  config = recipes.load("transfer", arg)
  config.data.data_dir = half_digits
  factor = config.model.tokens_mlp // 64
  config.model.update(TINY | {"tokens_mlp": factor * TINY["tokens_mlp"]})
  config.init = str(pretrained)
  config.total_steps, config.batch = 2, 16
  config.schedule.warmup_steps = 0
  config.update_from_flattened_dict(
    {key.replace("__", "."): value for key, value in changes.items()}
  )
  return config


def assert_same_but_head(one, other):
  assert_same(one | {"head": None}, other | {"head": None})


@pytest.mark.parametrize(
  "res, growth, grown, words",
  [
    (16, "tiles", dict(factor=2), "from 4 x 4 to 8 x 8 tokens: 2 x 2 tiles"),
    (16, "interpolate", dict(tokens=(8, 8)), "8 x 8 tokens: the old mixing"),
    (12, "", dict(tokens=(6, 6)), "beyond the paper"),
    (16, "", dict(factor=2), "2 x 2 tiles"),
    (8, "", dict(factor=1), "The head"),
  ],
)
def test_a_run_begins_with_weights_grown_to_its_images(
  half_digits, pretrained, res, growth, grown, words
):
  config = transfer(
    half_digits, pretrained, f"finetune,res={res},growth={growth}"
  )

  plan = make_plan(config)

  plan.complaints.raise_all()
  expected = weights.grow(weights.load(pretrained), **grown)
  assert_same_but_head(plan.model.initial_params, expected)
  assert not np.any(plan.model.initial_params["head"]["kernel"])
  assert words in plan_summary(plan)


@pytest.mark.parametrize(
  "arg, changes, words",
  [
    (
      "finetune,res=12",
      dict(init_growth="tiles"),
      "4 x 4 tokens grow to 6 x 6 by 1.5.*init_growth='interpolate'",
    ),
    (
      "finetune",
      dict(init_growth="none"),
      r"16 tokens \(8 px / 2\).*64 tokens \(16 px / 2\).*grow them by 2",
    ),
    ("finetune", dict(init=""), "config.init_growth = 'tiles'"),
  ],
)
def test_growth_that_cannot_be_is_refused(
  half_digits, pretrained, arg, changes, words
):
  plan = make_plan(transfer(half_digits, pretrained, arg, **changes))

  assert re.search(words, "\n".join(plan.complaints.problems))


def test_weights_grown_before_start_a_run_of_their_resolution(
  half_digits, pretrained, tmp_path
):
  grown = weights.grow(weights.load(pretrained), factor=2)
  weights.save(tmp_path / "grown.npz", grown)

  plan = make_plan(transfer(half_digits, tmp_path / "grown.npz"))

  plan.complaints.raise_all()
  assert_same_but_head(plan.model.initial_params, grown)
  assert "Grown" not in plan.model.initial_note


def test_gelu_is_that_of_the_weights_until_a_config_says_otherwise(
  half_digits, pretrained, tmp_path
):
  exact = tmp_path / "exact.npz"
  weights.save(exact, weights.load(pretrained), gelu="exact")

  def gelu(init, **changes):
    return make_plan(transfer(half_digits, init, **changes)).model.module.gelu

  assert gelu(pretrained) == "tanh"
  assert gelu(exact) == "exact"
  assert gelu(exact, model__gelu="tanh") == "tanh"


def test_a_run_keeps_its_gelu_when_it_goes_on_and_when_it_is_evaluated(
  half_digits, pretrained, tmp_path, capsys
):
  exact = tmp_path / "exact.npz"
  weights.save(exact, weights.load(pretrained), gelu="exact")
  config = transfer(half_digits, exact, model__gelu=None)
  config.evals.minival.every_steps = 1
  run = tmp_path / "run"
  train.train(config, str(run))
  exact.unlink()

  config = transfer(half_digits, exact, total_steps=3, model__gelu=None)
  train.train(config, str(run), accept_changes=True)
  evaluate.evaluate(config, str(run))

  recorded = json.loads((run / "config.json").read_text())
  assert recorded["model"]["gelu"] == "exact"
  assert weights.read(run).gelu == "exact"
  assert "step 3" in capsys.readouterr().out


def test_weights_for_images_that_are_no_squares_start_a_run_of_their_size(
  half_digits, tmp_path
):
  model = create("Mixer", num_classes=5, **TINY)
  params = model.init(jax.random.key(0), np.zeros((1, 8, 12, 3)))["params"]
  weights.save(tmp_path / "wide.npz", params)
  config = transfer(half_digits, tmp_path / "wide.npz", init_growth="none")
  config.model.tokens_mlp = TINY["tokens_mlp"]
  config.data.ops = "resize((8, 12))"
  for options in config.evals.values():
    options.ops = "resize((8, 12))"

  plan = make_plan(config)

  plan.complaints.raise_all()
  assert_same_but_head(plan.model.initial_params, params)


def test_a_head_of_zeros_is_not_judged(
  half_digits, pretrained, tmp_path, capsys
):
  config = transfer(half_digits, pretrained)
  run = tmp_path / "run"
  train.train(config, str(run))
  evaluate.evaluate(config, str(run))
  as_run = capsys.readouterr().out.splitlines()[-2:]

  config.init = str(run)  # whose recipe says init_head = "zeros"
  evaluate.evaluate(config, None)

  assert capsys.readouterr().out.splitlines()[-2:] == as_run
  del config.evals.test, config.evals.minival
  config.model.num_classes = 6
  evaluate.evaluate(config, None)  # features need no head


@pytest.mark.parametrize(
  "changes, said",
  [
    # 0.99 ** 31 is 0.73.
    ({"total_epochs": 0.0, "total_steps": 31}, "ema_.*73% of the weights"),
    ({"total_epochs": 0.0, "total_steps": 2000}, ""),
    ({"schedule.end": 0.1}, "schedule.end: no effect without .*kind = linear"),
    ({"schedule.end": 0.1, "schedule.kind": "linear"}, ""),
    ({"optimizer.momentum": 0.5}, "momentum: no effect without .* = momentum"),
    (
      {"optimizer.name": "momentum", "optimizer.b1": 0.8, "optimizer.eps": 0.1},
      "optimizer.b1, eps: no effect without config.optimizer.name = adam",
    ),
    ({"optimizer.b1": 0.8}, ""),
  ],
)
def test_keys_without_effect_are_named(digits_dir, changes, said):
  config = recipes.load("digits")
  config.data.data_dir = digits_dir
  config.schedule.warmup_epochs = 0.0
  config.update_from_flattened_dict(changes)

  lines = plan_summary(make_plan(config)).splitlines()

  found = [line for line in lines if "WARNING" in line]
  assert len(found) == bool(said)
  assert not said or re.search(said, found[0])


def test_the_summary_counts_the_images_that_judge_and_names_milestones(
  digits_dir,
):
  config = recipes.load("digits")
  config.data.data_dir = digits_dir
  config.checkpoint.milestone_steps = 500

  summary = plan_summary(make_plan(config))

  assert "test: digits, test (360 images); " in summary
  assert "newest 3 kept, one every 500 for ever" in summary


@pytest.mark.parametrize(
  "arg, words",
  [
    ("finetune,growth=tile", "growth=tile is none of tiles and interpolate"),
    ("finetune,res=12,growth=tiles", "growth=tiles is for multiples of 8 px"),
    ("pretrain,res=8", "change nothing in pretrain"),
    ("pretrain,growth=tiles", "change nothing in pretrain"),
    ("pretrain,steps=50", "change nothing in pretrain"),
  ],
)
def test_arguments_of_transfer_that_contradict_are_refused(arg, words):
  with pytest.raises(UserError, match=words):
    recipes.load("transfer", arg)
