# SPDX-License-Identifier: Apache-2.0
"""The semantic softmax (arXiv 2104.10972), against its definition in NumPy."""

import dataclasses
import functools

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from runs import read_rows
from scipy.special import log_softmax

from mixer import train
from mixer.data.hierarchy import read_hierarchy
from mixer.errors import UserError
from mixer.evaluators.classification import eval_step
from mixer.plan import make_plan
from mixer.tools.inference import open_classifier
from mixer.training.semantic_softmax import semantic_softmax

# Lines of PARENT CHILD; living and vehicle are no classes, and pug's second
# parent does not count.
TREE = """living animal
living plant
animal dog
animal cat
dog toy
toy pug
vehicle pug
vehicle car
"""
CLASSES = ["pug", "car", "animal", "dog", "cat", "plant"]
CHAINS = {
  "pug": ["animal", "dog", "pug"],
  "car": ["car"],
  "animal": ["animal"],
  "dog": ["animal", "dog"],
  "cat": ["animal", "cat"],
  "plant": ["plant"],
}


@pytest.fixture
def tree(tmp_path):
  path = tmp_path / "is_a.txt"
  path.write_text(TREE)
  return path


def published_loss(logits, label, smoothing):
  """Returns an example's loss, level by level, as the paper defines it."""
  total = 0
  chain = CHAINS[CLASSES[label]]
  for k in range(3):
    level = [i for i, name in enumerate(CLASSES) if len(CHAINS[name]) == k + 1]
    below = sum(len(x) > k for x in CHAINS.values())
    if k < len(chain):
      targets = np.array([CLASSES[i] == chain[k] for i in level], float)
      targets = (1 - smoothing) * targets + smoothing / len(level)
      weight = min(len(CLASSES) / below, 20)
      total -= weight * targets @ log_softmax(logits[level])
  return total


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_published_one(tree, smoothing):
  hierarchy = read_hierarchy(tree, CLASSES)
  hierarchy = dataclasses.replace(hierarchy, label_smoothing=smoothing)
  logits = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
  labels = 0.7 * np.eye(6) + 0.3 * np.eye(6)[::-1]  # as mixup makes them

  losses = semantic_softmax(logits, labels, hierarchy)

  expected = [
    0.7 * published_loss(row, i, smoothing)
    + 0.3 * published_loss(row, 5 - i, smoothing)
    for i, row in enumerate(logits)
  ]
  np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_level_weighs_at_most_twenty(tmp_path):
  names = [f"c{i}" for i in range(100)]
  (tmp_path / "tree").write_text("c0 c1\nc1 c2\n")

  weights = read_hierarchy(tmp_path / "tree", names).weights

  assert weights == (1.0, 20.0, 20.0)


def test_classes_of_other_levels_are_no_competitors(tree):
  """A pug is no wrong dog: only classes of the label's level are ranked."""

  class Logits:
    def apply(self, variables, images, train):
      return jnp.array([[9.0, 1, 0, 5, 4, 2]] * len(images)), {}

  step = functools.partial(eval_step, {}, model=Logits())
  batch = {"image": jnp.zeros((6, 2, 2, 3)), "label": jnp.arange(6)}

  result = step(batch, loss=read_hierarchy(tree, CLASSES))
  plain = step(batch, loss="softmax")

  named = [CLASSES[i] for i in result["prediction"]]
  assert named == ["pug", "plant", "plant", "dog", "dog", "plant"]
  assert {*plain["prediction"].tolist()} == {0}


@pytest.mark.parametrize(
  "text, answer",
  [
    ("a b c\n", "'a b c'"),
    ("car dog\ndog car\n", "circle"),
    ("mammal horse\n", "no class above another"),
  ],
)
def test_a_file_that_is_no_hierarchy_is_refused(tmp_path, text, answer):
  (tmp_path / "tree").write_text(text)

  with pytest.raises(UserError, match=answer):
    read_hierarchy(tmp_path / "tree", CLASSES)


def test_names_with_spaces_are_separated_by_tabs(tmp_path):
  (tmp_path / "tree").write_text("big cat\tsnow leopard\n")

  hierarchy = read_hierarchy(tmp_path / "tree", ["snow leopard", "big cat"])

  assert [x.tolist() for x in hierarchy.levels] == [[1], [0]]


@pytest.fixture
def config(tmp_path, tree):
  """The recipe for ImageNet-21k-P, small, on images of their own grey."""
  for split, number in (("train", 8), ("validation", 2)):
    for i, name in enumerate(CLASSES):
      folder = tmp_path / "images" / split / name
      folder.mkdir(parents=True)
      for k in range(number):
        image = np.full((8, 8, 3), 40 * i + k, np.uint8)
        cv2.imwrite(str(folder / f"{k}.png"), image)
  arg = f"B/16,semantic=folder:{tmp_path}/images"
  config = recipes.load("pretrain_i21k", arg)
  config.data.hierarchy = str(tree)
  config.total_epochs = config.schedule.warmup_epochs = None
  config.checkpoint.milestone_epochs = None
  config.total_steps, config.batch, config.max_per_device = 30, 48, 2
  config.optimizer.learning_rate = 3e-3
  config.model.update(hidden=16, blocks=1, tokens_mlp=8, channels_mlp=32)
  config.data.ops = "resize(16)"
  for options in config.evals.values():
    options.ops = "resize(16)"
  config.evals.train.split = "train"
  config.log.every_steps = 1
  return config


def test_the_recipe_trains_and_evaluates_by_level(config, tmp_path):
  config.mixup = 0.2

  assert train.train(config, str(tmp_path / "run")) == 0

  rows = read_rows(tmp_path / "run")
  # Of the whole data set with logits 0: a level's cross entropy is the log of
  # its size, for classes of this level and below.
  sizes, weights = np.array([3, 2, 1]), np.array([1, 2, 6])
  level = [len(CHAINS[name]) for name in CLASSES]
  first = [(weights * np.log(sizes))[:n].sum() for n in level]
  assert rows[0]["train/loss"] == pytest.approx(np.mean(first), rel=1e-4)
  assert rows[-1]["train/loss"] < rows[0]["train/loss"]
  assert rows[-1]["eval/heldout/accuracy"] >= 0.5
  with pytest.raises(UserError, match="fine-tune it first"):
    open_classifier(str(tmp_path / "run"))


def test_loss_and_hierarchy_are_needed_together(config, tree, tmp_path):
  def complaints(**changes):
    with config.unlocked():
      changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(changes)
    return make_plan(changed).complaints.problems

  assert not complaints()
  for changes in (
    {"data.hierarchy": ""},
    {"loss": "softmax"},
    {"data.hierarchy": str(tmp_path / "none")},
  ):
    [problem] = complaints(**changes)
    assert problem.startswith("config.data.hierarchy: ")
  [problem] = complaints(**{"evals.train.present_classes_only": True})
  assert problem.startswith("config.evals.train.present_classes_only: ")
