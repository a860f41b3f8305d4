# SPDX-License-Identifier: Apache-2.0
"""Few-shot linear regression, against scikit-learn's."""

import io

import jax
import numpy as np
import pytest
from layouts import write_tfds
from photographs import encoded
from sklearn.linear_model import Ridge
from small_models import golden

from mixer.config import default, evaluator
from mixer.data.decode import decode
from mixer.data.input_pipeline import eval_batches
from mixer.data.preprocess import parse
from mixer.data.sources import open_source
from mixer.data.workers import DEFAULT_WORKERS
from mixer.errors import UserError
from mixer.evaluators import EvalSetup
from mixer.evaluators.fewshot import Fewshot, linear_probe, sample_shots
from mixer.plan import make_plan
from mixer.training.sharding import replicate

MODEL, PARAMS, *_ = golden("Mixer")


def separable(rng, n, d, classes):
  """Features that say something of their classes, on scales of their own."""
  centres = np.random.RandomState(1).randn(classes, d)
  labels = np.concatenate([np.arange(classes), rng.randint(classes, size=n)])
  labels = labels[:n]
  scales = np.random.RandomState(2).uniform(0.01, 100, d)
  x = (centres[labels] + 2 * rng.randn(n, d)) * scales + 5
  return x.astype(np.float32), labels


def predict_by_ridge(x, y, x_test, classes, l2):
  """Returns scikit-learn's classes, in float64; the bias is a feature."""
  x = x.astype(np.float64)
  mean, std = x.mean(0), x.std(0) + 1e-5
  x, x_test = (
    np.c_[(part - mean) / std, np.full(len(part), 100.0)]
    for part in (x, x_test)
  )
  ridge = Ridge(alpha=l2, fit_intercept=False)
  ridge.fit(x, 2.0 * np.eye(classes)[y] - 1)
  return ridge.predict(x_test).argmax(1)


@pytest.mark.parametrize("n, d", [(60, 20), (20, 60), (30, 30), (31, 30)])
@pytest.mark.parametrize("l2", [1024.0, 0.5])
def test_predictions_are_scikit_learns(n, d, l2):
  """Cases have more examples than features, and fewer; bias is a feature."""
  rng, classes = np.random.RandomState(0), 5
  x, y = separable(rng, n, d, classes)
  x_test, y_test = separable(rng, 5000, d, classes)

  predictions = linear_probe(x, y, x_test, l2=l2)

  expected = predict_by_ridge(x, y, x_test, classes, l2)
  np.testing.assert_array_equal(predictions, expected)
  assert np.mean(predictions == y_test) > 1.3 / classes


def test_a_constant_feature_and_a_class_without_examples_do_no_harm():
  rng = np.random.RandomState(0)
  x, y = separable(rng, 40, 10, 4)
  x[:, 3] = 7.0

  predictions = linear_probe(x, y, x, num_classes=9)

  assert predictions.max() < 4
  assert np.mean(predictions == y) > 0.5


def test_fewer_shots_of_a_seed_are_the_first_of_more():
  labels = np.random.RandomState(0).randint(6, size=200)

  ten = sample_shots(labels, 6, 10, seed=1)
  five = sample_shots(labels, 6, 5, seed=1)

  np.testing.assert_array_equal(ten[:, :5], five)
  assert (labels[ten] == np.arange(6)[:, None]).all()
  assert all(len(set(row)) == 10 for row in ten.tolist())
  assert not np.array_equal(ten, sample_shots(labels, 6, 10, seed=2))


def test_the_draws_are_those_of_the_authors_code():
  """Fails if NumPy ever draws otherwise."""
  drawn = sample_shots(np.arange(40) % 4, 4, 3, seed=0)

  expected = [[16, 24, 8], [9, 37, 13], [22, 18, 38], [19, 23, 31]]
  assert drawn.tolist() == expected


def test_a_class_with_too_few_examples_is_named():
  labels = np.array([0] * 5 + [1] * 4 + [3] * 5)

  with pytest.raises(UserError, match=r"2 of 4 .* than 5 .*: 1 \(4\), 2 \(0\)"):
    sample_shots(labels, 4, 5, seed=0)


