# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipes
from flax.traverse_util import flatten_dict
from layouts import write_tfds
from runs import read_rows
from small_models import assert_close
from test_own_images import write_images

from mixer import train
from mixer.errors import UserError
from mixer.models import flops
from mixer.plan import make_plan
from mixer.training.optimizer import make_optimizer, make_schedule

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
  """An empty folder of data sets, whatever this machine has."""
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize("recipe", recipes.RECIPES, ids=" ".join)
def test_a_recipe_resolves_to_its_golden_text(recipe):
  """Fails when a recipe changes unnoticed; see tests/recipes.py."""
  text = recipes.text(recipes.load(*recipe))

  assert text == recipes.golden(*recipe).read_text()


def test_every_golden_has_its_recipe():
  expected = {recipes.golden(*recipe) for recipe in recipes.RECIPES}

  assert set(recipes.GOLDENS.iterdir()) == expected


@pytest.mark.parametrize(
  "variant, epochs, rate, decay",
  [
    # Mixer: table 4. The others: table 3 of the ViT paper (arXiv 2010.11929).
    *(("S/32", 5, 3e-3, 0.03), ("B/16", 7, 3e-3, 0.03)),
    *(("L/16", 7, 1e-3, 0.03), ("H/14", 14, 1e-3, 0.03)),
    *(("ViT-B/32", 7, 8e-4, 0.1), ("ViT-L/32", 7, 6e-4, 0.1)),
    *(("ViT-L/16", 7, 4e-4, 0.1), ("ViT-H/14", 14, 3e-4, 0.1)),
    *(("BiT-R50x1", 7, 1e-3, 0.1), ("BiT-R152x2", 7, 6e-4, 0.1)),
  ],
)
def test_a_large_data_set_is_trained_on_as_jft_300m(
  variant, epochs, rate, decay
):
  config = recipes.load("pretrain_large", variant)

  assert config.total_epochs == epochs
  assert config.optimizer.learning_rate == rate
  assert config.optimizer.weight_decay == pytest.approx(rate * decay)
  assert (config.optimizer.name, config.schedule.kind) == ("adam", "linear")
  assert config.data.ops == "inception_crop(224) | flip"
  assert not config.mixup and not config.model.stoch_depth
  longer = recipes.load("pretrain_large", f"{variant},epochs=20")
  assert longer.total_epochs == 20


def test_pre_training_counts_the_classes_of_images_of_ones_own(tmp_path):
  write_images(tmp_path / "my" / "TRAIN", "abc", 70)

  config = recipes.load("pretrain_large", f"S/16,data=folder:{tmp_path}/my")

  config.schedule.warmup_steps = 0
  config.batch = 40
  plan = make_plan(config, devices=1)
  assert not plan.complaints.problems
  assert config.model.num_classes == 3
  assert config.model.head_bias == pytest.approx(-np.log(3), abs=0.1)
  sizes = [len(plan.data.evals[x].source) for x in ("heldout", "train")]
  assert (len(plan.data.source), *sizes) == (208, 2, 2)


@pytest.mark.parametrize(
  "data, answer",
  [
    ("folder:none", "There is no folder none"),
    ("cifar10", "cifar10 is not prepared"),
    ("./photos", "write folder:DIR"),
    ("cifar11", "cifar10"),
  ],
)
def test_pre_training_says_which_data_it_lacks(data, answer):
  with pytest.raises(UserError, match=answer) as error:
    recipes.load("pretrain_large", f"data={data}")

  assert type(error.value) is UserError  # others are shown with their name


def test_the_modern_recipe_updates_as_adamw():
  options = recipes.load("modern_i1k", "B/16").optimizer
  params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
  schedule = make_schedule(kind="cosine", total_steps=9, warmup_steps=3)
  adamw = optax.adamw(
    lambda step: 4e-3 * schedule(step),
    weight_decay=0.05,
    mask={"Dense_0": {"kernel": True, "bias": False}},
  )
  results = []
  for optimizer in (make_optimizer(params, schedule, **options), adamw):
    new, state = params, optimizer.init(params)
    for step in range(9):
      gradients = jax.tree.map(lambda x, n=step: jnp.cos(x * n), new)
      updates, state = optimizer.update(gradients, state, new)
      new = optax.apply_updates(new, updates)
    results.append(new)

  assert_close(*results, rtol=1e-6, atol=0)


def test_a_missing_data_set_is_reported_beside_everything_else(capsys):
  config = recipes.load("pretrain_i21k", "B/16")

  with pytest.raises(UserError) as error:
    train.dry_run(config)

  assert "imagenet21k is not prepared" in str(error.value)
  printed = capsys.readouterr().out
  for fact in (
    "75,908,739 parameters",
    "25.2 GFLOP an image forward",
    "1,036,078 steps, 300 epochs",
    "warm-up 10,000 steps",
    "global 4096 = 1 host x 8 cpu x 512 x 1 accumulated",
  ):
    assert fact in printed


