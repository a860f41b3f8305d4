# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning recipe: images of one's own, resolutions, the grid."""

import shutil

import pytest
import recipes
from sweeps import METRIC, REPORT
from test_own_images import write_images

from mixer.data.sources import image_folder
from mixer.errors import UserError
from mixer.models import flops
from mixer.plan import make_plan, plan_summary
from mixer.tools.sweep.plan import plan_sweep


def finetune(arg):
  return recipes.load("finetune", arg)


@pytest.fixture
def images(tmp_path):
  """A folder of images, with signs in its name that arguments split at."""
  folder = tmp_path / "my=images:1"
  for split in "train", "val":
    write_images(folder / split, "abc", 20)
  return folder


def test_images_of_ones_own_are_counted_and_take_the_settings_of_their_number(
  images,
):
  config = finetune(f"dataset=folder:{images},res=32,model=Mixer-S/32")

  plan = make_plan(config, load_init=False)

  assert not plan.complaints.problems
  assert config.model.num_classes == 3
  assert plan.config.data.examples == 54
  assert len(plan.data.evals["minival"].source) == 6
  assert len(plan.data.evals["test"].source) == 60
  assert (plan.schedule.total_steps, plan.schedule.warmup_steps) == (500, 100)
  assert config.sweep.full_split == "train"


def test_the_test_split_may_have_any_of_the_usual_names(images):
  (images / "train").rename(images / "Train")
  name = "val"
  for other in (*image_folder.HELD_OUT, "Test", "VALID"):
    name = (images / name).rename(images / other).name
    config = finetune(f"dataset=folder:{images},res=32")
    splits = config.data.split, config.evals.test.split
    assert splits == ("Train[:90%]", name)


@pytest.mark.parametrize("other, taken", [("test", "test"), ("Eval", "val")])
def test_of_two_test_splits_the_usual_one_is_taken(images, other, taken):
  shutil.copytree(images / "train", images / other)
  config = finetune(f"dataset=folder:{images},res=32,model=Mixer-S/32")

  plan = make_plan(config, load_init=False)

  assert not plan.complaints.problems
  assert config.evals.test.split == taken
  [unused] = {other, "val"} - {taken}
  lines = [x for x in plan_summary(plan).split("\n") if "not used" in x]
  assert lines == [f"not used      {images / unused}"]


def test_without_a_test_split_the_held_out_part_is_what_is_reported(images):
  shutil.rmtree(images / "val")
  config = finetune(f"dataset=folder:{images},res=32")

  assert set(config.evals) == {"minival"}
  assert config.sweep.report == METRIC
  assert config.sweep.full_split is None


@pytest.mark.parametrize(
  "examples, settings",
  [
    (19_999, (500, 100, "train[90%:]")),
    (20_000, (10_000, 500, "train[98%:]")),
    (499_999, (10_000, 500, "train[98%:]")),
    (500_000, (20_000, 500, "train[99%:]")),
  ],
)
def test_steps_follow_the_number_of_images_in_a_folder(
  examples, settings, images, monkeypatch
):
  monkeypatch.setattr(image_folder.FolderSplit, "num_examples", examples)
  config = finetune(f"dataset=folder:{images}")

  assert settings == (
    config.total_steps,
    config.schedule.warmup_steps,
    config.evals.minival.split,
  )


def test_a_folder_that_is_not_there_or_has_no_train_is_named(images):
  with pytest.raises(UserError, match="There is no folder .*my=image"):
    finetune(f"dataset=folder:{images.parent / 'my=image'}")
  with pytest.raises(UserError, match=f"write dataset=folder:{images}"):
    finetune(f"dataset={images}")
  (images / "train").rename(images / "training")
  with pytest.raises(UserError, match="no split train, but training, val"):
    finetune(f"dataset=folder:{images}")


def test_a_sweep_on_images_of_ones_own_is_checked_whole(images, tmp_path):
  config = finetune(f"dataset=folder:{images},res=32,model=Mixer-S/32")
  config.init_head, config.init_growth = "auto", "none"  # no weights are here

  plan = plan_sweep(config, tmp_path / "sweep")

  assert not plan.complaints.problems + plan.complaints.missing
  assert plan.final_plan.config.data.examples == 60


@pytest.mark.parametrize(
  "arg, growth, tokens_mlp, sides",
  [
    ("res=224", "none", None, (256, 224)),
    ("res=448", "tiles", 4 * 256, (512, 448)),
    ("res=384", "interpolate", None, (439, 384)),
    ("res=128", "interpolate", None, (146, 128)),
  ],
)
def test_fine_tuning_goes_to_any_resolution(arg, growth, tokens_mlp, sides):
  config = finetune(f"dataset=cifar10,model=Mixer-S/32,{arg}")

  resize, crop = sides
  assert config.init_growth == growth
  assert config.model.tokens_mlp == tokens_mlp
  ops = f"resize_small({resize}) | random_crop({crop}) | flip"
  assert config.data.ops == ops
  assert make_plan(config, load_init=False).model.abstract_params is not None


@pytest.mark.parametrize(
  "arg, tokens, tokens_mlp", [("res=224", 784, 256), ("res=448", 3136, 1024)]
)
def test_fine_tuning_takes_the_published_s_8(arg, tokens, tokens_mlp):
  config = finetune(f"dataset=cifar10,model=Mixer-S/16,{arg}")
  config.model.patch = 8

  plan = make_plan(config, load_init=False)

  mixing = plan.model.abstract_params["MixerBlock_0"]["token_mixing"]["Dense_0"]
  assert mixing["kernel"].shape == (tokens, tokens_mlp)
  if arg == "res=224":
    # 78.79 MiB of float32 with the head of ImageNet's 1,000 classes.
    published = 78.79 * 2**20 / 4
    head = 512 * (1000 - 10)
    assert flops.count_params(
      plan.model.abstract_params
    ) + head == pytest.approx(published, rel=1e-3)


def test_the_fine_tuning_grid_is_the_papers():
  for name in recipes.DATA_SETS:
    sweep = finetune(f"dataset={name}").sweep
    assert sweep.learning_rates == (0.003, 0.01, 0.03, 0.06)
    assert (sweep.seeds, sweep.metric, sweep.report) == (3, METRIC, REPORT)
    full = finetune(f"dataset={name},full=True").data
    assert sweep.full_split == full.split
    assert sweep.full_examples == full.examples
