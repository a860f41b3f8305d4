# SPDX-License-Identifier: Apache-2.0
"""Labels by a rule, against another reading of VTAB's definitions."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from layouts import write_tfds

from mixer.data import labels
from mixer.data.input_pipeline import eval_batches, read_labels, train_batches
from mixer.data.preprocess import parse
from mixer.data.sources import Subset, open_source
from mixer.errors import UserError

EXAMPLES = 40


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("data"))
  for name in ("clevr", "kitti", "dsprites", "imagenet2012_real"):
    write_tfds(folder, name, {"train": EXAMPLES})
  return folder


def decoded(folder, name):
  """The examples as TFDS itself reads them."""
  builder = tfds.builder(name, data_dir=folder)
  return list(builder.as_data_source(split="train"))


def largest_below(value, thresholds):
  """The last threshold that a value lies above."""
  return max(i for i, x in enumerate(thresholds) if np.float32(x) < value)


def clevr_distance(example):
  nearest = min(x[2] for x in example["objects"]["pixel_coords"])
  return largest_below(nearest, [0, 8, 8.5, 9, 9.5, 10, 100])


def kitti_distance(example):
  objects = example["objects"]
  vehicles = [
    z[2]
    for kind, z in zip(objects["type"], objects["location"], strict=True)
    if kind < 3
  ]
  return largest_below(min([1000, *vehicles]), [-100, 8, 20, 999])


EXPECTED = {
  ("clevr", "clevr_count"): lambda x: len(x["objects"]["size"]) - 3,
  ("clevr", "clevr_distance"): clevr_distance,
  ("kitti", "kitti_distance"): kitti_distance,
  ("dsprites", "dsprites_x_position"): lambda x: x["label_x_position"] // 2,
  ("dsprites", "dsprites_orientation"): lambda x: int(
    np.floor(np.float32(x["label_orientation"]) / np.float32(2.5))
  ),
}


@pytest.mark.parametrize("name, key", EXPECTED)
def test_a_rule_agrees_with_the_benchmarks_definition(miniatures, name, key):
  expected = [EXPECTED[name, key](x) for x in decoded(miniatures, name)]

  source = open_source(name, "train", miniatures, label_key=key)

  assert [x for _, x in source.read(range(EXAMPLES))] == expected
  assert len(set(expected)) > 2


def test_every_rule_is_compared_above():
  assert {key for _, key in EXPECTED} == set(labels.RULES)


def features(values):
  """Returns the features of a tf.train.Example."""
  from tensorflow_datasets.proto import tf_example_pb2

  example = tf_example_pb2.Example()
  for key, numbers in values.items():
    feature = example.features.feature[key]
    whole = all(isinstance(x, int) for x in numbers)
    (feature.int64_list if whole else feature.float_list).value.extend(numbers)
  return example.features.feature


def near(*distances):
  """Coordinates of objects whose third one is their distance."""
  return [x for distance in distances for x in (1.0, 1.0, distance)]


@pytest.mark.parametrize(
  "rule, values, label",
  [
    # A distance on a border counts as nearer.
    ("clevr_distance", {"objects/pixel_coords": near(0.1, 50.0)}, 0),
    ("clevr_distance", {"objects/pixel_coords": near(8.0, 50.0)}, 0),
    ("clevr_distance", {"objects/pixel_coords": near(8.01, 50.0)}, 1),
    ("clevr_distance", {"objects/pixel_coords": near(10.0, 50.0)}, 4),
    ("clevr_distance", {"objects/pixel_coords": near(50.0, 10.5)}, 5),
    ("dsprites_orientation", {"label_orientation": [2]}, 0),
    ("dsprites_orientation", {"label_orientation": [3]}, 1),
    ("dsprites_orientation", {"label_orientation": [5]}, 2),
    ("dsprites_orientation", {"label_orientation": [39]}, 15),
    # Only vehicles count, and none is a class of its own.
    ("kitti_distance", {"objects/type": [], "objects/location": []}, 3),
    ("kitti_distance", {"objects/type": [3, 5]}, 3),
    ("kitti_distance", {"objects/type": [3, 0]}, 1),
    ("kitti_distance", {"objects/type": [2, 3]}, 0),
    ("kitti_distance", {"objects/type": [1, 2]}, 0),
  ],
)
def test_a_rule_on_the_borders_of_its_classes(rule, values, label):
  values = {"objects/location": near(5.0, 20.0)} | values

  assert labels.RULES[rule].read(features(values)) == label


def test_the_classes_of_distances_have_names():
  names = "up to 8 m", "8 to 20 m", "above 20 m", "no vehicle"

  assert labels.RULES["kitti_distance"].class_names == names


def test_a_scene_without_objects_has_no_label(tmp_path):
  """CLEVR's own test split has such scenes."""
  empty = {"objects": lambda i: []}
  write_tfds(tmp_path, "clevr", {"test": 2}, fixed=empty)

  for key in ("clevr_count", "clevr_distance"):
    source = open_source("clevr", "test", str(tmp_path), label_key=key)
    with pytest.raises(UserError, match="record 1.*take another split"):
      source.read([1])


def test_an_unknown_label_is_named_with_the_nearest(miniatures):
  with pytest.raises(UserError) as error:
    open_source("clevr", "train", miniatures, label_key="clevr_cuont")

  assert "but 'clevr_count'" in str(error.value)
  assert "Labels by a rule: clevr_count, clevr_distance." in str(error.value)
  with pytest.raises(UserError, match="'objects' of clevr is not one class"):
    open_source("clevr", "train", miniatures, label_key="objects")
  with pytest.raises(UserError, match="kitti has no feature 'clevr_count'"):
    open_source("kitti", "train", miniatures, label_key="clevr_count")


def test_several_labels_travel_as_rows_of_0_and_1(miniatures):
  source = open_source(
    "imagenet2012_real", "train", miniatures, label_key="real_label"
  )
  examples = decoded(miniatures, "imagenet2012_real")
  expected = [np.isin(range(1000), x["real_label"]) for x in examples]
  ops = parse("resize(8)")

  # 48 places, of which a whole chunk has no example.
  batches = list(eval_batches(source, ops, batch=32))
  rows = np.concatenate([batch["label"] for batch in batches])
  mask = np.concatenate([batch["mask"] for batch in batches])

  np.testing.assert_array_equal(rows[mask], expected)
  assert rows.shape == (64, 1000)
  assert rows.dtype == np.int32 and not rows[~mask].any()
  batch = next(train_batches(source, ops, batch=4, seed=0))
  assert batch["label"].shape == (4, 1000)


def test_a_part_of_a_source_reads_the_examples_it_names(miniatures):
  source = open_source("dsprites", "train", miniatures, label_key="label_shape")
  part = Subset.of(source, np.array([7, 3, 30]))

  assert part.read([2, 0]) == source.read([30, 7])
  assert part.locate(1) == source.locate(3)
  assert len(part) == 3 and part.num_classes == source.num_classes
  [batch] = eval_batches(part, parse("resize(8)"), batch=4)
  assert batch["mask"].tolist() == [True] * 3 + [False]
  assert batch["label"][:3].tolist() == [x for _, x in source.read([7, 3, 30])]


def test_all_labels_are_read_without_an_image(miniatures):
  source = open_source("dsprites", "train", miniatures, label_key="label_shape")

  read = read_labels(source)

  assert read.dtype == np.int32
  assert read.tolist() == [x for _, x in source.read(range(EXAMPLES))]
