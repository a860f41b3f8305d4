# SPDX-License-Identifier: Apache-2.0
import re

import pytest
import recipes
from ml_collections import ConfigDict
from recipes import model

from mixer.config import SCHEMA, default, evaluator
from mixer.config_check import (
  diff_configs,
  explain_order,
  resolve,
  to_dict,
  validate,
)
from mixer.errors import UserError
from mixer.models import CHOICES, create
from mixer.plan import make_plan
from mixer.recipe import parse_arg
from mixer.schema import resolve_steps
from mixer.training import optimizer
from mixer.training.step import LOSSES


def plan_digits(digits_dir, changes, **options):
  """Returns the plan of the digits recipe with some keys changed."""
  config = recipes.load("digits")
  config.data.data_dir = digits_dir
  config.evals.half = evaluator(
    split="test[:50%]", ops="central_crop(8)", every_epochs=3.0
  )
  config.update_from_flattened_dict(changes)
  return make_plan(config, **options)


def test_keys_that_the_schema_lacks_are_all_named_with_the_nearest():
  config = default()
  config.optimizer = {"learning_rat": 3.0}
  config.bach = 3
  config.evals.val = {"splt": "test"}

  with pytest.raises(UserError) as error:
    resolve(config)

  lines = str(error.value).splitlines()
  assert len(lines) == 3
  assert any(
    "learning_rat " in s and "optimizer.learning_rate?" in s for s in lines
  )
  assert any("bach " in s and "mean batch?" in s for s in lines)
  assert any("splt " in s and "evals.val.split?" in s for s in lines)


def test_a_replaced_part_has_defaults_and_its_types_are_checked():
  config = default()
  config.optimizer = {"learning_rate": 3.0}
  assert resolve(config).optimizer.learning_rate == 3.0
  assert resolve(config).optimizer.b2 == 0.999

  config.optimizer = {"learning_rate": "fast"}
  with pytest.raises(UserError, match="'fast' is of type str, not float"):
    resolve(config)


def test_values_out_of_range_are_all_named():
  config = default()
  config.loss = "hinge"
  config.label_smoothing = 2.0
  config.optimizer.multipliers = (("(", 1.0), "head")

  problems = list(validate(config))

  assert len(problems) == 4
  assert "'softmax', 'sigmoid'" in problems[0]


@pytest.mark.parametrize("field, words", CHOICES.items())
def test_a_word_that_models_do_not_know_is_refused_with_theirs(field, words):
  config = default()
  config.model[field] = "other"

  [problem] = validate(config)

  assert problem.removesuffix(".").endswith(", ".join(map(repr, words)))


def test_every_allowed_word_has_its_code():
  assert not [x for word in LOSSES for x in SCHEMA["loss"].check(word)]
  for kind in ("linear", "cosine", "constant"):
    assert not list(SCHEMA["schedule"]["kind"].check(kind))
    optimizer.make_schedule(kind=kind, total_steps=2)


@pytest.mark.parametrize(
  "unit, value, expected",
  [("steps", 7, 7), ("epochs", 2.5, 250), ("examples", 1000, 100)],
)
def test_durations_come_in_three_units(unit, value, expected):
  config = default()
  config[f"total_{unit}"] = value

  assert resolve_steps(config, "total", batch=10, examples=1000) == expected


@pytest.mark.parametrize("batch", [49, 98, 103])
def test_whole_batches_are_whole_steps(batch):
  config = default()
  for k in (1, 2, 3, 57):
    config.total_examples = k * batch
    assert resolve_steps(config, "total", batch=batch, examples=None) == k


def test_a_recipes_argument_may_begin_without_its_key():
  arg = parse_arg(
    "L/16,epochs=60,full=true", variant="B/16", epochs=300.0, full=False
  )

  assert arg == ConfigDict({"variant": "L/16", "epochs": 60.0, "full": True})


