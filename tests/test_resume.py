# SPDX-License-Identifier: Apache-2.0
"""Runs that resume on other devices and hosts."""

import shutil
import zlib

import numpy as np
import pytest
from runs import ROOT

from benchmarks import resume
from benchmarks.resume import CHANGES, SAVED, STEPS, Place, Run, compare
from mixer.data import preprocess
from mixer.data.decode import decode
from mixer.data.shuffle import augmentation_rng
from mixer.plan import make_plan
from mixer.tools.paper.protocols import load_recipe

ONE, MANY = Place(1, 1), Place(8, 2, accumulation=2)
TRANSITIONS = [(ONE, ONE), (MANY, ONE), (ONE, MANY)]


@pytest.fixture(scope="module")
def measured(digits_dir, environment, tmp_path_factory):
  """The folder of all runs, and the result of each transition."""
  folder = tmp_path_factory.mktemp("resume")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(ROOT)
    for name, value in environment.items():
      patch.setenv(name, value)
    patch.setenv("TFDS_DATA_DIR", digits_dir)
    return folder, resume.measure(folder, TRANSITIONS)


def test_a_run_goes_on_to_the_bit_and_elsewhere_within_rounding(measured):
  _, results = measured

  changes = [each["largest_change"] for each in results]
  assert [each["holds"] for each in results] == [True] * 3, results
  assert changes[0] == 0.0
  assert max(changes) < 1e-5


def test_two_hosts_train_as_one(measured):
  folder, _ = measured
  one, two = (
    Run(folder / f"{place}", place).metrics() for place in (ONE, MANY)
  )

  for ours, theirs in zip(one, two, strict=True):
    assert ours == pytest.approx(theirs, rel=2e-4)


def test_a_resumed_run_has_the_images_of_numpys_order(measured, digits_dir):
  folder, _ = measured
  config = load_recipe("configs/digits.py")
  config.update_from_flattened_dict(CHANGES | {"data.data_dir": digits_dir})
  source = make_plan(config, devices=1).data.source
  ops = preprocess.parse(config.data.ops)
  bits = [np.random.MT19937(np.random.SeedSequence([0, e])) for e in range(2)]
  order = [*map(lambda x: np.random.RandomState(x).permutation(100), bits)]
  positions = range(16 * SAVED, 16 * STEPS)
  examples = source.read(np.concatenate(order)[positions])

  expected = [
    zlib.crc32(ops(decode(data), augmentation_rng(0, i)).tobytes())
    for i, (data, _) in zip(positions, examples, strict=True)
  ]

  resumed = Run(folder / f"{ONE} to {MANY}", MANY)
  assert sum(resumed.images(), []) == expected


@pytest.mark.parametrize(
  "file, old, new",
  [
    ("metrics.jsonl", b'"train/loss": 2', b'"train/loss": 3'),
    ("images_0.jsonl", b"[", b"[1"),
    ("weights.npz", b"PK", b"KP"),
  ],
)
def test_a_difference_in_the_same_place_is_found(
  measured, tmp_path, file, old, new
):
  folder, _ = measured
  whole = Run(folder / f"{ONE}", ONE)
  shutil.copytree(folder / f"{ONE} to {ONE}", tmp_path / "other")
  run = Run(tmp_path / "other", ONE, whole.folder)
  assert compare(run, whole, whole.images())["holds"]

  path = run.folder / file
  path.write_bytes(path.read_bytes().replace(old, new, 1))

  assert not compare(run, whole, whole.images())["holds"]