def image(i):
  """One of 10 grey levels under a good deal of noise."""
  noise = np.random.RandomState(i).randint(-60, 61, (32, 32, 3))
  pixels = np.clip(noise + 100 + 3 * (i % 10), 0, 255).astype(np.uint8)
  return io.BytesIO(encoded(pixels, "PNG"))


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("data"))
  write_tfds(
    folder,
    "cifar10",
    {"train": 160, "test": 70},
    fixed={"image": image, "label": lambda i: i % 10},
  )
  return folder


class Counting:
  """`eval_batches`, and which examples it was asked for."""

  def __init__(self, batch):
    self.batch = batch
    self.seen = []

  def __call__(self, source):
    for batch in eval_batches(source, parse("resize(32)"), batch=self.batch):
      self.seen += [source.locate(i) for i in np.flatnonzero(batch["mask"])]
      yield batch


def evaluate(folder, *, batch=16, devices=2, batches=None, **options):
  pool, test = (open_source("cifar10", s, folder) for s in ("train", "test"))
  some = jax.local_devices()[:devices]
  setup = EvalSetup(
    name="cifar",
    options=evaluator("fewshot", **options),
    source=test,
    pool=pool,
    batches=batches or Counting(batch),
    model=MODEL,
    loss="softmax",
    devices=some,
    workers=DEFAULT_WORKERS,
    folder=None,
  )
  return Fewshot(setup).run(replicate(PARAMS, some))


@pytest.fixture(scope="module")
def truth(cifar):
  """Accuracies of three draws by shots, by scikit-learn on one device."""

  def features(source):
    examples = source.read(range(len(source)))
    images = np.stack([decode(data) for data, _ in examples]) / 127.5 - 1
    _, out = MODEL.apply({"params": PARAMS}, images.astype(np.float32))
    return np.array(out["pre_logits"]), np.array([y for _, y in examples])

  pool, labels = features(open_source("cifar10", "train", cifar))
  test, expected = features(open_source("cifar10", "test", cifar))

  def accuracy(shots, seed):
    rows = sample_shots(labels, 10, shots, seed).ravel()
    classes = predict_by_ridge(pool[rows], labels[rows], test, 10, 1024.0)
    return np.mean(classes == expected)

  return [[accuracy(shots, seed) for seed in range(3)] for shots in (1, 5)]


@pytest.mark.parametrize("batch, devices", [(8, 8), (64, 1)])
def test_results_are_the_same_for_any_batch_and_devices(
  cifar, truth, batch, devices
):
  result = evaluate(cifar, batch=batch, devices=devices, shots=(1, 5))

  one, five = truth
  assert result == pytest.approx(
    {
      "1shot": np.mean(one),
      "1shot_std": np.std(one, ddof=1),
      "5shot": np.mean(five),
      "5shot_std": np.std(five, ddof=1),
    },
    abs=1e-9,
  )
  assert len(set(five)) > 1 and result["5shot"] > 0.2


def test_only_what_is_drawn_is_decoded(cifar):
  batches = Counting(16)

  result = evaluate(cifar, batches=batches, shots=(2,), draws=2)

  assert list(result) == ["2shot", "2shot_std"]
  of_pool = [place for place in batches.seen if "train" in place]
  labels = np.arange(160) % 10
  drawn = {i for seed in (0, 1) for i in sample_shots(labels, 10, 2, seed).flat}
  assert len(of_pool) == len(drawn) < 40
  assert len(batches.seen) == len(drawn) + 70


def plan_with(folder, **options):
  config = default()
  config.model.num_classes = 7  # has nothing to do with the ten of CIFAR-10
  config.data.data_dir = folder
  config.evals.cifar = evaluator(
    type="fewshot", name="cifar10", split="test", ops="resize(224)", **options
  )
  return make_plan(config, for_training=False, load_init=False)


def test_the_data_set_has_classes_of_its_own(cifar):
  plan = plan_with(cifar, pool_split="train[:50]")

  plan.complaints.raise_all()

  assert len(plan.data.evals["cifar"].pool) == 50
  assert len(plan.data.evals["cifar"].source) == 70


def test_a_pool_that_is_too_small_is_named(cifar):
  with pytest.raises(UserError, match="cifar10, split train: 10 of 10 classes"):
    evaluate(cifar, shots=(5, 17))


def test_a_missing_pool_is_reported_once_with_its_command(tmp_path):
  plan = plan_with(str(tmp_path))

  assert plan.data.evals["cifar"].source is None
  [missing] = plan.complaints.missing
  assert "python -m mixer data prepare cifar10" in missing