def test_only_changes_of_the_result_count_as_differences():
  old, new = recipes.load("digits"), recipes.load("digits")
  new.log.every_steps = 1
  new.checkpoint.keep = 9
  new.max_per_device = 2
  new.data.workers = 7
  new.evals.test.per_class = True

  assert not list(diff_configs(to_dict(old), to_dict(new)))

  new.optimizer.learning_rate = 0.5
  assert list(diff_configs(to_dict(old), to_dict(new))) == [
    "optimizer.learning_rate: 0.003 -> 0.5"
  ]


def test_the_micro_batch_is_the_largest_that_obeys_the_limit(digits_dir):
  plan = plan_digits(digits_dir, {"batch": 96, "max_per_device": 5})

  assert not plan.complaints.problems and not plan.complaints.missing
  # 12 images a device: 4 at once, three times.
  assert (plan.data.per_device, plan.data.accumulation) == (4, 3)


VIT = dict(patch=2, hidden=16, blocks=2, mlp=32, heads=2)
BIT = dict(width=0.5, units=(1, 1))
DROP = {"model.stoch_depth": 0.1}


@pytest.mark.parametrize("name, fields", [("ViT", VIT), ("BiT", BIT)])
def test_a_config_makes_a_model_of_any_family(digits_dir, name, fields):
  plan = plan_digits(digits_dir, model(name, **fields))

  assert not plan.complaints.problems
  assert plan.model.module == create(
    name, num_classes=10, dtype="float32", **fields
  )
  assert plan.model.multiply_accumulates > 0


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"batch": 100}, "100 is not divided by the 8 devices: take 96 or 104"),
    ({"batch": 64, "accumulation": 3}, "accumulation = 3 does not divide"),
    ({"batch": 64, "data.repeats": 3}, "repeats = 3 does not divide"),
    ({"data.examples": 5}, "has 1437 examples in 'train', and not 5"),
    ({"data.split": "train[:0.1]", "data.examples": 0}, "no split 'train"),
    ({"data.split": "tran"}, "no split 'tran'"),
    ({"data.name": "digitz", "data.examples": 0}, "no data set 'digitz'"),
    ({"data.name": "folder:/nowhere/x", "data.examples": 0}, "nor a folder"),
    ({"data.ops": "resiz(8)"}, "did you mean resize"),
    ({"data.ops": "flip"}, "end it with a crop or a resize"),
    ({"data.ops": "resize(10)"}, "10 x 10 px by config.data.ops; 8 x 8 px"),
    ({"evals.test.split": "tst"}, "config.evals.test: .*no split 'tst'"),
    ({"evals.test.name": "digitz"}, "no data set 'digitz'"),
    ({"skip_evals": "tset"}, "'tset' is not an evaluator; did you mean test?"),
    ({"schedule.warmup_epochs": 1000.0}, "does not end within the run"),
    ({"drop.when": "late"}, "'late' has no rate to act on"),
    ({"drop.cutoff_steps": 5}, "'always' has no cut-off"),
    (DROP | {"drop.when": "early"}, "'early' needs a cut-off"),
    (
      DROP | {"drop.when": "late", "drop.cutoff_epochs": 100.0},
      "at step 2,245 is not within the run of 2,245 steps",
    ),
    ({"total_steps": 5}, "total_steps = 5 and total_epochs"),
    ({"total_epochs": 0.0}, "length of the run is not set"),
    ({"checkpoint.best": "eval/tset/accuracy"}, "mean eval/test/accuracy?"),
    ({"init": "nowhere.npz"}, "There are no weights at nowhere.npz"),
    (
      {"optimizer.multipliers": (("haed/.*", 0.0),)},
      "'haed/.*' is the first match of no parameter",
    ),
    (
      {"model.num_classes": 11},
      "digits has 10 .* config.model.num_classes = 10",
    ),
    ({"model.patch": 3}, "8 x 8 px are not divided by patches of 3 px"),
    ({"model.name": "Mixr"}, "no model 'Mixr'"),
    ({"model.name": "mixer-b/16"}, "Nearest: Mixer-B/16"),
    ({"model.name": "B-16"}, "Nearest: Mixer-B/16, ViT-B/16."),
    ({"model.blocks": None}, "needs blocks"),
    ({"model.name": "ViT-B/16"}, "tokens_mlp is of .*; ViT-B/16 has no such"),
    (model("Mixer-B/16", pool="mean"), "pool is of ViT; Mixer-B/16 has"),
    (model("ViT", **VIT | {"heads": 3}), "heads=3 do not divide hidden=16"),
    (model("ViT", **VIT | {"pool": "max"}), "pool = 'max' is none of None"),
    (model("ViT", **VIT | {"heads": 0}), "heads = 0 must be 1 or more"),
    (model("BiT", **BIT, pixels="imagenet"), "pixels is of Mixer, ViT"),
    ({"model.pixels": "imagenet", "init": "x.npz"}, "is for random ones"),
    (model("BiT", **BIT, gelu="tanh"), "gelu is of Mixer, ViT, .*; BiT has"),
    (model("BiT", **BIT, remat="token_mixing"), "remat='token_mixing' is"),
    (model("BiT", **BIT | {"width": 0.1}), "width = 0.1 must be 0.5 or more"),
    (model("BiT", **BIT | {"width": 0.7}), "44.8 channels.*multiple of 0.5"),
    (model("BiT", **BIT | {"units": (1, 0)}), "numbers of residual units"),
  ],
)
def test_one_mistake_is_one_complaint_before_anything_compiles(
  digits_dir, changes, words
):
  complaints = plan_digits(digits_dir, changes).complaints

  [complaint] = complaints.missing + complaints.problems

  assert re.search(words, complaint), complaint


