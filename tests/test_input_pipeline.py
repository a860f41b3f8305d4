# SPDX-License-Identifier: Apache-2.0
"""A batch is a function of (seed, step), and evaluation counts each once."""

import dataclasses
import itertools
import threading

import cv2
import jax
import numpy as np
import pytest
from layouts import Damaged
from runs import wait_until
from sklearn.datasets import load_digits
from small_models import assert_same, split

from mixer.data import preprocess
from mixer.data.input_pipeline import BadImages, eval_batches, train_batches
from mixer.data.shuffle import IndexShuffler
from mixer.data.sources import Subset, open_source
from mixer.data.workers import Workers
from mixer.errors import UserError
from mixer.training.sharding import prefetch_to_device

SHIFT = preprocess.parse("pad(1) | random_crop(8)")
PLAIN = preprocess.parse("resize(8)")


@pytest.fixture(scope="module")
def train(digits_dir):
  return open_source("digits", "train", digits_dir)


@pytest.fixture(scope="module")
def few(digits_dir):
  return open_source("digits", "train[:10]", digits_dir)


def take(batches, number):
  taken = list(itertools.islice(batches, number))
  batches.close()  # stops its threads
  return taken


def join(parts):
  """Puts the batches of several hosts together to global ones."""
  return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def test_images_and_labels_are_those_of_the_order(train):
  digits = load_digits()
  ids = np.random.RandomState(0).permutation(1797)[:1437]
  ids = ids[IndexShuffler(1437, seed=7)(np.arange(32, 64))]

  batch = take(train_batches(train, PLAIN, batch=32, seed=7), 2)[1]

  assert batch["image"].shape == (32, 8, 8, 3)
  types = {key: values.dtype for key, values in batch.items()}
  assert types == {"image": "u1", "label": "i4", "position": "i8"}
  assert batch["position"].tolist() == list(range(32, 64))
  np.testing.assert_array_equal(batch["label"], digits.target[ids])
  pixels = np.round(255 * digits.images[ids] / 16)
  np.testing.assert_array_equal(batch["image"][..., 0], pixels)


def test_repeated_examples_are_augmented_differently(train):
  options = dict(batch=12, seed=7, repeats=3)
  [first, batch] = take(train_batches(train, SHIFT, **options), 2)
  halves = [
    take(train_batches(train, SHIFT, host=h, hosts=2, **options), 2)
    for h in (0, 1)
  ]

  labels = batch["label"].reshape(3, 4)
  assert (labels == labels[0]).all() and len(set(labels[0])) > 1
  copies = batch["image"].reshape(3, 4, -1)
  assert all(len(np.unique(copies[:, i], axis=0)) > 1 for i in range(4))
  assert_same([first, batch], join(halves))


def test_batches_straddle_epochs(few):
  batches = take(train_batches(few, PLAIN, batch=4, seed=1), 5)

  positions = np.concatenate([batch["position"] for batch in batches])
  labels = np.concatenate([batch["label"] for batch in batches])
  everything = [label for _, label in few.read(range(10))]
  assert positions.tolist() == list(range(20))
  assert sorted(labels[:10]) == sorted(labels[10:]) == sorted(everything)


def test_hosts_together_see_what_one_sees(train):
  alone = take(train_batches(train, SHIFT, batch=80, seed=5), 3)

  parts = [
    take(train_batches(train, SHIFT, batch=80, seed=5, host=host, hosts=4), 3)
    for host in range(4)
  ]

  assert parts[0][0]["label"].shape == (20,)
  assert_same(join(parts), alone)


def test_threads_change_nothing(train):
  options = dict(batch=80, seed=5)
  alone = take(train_batches(train, SHIFT, **options, workers=Workers(1)), 4)

  ahead = train_batches(train, SHIFT, **options, workers=Workers(4))

  assert_same(take(ahead, 4), alone)


def test_any_step_is_reached_at_once(train):
  alone = take(train_batches(train, SHIFT, batch=80, seed=5), 10)

  late = take(train_batches(train, SHIFT, batch=80, seed=5, start_step=7), 3)
  far = train_batches(train, SHIFT, batch=64, seed=5, start_step=10**8)

  assert_same(late, alone[7:])
  assert take(far, 1)[0]["position"][0] == 64 * 10**8


def test_augmentation_differs_by_position_and_by_seed(few):
  one = dataclasses.replace(few, records=[few.records[0]])
  seeds = [
    take(train_batches(one, SHIFT, batch=32, seed=seed), 1)[0]["image"]
    for seed in range(2)
  ]

  assert len(np.unique(seeds[0], axis=0)) > 5
  assert (seeds[0] != seeds[1]).any()


@pytest.mark.parametrize(
  "batch, hosts", [(100, 1), (1437, 1), (48, 4), (2000, 4)]
)
def test_evaluation_counts_every_example_once(train, batch, hosts):
  parts = [
    list(eval_batches(train, PLAIN, batch=batch, host=host, hosts=hosts))
    for host in range(hosts)
  ]

  assert len({len(part) for part in parts}) == 1
  joined = join(parts)
  assert {step["image"].shape for step in joined} == {(batch, 8, 8, 3)}
  mask = np.concatenate([step["mask"] for step in joined])
  positions = np.concatenate([step["position"] for step in joined])[mask]
  labels = np.concatenate([step["label"] for step in joined])[mask]
  assert positions.tolist() == list(range(1437))
  assert labels.tolist() == [label for _, label in train.read(range(1437))]


@pytest.fixture
def damaged(few):
  return Damaged(few.name, few.split, few.class_names, few, bad=(2, 7))


FLAT = cv2.imencode(".png", np.zeros((1, 9, 3), np.uint8))[1].tobytes()
CUT = preprocess.parse("random_crop(8)")


