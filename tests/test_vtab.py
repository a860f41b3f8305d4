# SPDX-License-Identifier: Apache-2.0
"""The 19 tasks of VTAB-1k, on miniatures with TFDS's own features."""

import io
import re

import numpy as np
import pytest
import recipes
from layouts import write_tfds
from photographs import encoded

from mixer.data.decode import decode
from mixer.data.input_pipeline import train_batches
from mixer.data.preprocess import parse
from mixer.errors import UserError
from mixer.plan import make_plan

# As the benchmark's code counts: examples of TFDS's split train, at which of
# them the held-out ones begin in percent (None: they are of another split),
# test examples, classes.
SIZES = {
  "caltech101": (3_060, 90, 6_084, 102),
  "cifar100": (50_000, 90, 10_000, 100),
  "dtd": (1_880, None, 1_880, 47),
  "oxford_flowers102": (1_020, None, 6_149, 102),
  "oxford_iiit_pet": (3_680, 80, 3_669, 37),
  "sun397": (76_128, None, 21_750, 397),
  "svhn": (73_257, 90, 26_032, 10),
  "patch_camelyon": (262_144, None, 32_768, 2),
  "eurosat": (27_000, 60, 5_400, 10),
  "resisc45": (31_500, 60, 6_300, 45),
  "diabetic_retinopathy": (35_126, None, 42_670, 5),
  "clevr_count": (70_000, 90, 15_000, 8),
  "clevr_distance": (70_000, 90, 15_000, 6),
  "dmlab": (65_550, None, 22_735, 6),
  "kitti_distance": (6_347, None, 711, 4),
  "dsprites_x_position": (737_280, 80, 73_728, 16),
  "dsprites_orientation": (737_280, 80, 73_728, 16),
  "smallnorb_azimuth": (24_300, None, 12_150, 18),
  "smallnorb_elevation": (24_300, None, 12_150, 9),
}
TASKS = tuple(SIZES)
# Whose test is the end of split train, the rest after so many percent.
ENDS = {"eurosat": 80, "resisc45": 80}
ENDS |= {"dsprites_x_position": 90, "dsprites_orientation": 90}


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
  """An empty folder of data sets, whatever this machine has."""
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))


def shrunk(split):
  """Shrinks the parts to splits of 20: 8 for training, 4 held out."""
  split = split.replace("[:800]", "[:8]").replace("[:200]", "[:4]")
  split = re.sub(r"\[(\d+):(\d+)\]", "[8:12]", split)
  return re.sub(r"\[\d+:\]", "[12:]", split)


def sprite(i):
  """The bytes of an image of 0 and 1."""
  shape = (64, 64)
  image = np.random.default_rng(i).integers(2, size=shape, dtype=np.uint8)
  return io.BytesIO(encoded(image, "PNG"))


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  names = {recipes.load("vtab", f"dataset={task}").data.name for task in TASKS}
  splits = {"train": 20, "validation": 20, "test": 20}
  for name in sorted(names):
    fixed = {"image": sprite} if name == "dsprites" else {}
    write_tfds(folder, name, splits, fixed=fixed)
  return str(folder)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_resolves_and_feeds_a_batch(miniatures, task):
  config = recipes.load("vtab", f"dataset={task},res=224,model=Mixer-S/32")
  config.model.blocks = 1
  config.data.data_dir = miniatures
  config.data.split = shrunk(config.data.split)
  config.data.examples = None
  for options in config.evals.values():
    options.split, options.examples = shrunk(options.split), None

  plan = make_plan(config, load_init=False)

  plan.complaints.raise_all()
  assert len(plan.data.source) == 8
  assert len(plan.data.evals["minival"].source) == 4
  batch = next(
    train_batches(plan.data.source, parse(config.data.ops), batch=8, seed=0)
  )
  assert batch["image"].shape == (8, 224, 224, 3)
  assert 0 <= batch["label"].min()
  assert batch["label"].max() < config.model.num_classes


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_split_as_the_benchmark_splits_it(task):
  train, percent, test_examples, classes = SIZES[task]
  config = recipes.load("vtab", f"dataset={task}")
  minival, test = config.evals.minival, config.evals.test

  assert config.model.num_classes == classes
  assert (config.data.split, config.data.examples) == ("train[:800]", 800)
  if percent:
    first = train * percent // 100
    assert minival.split == f"train[{first}:{first + 200}]"
  else:
    assert re.fullmatch(r"(validation|test)\[:200\]", minival.split)
  # Of Caltech101, the machine that prepares it decides about one image.
  expected = None if task == "caltech101" else test_examples
  assert (minival.examples, test.examples) == (200, expected)
  if task in ENDS:
    first = train * ENDS[task] // 100
    assert test.split == f"train[{first}:]"
    assert train - first == test_examples
  # In the end it trains on both parts.
  full = recipes.load("vtab", f"dataset={task},full=True")
  assert full.data.split == f"train[:800]+{minival.split}"
  assert full.data.examples == 1_000
  assert config.sweep.full_split == full.data.split
  assert config.sweep.full_examples == full.data.examples
  assert "minival" not in full.evals
  assert full.evals.test == test