def test_all_complaints_come_together_missing_data_first(tmp_path):
  changes = {"batch": 100, "checkpoint.best": "x", "data.examples": None}
  plan = plan_digits(str(tmp_path), changes)

  with pytest.raises(UserError) as error:
    plan.complaints.raise_all()

  first, *others = str(error.value).splitlines()
  assert first.startswith("digits is not prepared")
  assert len(others) == 2 and not [line for line in others if "epochs" in line]
  assert any("100 is not divided" in line for line in others)


def test_evaluators_complain_once_of_the_same_data_set(digits_dir):
  changes = {"model.num_classes": 11}
  plan = plan_digits(digits_dir, changes, for_training=False)

  [complaint] = plan.complaints.problems

  assert "set config.model.num_classes = 10" in complaint


def test_an_evaluators_type_is_checked(digits_dir):
  with pytest.raises(UserError, match="did you mean classification?") as error:
    plan_digits(digits_dir, {"evals.half.type": "CLASIFICATION"})

  assert len(str(error.value).splitlines()) == 1  # and no word of its keys


def test_a_recipe_may_use_the_former_name_of_a_key():
  config = default()
  config.average_decay = 0.9

  assert resolve(config).ema_decay == 0.9


def test_evaluators_can_be_left_out_by_name(digits_dir):
  changes = {"checkpoint.best": "", "skip_evals": "test,half"}

  assert not plan_digits(digits_dir, changes).data.evals


@pytest.mark.parametrize(
  "batch, examples, seed, words",
  [
    (64, 1000, 0, "examples 320 to 639 .* passed over; .* 20 .* 0.96 epochs"),
    (16, 1000, 0, "examples 160 to 319 of the global order are seen again"),
    (32, 500, 0, "another order: .* by step 20 the run has seen 0.96 epochs"),
    (32, 1000, 1, "another order"),
    (32, 1000, 0, "^$"),
  ],
)
def test_a_change_of_the_order_of_examples_is_explained(
  batch, examples, seed, words
):
  old = {"batch": 32, "seed": 0, "data": {"examples": 1000}}
  new = {"batch": batch, "seed": seed, "data": {"examples": examples}}

  assert re.search(words, explain_order(old, new, 10, 20))