def test_an_image_that_the_ops_fail_on_is_treated_as_a_broken_one(damaged):
  flat = dataclasses.replace(damaged, image=FLAT)
  with pytest.raises(
    UserError, match=r"Example 7 .*\(record 7\).*8 x 8.*1 x 9"
  ):
    next(train_batches(flat, CUT, batch=10, seed=0))
  bad_images = BadImages()
  options = {"batch": 20, "bad_images": bad_images}

  [batch] = take(train_batches(flat, CUT, seed=0, **options), 1)
  [whole] = eval_batches(flat, CUT, **options)

  [same] = take(train_batches(damaged, PLAIN, seed=0, **options), 1)
  np.testing.assert_array_equal(batch["image"], same["image"])
  assert whole["mask"].nonzero()[0].tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
  assert "example 7 (record 7)" in bad_images.report()


def test_an_image_of_too_many_pixels_is_treated_as_a_broken_one(damaged):
  large = dataclasses.replace(damaged, image=FLAT, max_pixels=8)

  for source in large, Subset.of(large, np.arange(10)):
    with pytest.raises(UserError, match="Example .* more than 8.*replace"):
      next(train_batches(source, PLAIN, batch=10, seed=0))


def test_a_broken_image_is_named(damaged):
  # The order begins with 6, 1, 0, 5, 3, 8, 7.
  named = r"Example 7 of digits, split train\[:10\] \(record 7\): .*replace"
  with pytest.raises(UserError, match=named):
    next(train_batches(damaged, PLAIN, batch=10, seed=0))


def test_processes_change_nothing_and_name_a_broken_image(train):
  bad = IndexShuffler(1437, seed=5)(np.array([170]))
  damaged = Damaged(train.name, train.split, train.class_names, train, bad)
  options = dict(batch=80, seed=5)
  alone = take(train_batches(train, SHIFT, **options), 2)

  batches = train_batches(
    damaged, SHIFT, **options, workers=Workers(2, "process")
  )

  assert_same([next(batches), next(batches)], alone)
  with pytest.raises(UserError, match=f"Example {bad[0]} of digits"):
    next(batches)


def test_a_broken_image_is_replaced_by_the_next_of_the_order(few, damaged):
  ids = IndexShuffler(10, seed=0)(np.arange(100))
  bad_images = BadImages()
  batches = train_batches(
    damaged,
    PLAIN,
    batch=30,
    seed=0,
    workers=Workers(1, "process"),  # which have to tell what they replaced
    bad_images=bad_images,
  )

  labels = np.concatenate([batch["label"] for batch in take(batches, 2)])

  expected = [
    next(i for i in ids[position:] if i not in damaged.bad)
    for position in range(60)
  ]
  all_labels = np.array([label for _, label in few.read(range(10))])
  assert labels.tolist() == all_labels[expected].tolist()
  report = bad_images.report()
  assert "2 images of digits, split train[:10]" in report
  assert "came up 12 times" in report
  assert "example 2 (record 2)" in report and "example 7 (record 7)" in report


def test_a_report_shows_ten_examples_and_counts_the_rest(damaged, monkeypatch):
  bad_images = BadImages()
  assert bad_images.report() == ""

  monkeypatch.setattr(Damaged, "locate", lambda self, i: "\x1b[2J\n")
  for i in range(13):
    bad_images.add(damaged, i)

  lines = bad_images.report().splitlines()
  assert lines[1] == r"  example 0 (\x1b[2J\n)"
  assert lines[-1] == "  and 3 more"
  assert len(lines) == 12


def test_a_data_set_of_broken_images_is_refused(damaged):
  hopeless = dataclasses.replace(damaged, bad=tuple(range(10)))

  with pytest.raises(UserError, match="100 images in a row of digits"):
    next(
      train_batches(hopeless, PLAIN, batch=8, seed=0, bad_images=BadImages())
    )


def test_closing_and_forgetting_stop_the_threads(train):
  def grain_threads():
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("grain-prefetch")]

  closed = train_batches(train, PLAIN, batch=32, seed=0, workers=Workers(3))
  next(closed)
  forgotten = prefetch_to_device(
    train_batches(train, PLAIN, batch=32, seed=0, workers=Workers(3)),
    jax.local_devices(),
  )
  next(forgotten)
  assert grain_threads()

  closed.close()
  del forgotten

  wait_until(lambda: not grain_threads())


def test_devices_get_rows_in_the_order_of_the_batch(train):
  devices = jax.local_devices()[:4]
  step = jax.pmap(lambda image: image, axis_name="batch", devices=devices)
  host = take(train_batches(train, SHIFT, batch=32, seed=2), 3)

  fed = take(
    prefetch_to_device(train_batches(train, SHIFT, batch=32, seed=2), devices),
    3,
  )

  rows = [split(batch, devices=4) for batch in host]
  jax.tree.map(np.testing.assert_array_equal, fed, rows)
  # A copy between devices would be an error here.
  with jax.transfer_guard("disallow"):
    out = step(fed[0]["image"])
  assert fed[0]["image"].sharding.is_equivalent_to(out.sharding, 5)


def test_batches_are_fed_ahead_and_a_short_end_is_not_lost():
  drawn = []

  def batches():
    for i in range(5):
      drawn.append(i)
      yield {"i": np.full(8, i)}

  fed = prefetch_to_device(batches(), jax.local_devices(), depth=2)
  first = next(fed)

  assert drawn == [0, 1, 2]
  seen = [int(batch["i"][0, 0]) for batch in itertools.chain([first], fed)]
  assert seen == [0, 1, 2, 3, 4]
