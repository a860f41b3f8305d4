# SPDX-License-Identifier: Apache-2.0
"""Every example counts exactly once, whatever the batch and the devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import special, stats
from sklearn import metrics

from mixer import config
from mixer.data.workers import DEFAULT_WORKERS
from mixer.evaluators import EvalSetup
from mixer.evaluators.classification import Classification, calibration_error
from mixer.training.sharding import replicate

EXAMPLES, CLASSES = 37, 7


class Pixels(nn.Module):
  """Logits are the first pixels: an image decides its own prediction."""

  @nn.compact
  def __call__(self, images, *, train=False):
    scale = self.param("scale", nn.initializers.ones, ())
    return scale * images[:, 0, :CLASSES, 0], {}


@pytest.fixture
def examples():
  rng = np.random.RandomState(0)
  return {
    "image": rng.randint(0, 256, (EXAMPLES, 1, 8, 3)).astype(np.uint8),
    "label": rng.randint(0, CLASSES, EXAMPLES).astype(np.int32),
  }


def padded(examples, batch):
  """Batches as `eval_batches` gives them, the last one filled up."""
  for start in range(0, EXAMPLES, batch):
    part = {k: v[start : start + batch] for k, v in examples.items()}
    n = len(part["label"])
    yield {
      "image": np.pad(part["image"], [(0, batch - n)] + [(0, 0)] * 3),
      "label": np.pad(part["label"], (0, batch - n)),
      "mask": np.arange(batch) < n,
    }


def evaluate(
  examples,
  *,
  batch=16,
  devices=8,
  evaluator=Classification,
  kind="classification",
  loss="softmax",
  folder=None,
  classes=CLASSES,
  **options,
):
  some = jax.local_devices()[:devices]
  names = [f"class {k}" for k in range(classes)]
  setup = EvalSetup(
    name="test",
    options=config.evaluator(kind, **options),
    source=types.SimpleNamespace(class_names=names),
    pool=None,
    batches=lambda source: padded(examples, batch),
    model=Pixels(),
    loss=loss,
    devices=some,
    workers=DEFAULT_WORKERS,
    folder=folder,
  )
  return evaluator(setup).run(replicate({"scale": jnp.float32(3)}, some))


def logits_of(examples):
  return 3 * (examples["image"][:, 0, :CLASSES, 0] / 127.5 - 1)


def truth(examples):
  logits = logits_of(examples)
  p = special.softmax(logits, axis=1)
  labels = examples["label"]
  return {
    "loss": metrics.log_loss(labels, p, labels=range(CLASSES)),
    "accuracy": metrics.accuracy_score(labels, logits.argmax(1)),
    "accuracy_top5": metrics.top_k_accuracy_score(
      labels, logits, k=5, labels=range(CLASSES)
    ),
  }


@pytest.mark.parametrize("batch, devices", [(8, 1), (16, 8), (40, 8)])
def test_results_are_scikit_learns_for_any_batch_and_devices(
  examples, batch, devices
):
  result = evaluate(examples, batch=batch, devices=devices)

  assert result == pytest.approx(truth(examples), rel=1e-6)


@pytest.mark.parametrize(
  "classes, options", [(5, {}), (6, {"calibration": True})]
)
def test_a_run_has_the_results_that_may_select_the_best(
  examples, classes, options
):
  result = evaluate(examples, devices=2, classes=classes, **options)

  kind = config.EVALUATORS["classification"]
  assert list(result) == kind.results(config.evaluator(**options), classes)


@pytest.mark.parametrize(
  "batch, devices, loss", [(8, 1, "sigmoid"), (40, 8, "softmax")]
)
def test_the_calibration_error_is_guos(examples, batch, devices, loss):
  logits = logits_of(examples)
  confidence = special.softmax(logits, axis=1).max(1)
  correct = logits.argmax(1) == examples["label"]
  gaps, _, bins = stats.binned_statistic(
    confidence, correct - confidence, "sum", bins=15, range=(0, 1)
  )

  result = evaluate(
    examples, batch=batch, devices=devices, loss=loss, calibration=True
  )

  expected = np.abs(gaps).sum() / EXAMPLES
  assert result["ece"] == pytest.approx(expected, rel=1e-5)
  assert len(set(bins)) > 5


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin():
  confidence = np.array([0.0, 1 / 3, 1 / 3 + 1e-9, 1.0])
  correct = np.array([False, True, False, True])

  # A shared bin would cancel 2/3 against -1/3.
  expected = (2 / 3 + 1 / 3) / 4
  assert calibration_error(confidence, correct) == pytest.approx(expected)


def test_the_sigmoid_loss_is_summed_over_classes(examples):
  result = evaluate(examples, devices=2, loss="sigmoid")

  logits = logits_of(examples)
  target = np.eye(CLASSES, dtype=bool)[examples["label"]]
  expected = -special.log_expit(np.where(target, logits, -logits)).sum(1)
  assert result["loss"] == pytest.approx(expected.mean(), rel=1e-5)


def test_files_hold_every_example_once(examples, tmp_path):
  options = {"per_class": True, "confusion": True, "folder": tmp_path / "a"}

  evaluate(examples, **options)

  predicted = logits_of(examples).argmax(1)
  expected = metrics.confusion_matrix(
    examples["label"], predicted, labels=range(CLASSES)
  )
  lines = (tmp_path / "a" / "test_confusion.csv").read_text().splitlines()
  matrix = [list(map(int, line.split(",")[1:])) for line in lines[1:]]
  np.testing.assert_array_equal(matrix, expected)
  lines = (tmp_path / "a" / "test_per_class.csv").read_text().splitlines()
  first = lines[1].split(",")
  assert first[0] == "class 0"
  assert [int(x) for x in first[1:3]] == [expected[0].sum(), expected[0, 0]]
