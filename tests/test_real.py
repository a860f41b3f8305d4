# SPDX-License-Identifier: Apache-2.0
"""Several labels per image, as the ReaL paper's NumPy code counts them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_evaluators
from layouts import write_tfds
from test_evaluators import CLASSES, EXAMPLES

from mixer import evaluate as evaluation
from mixer import weights
from mixer.config import default, evaluator
from mixer.data.sources import open_source
from mixer.data.sources.tfds import builder_class
from mixer.errors import UserError
from mixer.evaluators.classification import Real
from mixer.models import create
from mixer.plan import make_plan

SIZES = dict(patch=8, hidden=8, blocks=1, tokens_mlp=4, channels_mlp=8)


@pytest.fixture
def examples():
  rng = np.random.RandomState(0)
  labels = (rng.rand(EXAMPLES, CLASSES) < 0.2).astype(np.int32)
  labels[[0, 9, 36]] = 0
  return {
    "image": rng.randint(0, 256, (EXAMPLES, 1, 8, 3)).astype(np.uint8),
    "label": labels,
  }


evaluate = functools.partial(
  test_evaluators.evaluate, evaluator=Real, kind="real"
)


@pytest.mark.parametrize("batch, devices", [(40, 8), (64, 2)])
def test_results_are_numpys_for_any_batch_and_devices(examples, batch, devices):
  predictions = examples["image"][:, 0, :CLASSES, 0].argmax(1)
  lists = [np.flatnonzero(row) for row in examples["label"]]
  is_right = [
    prediction in labels
    for prediction, labels in zip(predictions, lists, strict=True)
    if len(labels)
  ]

  result = evaluate(examples, batch=batch, devices=devices)

  assert result == {
    "accuracy": pytest.approx(np.mean(is_right), abs=1e-12),
    "examples": len(is_right),
    "unlabelled": EXAMPLES - len(is_right),
  }
  assert 0 < result["accuracy"] < 1 and result["unlabelled"] >= 3


def test_a_split_without_any_label_is_an_error(examples):
  with pytest.raises(UserError, match="No image of the evaluator's split"):
    evaluate(examples | {"label": np.zeros_like(examples["label"])})


def config_with(folder, **options):
  config = default()
  config.model.update(name="Mixer", **SIZES)
  config.data.data_dir = str(folder)
  config.batch = 8
  config.evals.real = evaluator(ops="resize(8)", **options)
  return config


def problems_with(folder, **options):
  config = config_with(folder, **options)
  plan = make_plan(config, for_training=False, load_init=False)
  return plan.complaints.problems


def test_real_and_classification_tell_each_others_labels_apart(tmp_path):
  write_tfds(tmp_path, "imagenet2012_real", {"validation": 3})

  assert not problems_with(tmp_path, type="real")
  [problem] = problems_with(tmp_path, type="real", label="original_label")
  assert "'original_label' of imagenet2012_real is one class" in problem
  [problem] = problems_with(
    tmp_path, name="imagenet2012_real", split="validation", label="real_label"
  )
  assert "is any number of classes an image" in problem


def test_eval_py_counts_the_images_that_have_labels(tmp_path, capsys):
  lists = [[], [3], [5, 7], [], [999, 0, 1]]
  fixed = {"real_label": lambda i: lists[i]}
  write_tfds(tmp_path, "imagenet2012_real", {"validation": 5}, fixed=fixed)
  model = create("Mixer", num_classes=1000, **SIZES)
  init = jax.jit(model.init)
  params = init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
  # The head sees nothing but its bias, and says 7.
  params["head"]["bias"] = params["head"]["bias"].at[7].set(1.0)
  weights.save(tmp_path / "w.npz", jax.device_get(params))
  config = config_with(tmp_path, type="real", published=0.5)
  config.init = str(tmp_path / "w.npz")

  evaluation.evaluate(config, str(tmp_path / "run"))

  printed = capsys.readouterr().out
  rows = re.findall(r"^(eval/\S+) +(.*)$", printed, re.MULTILINE)
  assert rows == [
    ("eval/real/accuracy", "0.33333  published 0.50000  -0.16667"),
    ("eval/real/examples", "3.00000"),
    ("eval/real/unlabelled", "2.00000"),
  ]


def test_images_of_imagenet_v2_have_imagenets_labels(tmp_path):
  """Its folders are named by number, and listed as 0, 1, 10, 100, ..."""
  classes = (0, 1, 2, 10, 99, 100, 999)
  for label in classes:
    (tmp_path / "v2" / str(label)).mkdir(parents=True)
    (tmp_path / "v2" / str(label) / "a.jpeg").touch()
  write_tfds(tmp_path, "imagenet_v2/matched-frequency", {"test": 3})
  write_tfds(tmp_path, "imagenet2012", {"validation": 1})

  v2 = open_source("imagenet_v2", "test", str(tmp_path))
  one = open_source("imagenet2012", "validation", str(tmp_path))

  assert v2.class_names == one.class_names and len(one.class_names) == 1000
  builder = builder_class("imagenet_v2")(
    config="matched-frequency", data_dir=tmp_path
  )
  written = dict(builder._generate_examples(str(tmp_path / "v2")))
  labels = {key: example["label"] for key, example in written.items()}
  assert labels == {f"{label}_a.jpeg": label for label in classes}
