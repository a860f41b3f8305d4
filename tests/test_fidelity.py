# SPDX-License-Identifier: Apache-2.0
"""The fidelity page: stages agree with the authors', and spoilt ones do not."""

import jax
import numpy as np
import optax
import pytest
import tensorflow as tf
from scipy import stats
from test_resize import as_tensorflow_resizes

from benchmarks.fidelity import __main__ as page
from benchmarks.fidelity import authors, stages
from benchmarks.input import parity
from mixer.data import randaugment
from mixer.data.preprocess import CentralCrop, InceptionCrop
from mixer.models import base

pytestmark = pytest.mark.usefixtures("compiled_once")

DRAWS = 3000


def scaled(tree):
  return jax.tree.map(lambda x: 1.2 * x, tree)


SPOILT = [
  ("crops", InceptionCrop, "sample", lambda f, *a: (9, *f(*a)[1:])),
  ("pixels", stages, "decode", lambda f, data: f(data) ^ 1),
  ("operations", randaugment, "blend", lambda f, a, b, c: f(a, b, c + 0.1)),
  ("operations", randaugment, "either_sign", lambda f, value, rng: value),
  ("initial_values", jax, "device_get", lambda f, x: scaled(f(x))),
  ("schedules", optax, "linear_schedule", lambda f, a, b, n: f(a, b, n + 1)),
  ("updates", optax, "add_decayed_weights", lambda f, x, mask: f(x)),
  ("mixing", jax.random, "beta", lambda f, key, a, b: f(key, 2 * a, 2 * b)),
  ("mixing", stages, "add_partners", lambda f, x: f(scaled(x))),
  ("depth", base, "survival_probs", lambda f, rate, n: f(2 * rate, n)),
  ("evaluation", stages, "eval_batches", lambda f, *a, **k: [*f(*a, **k)][1:]),
  ("evaluation", CentralCrop, "__call__", lambda f, *a: f(*a)[::-1]),
]


@pytest.fixture(autouse=True)
def small(monkeypatch, digits_dir):
  monkeypatch.setenv("TFDS_DATA_DIR", digits_dir)
  monkeypatch.setattr(stages, "RECIPE", "configs/digits.py")


def test_all_stages_agree_on_a_page_of_one_file(monkeypatch, tmp_path):
  found = {}
  monkeypatch.setattr(page.curves, "record", lambda _, x: found.update(x))

  table = page.measure(DRAWS, tmp_path / "page.html", tmp_path)

  text = (tmp_path / "page.html").read_text()
  assert "DIFFERS" not in text + table
  assert all(found["stages"][name] and name in text for name in stages.STAGES)
  assert "<svg" in text and 'src="http' not in text and len(text) < 10**6


def test_the_definition_s_crops_are_those_of_tensorflow():
  ours = authors.boxes(375, 500, DRAWS, np.random.default_rng(0))

  theirs = parity.tensorflow_boxes(375, 500, draws=DRAWS)

  assert (stats.ks_2samp(ours, theirs).pvalue > 1e-3).all()


def test_recorded_pixels_are_tensorflow_s():
  recorded = np.load(stages.GOLDENS / "tensorflow_pixels.npz")
  jpeg = recorded["jpeg"].tobytes()
  equal = np.testing.assert_array_equal

  equal(recorded["decode"], tf.io.decode_image(jpeg))
  for box, crop in zip(
    recorded["boxes"], recorded["cut while decoding"], strict=True
  ):
    image = tf.image.decode_and_crop_jpeg(jpeg, box)
    equal(crop, as_tensorflow_resizes(image, 48, 48, "bilinear"))


@pytest.mark.parametrize("name, place, attribute, spoil", SPOILT)
def test_a_spoilt_stage_differs(monkeypatch, name, place, attribute, spoil):
  original = getattr(place, attribute)

  def spoilt(*arguments, **options):
    return spoil(original, *arguments, **options)

  monkeypatch.setattr(place, attribute, spoilt)

  rows = [x for x in getattr(stages, name)(DRAWS) if isinstance(x, dict)]

  failed = [row for row in rows if not row["agrees"]]
  assert failed
  assert min((row["p"] for row in failed if "p" in row), default=0) < 1e-6