def test_held_out_images_are_in_no_other_part():
  for task in TASKS:
    config = recipes.load("vtab", f"dataset={task}")
    taken = {"train": [(0, 800)]}
    for options in (config.evals.minival, config.evals.test):
      split, _, part = options.split.rstrip("]").partition("[")
      begin, _, end = part.partition(":")
      span = int(begin or 0), int(end or 10**9)
      for low, high in taken.setdefault(split, []):
        assert span[0] >= high or span[1] <= low, (task, options.split)
      taken[split].append(span)


def test_the_sprites_are_black_and_white(miniatures):
  config = recipes.load("vtab", "dataset=dsprites_x_position,model=Mixer-S/32")
  config.data.data_dir = miniatures
  config.data.split, config.data.examples = "train", None
  source = make_plan(config, load_init=False).data.source
  [(data, _)] = source.read([0])
  ops = parse(config.data.ops.replace("224", "64"))

  image = ops(decode(data), np.random.default_rng(0))

  np.testing.assert_array_equal(image, 255 * decode(data))
  assert set(np.unique(image)) == {0, 255}


def test_groups_have_every_task_once():
  groups = recipes.module("vtab").GROUPS

  assert [task for group in groups.values() for task in group] == list(TASKS)
  assert [len(group) for group in groups.values()] == [7, 4, 8]


def test_large_images_take_the_model_of_appendix_c():
  small = recipes.load("vtab", "dataset=svhn")
  large = recipes.load("vtab", "dataset=patch_camelyon")

  assert "random_crop(224)" in small.data.ops
  assert (small.model.tokens_mlp, small.init_growth) == (None, "none")
  assert "random_crop(448)" in large.data.ops
  assert (large.model.tokens_mlp, large.init_growth) == (4 * 384, "tiles")
  assert large.max_per_device == small.max_per_device // 4


def test_what_a_label_says_survives_the_augmentation():
  for task in TASKS:
    ops = recipes.load("vtab", f"dataset={task}").data.ops
    is_structured = task in TASKS[11:]
    assert ("crop" in ops) == (not is_structured)
    assert ("flip" in ops) == (not is_structured and task != "svhn")


@pytest.mark.parametrize("task", ["resisc45", "diabetic_retinopathy"])
def test_files_that_only_a_person_can_fetch_are_named(task):
  plan = make_plan(recipes.load("vtab", f"dataset={task}"), load_init=False)

  assert plan.complaints.missing and all(
    "cannot be downloaded by a program" in text
    for text in plan.complaints.missing
  )


def test_an_unknown_task_or_size_is_named():
  with pytest.raises(UserError, match="clevr_cout.*did you mean clevr_count"):
    recipes.load("vtab", "dataset=clevr_cout")
  with pytest.raises(UserError, match="res=384 is not a multiple of 224"):
    recipes.load("vtab", "dataset=dtd,res=384")