def shrink(config):
  """Shrinks a recipe to two steps of a small model, on the same code path."""
  for key in ("steps", "epochs", "examples"):
    config[f"total_{key}"] = None
    config.schedule[f"warmup_{key}"] = None
    config.checkpoint[f"every_{key}"] = None
    config.checkpoint[f"milestone_{key}"] = None
  config.total_steps = 2
  config.init_head = "auto"
  config.schedule.warmup_steps = 1
  if config.drop.when != "always":
    config.drop.update(cutoff_steps=1, cutoff_epochs=None)
  config.batch = 32
  config.max_per_device = config.sam.images = 2
  config.model.update(hidden=16, blocks=2, tokens_mlp=8, channels_mlp=32)
  config.data.examples = None
  config.data.split = config.data.split.replace("51200", "12")
  for options in config.evals.values():
    options.examples = None
    options.split = options.split.replace("102400", "20").replace("51200", "12")
  return config


IMAGENET = {
  "imagenet2012": {"train": 100, "validation": 9},
  "imagenet_v2/matched-frequency": {"test": 5},
}
PATHS = {
  # Soft labels and bfloat16, sigmoid, RandAugment, accumulation, Adam.
  ("pretrain_i21k", "B/16"): {"imagenet21k": {"full": 40}},
  # Classes from the data set.
  ("pretrain_large", "B/32,data=cifar10"): {"cifar10": {"train": 200}},
  # Evaluation on a second data set.
  ("pretrain_i1k", "B/32"): IMAGENET,
  # Two gradients an update.
  ("sam_i1k", "B/16"): IMAGENET,
  # Later ops, CutMix, early stochastic depth, other pixels.
  ("modern_i1k", "S/32"): IMAGENET,
  # Momentum, resize-small and random crop, a sum of splits, no held-out part.
  ("finetune", "dataset=oxford_flowers102,full=True"): {
    "oxford_flowers102": {"train": 20, "validation": 20, "test": 9}
  },
  # The best checkpoint by a held-out part, the other evaluation crop.
  ("finetune", "dataset=cifar10,eval=resize"): {
    "cifar10": {"train": 200, "test": 9}
  },
}


@pytest.mark.parametrize("recipe", PATHS, ids=" ".join)
def test_a_code_path_takes_two_steps_on_records_as_tfds_lays_them_out(
  recipe, tmp_path
):
  for name, splits in PATHS[recipe].items():
    write_tfds(tmp_path / "data", name, splits)
  config = shrink(recipes.load(*recipe))

  code = train.train(config, str(tmp_path / "run"))

  assert code == 0
  rows = read_rows(tmp_path / "run")
  assert [row["step"] for row in rows] == [1, 2]
  assert ("train/sharpness" in rows[-1]) == (config.sam.rho > 0)
  for name in config.evals:
    assert 0 <= rows[-1][f"eval/{name}/accuracy"] <= 1
  assert (tmp_path / "run" / "weights.npz").exists()


def test_fine_tuning_without_weights_is_no_accident():
  plan = make_plan(recipes.load("finetune", "dataset=cifar10"))

  assert "--config.init=FILE" in "\n".join(plan.complaints.problems)


def test_fine_tuning_at_448_px_takes_the_model_of_appendix_c():
  config = recipes.load("finetune", "model=Mixer-L/16,res=448")
  plan = make_plan(config, load_init=False)

  # Derived in the paper's terms: 279.5 M parameters and 237.4 GMAC, headless.
  head = 1024 * 1000 + 1000
  headless = flops.count_params(plan.model.abstract_params) - head
  assert headless == pytest.approx(279.5e6, rel=1e-3)
  assert plan.model.multiply_accumulates == pytest.approx(237.4e9, rel=1e-3)


def test_imagenet_is_judged_by_real_and_v2_on_request():
  config = recipes.load("finetune", "model=Mixer-L/16,res=448,extra=True")

  assert {*config.evals} == {"test", "real", "v2", "minival"}
  assert config.evals.real.ops == config.evals.test.ops
  with pytest.raises(UserError, match="extra=True is for dataset=imagenet2012"):
    recipes.load("finetune", "dataset=cifar10,extra=True")


def test_an_unknown_data_set_or_argument_of_a_recipe_is_named():
  with pytest.raises(UserError, match="oxford_flower.*oxford_flowers102"):
    recipes.load("finetune", "dataset=oxford_flower")
  with pytest.raises(UserError, match="'resolution'.*res=224"):
    recipes.load("finetune", "resolution=448")
  plan = make_plan(recipes.load("pretrain_i21k", "B/17"))
  assert "Nearest: Mixer-B/16" in plan.complaints.problems[0]


@pytest.mark.parametrize("data", ["photographs", "digits"])
def test_a_small_recipe_adds_one_thing_to_the_plain_one(data):
  def keys(recipe):
    config = recipes.load("regularisation", f"{recipe},data={data}")
    return flatten_dict(config.to_dict(), sep=".")

  plain = keys("plain")
  for recipe, added in recipes.module("regularisation").RECIPES.items():
    changed = {k: v for k, v in keys(recipe).items() if v != plain[k]}
    if recipe in ("early", "late"):
      assert changed.pop("drop.cutoff_steps") == 66  # a sixth of 400
    assert changed == {k: v for k, v in added.items() if v != plain[k]}
