# SPDX-License-Identifier: Apache-2.0
"""Data sets on disk: preparing, opening, and messages about missing ones."""

import shutil

import numpy as np
import pytest
from layouts import write_tfds
from sklearn.datasets import load_digits

from mixer.data.decode import decode
from mixer.data.sources import open_source, tfds
from mixer.errors import DatasetNotFoundError, UserError
from mixer.tools.data import main


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
  folder = tmp_path_factory.mktemp("miniatures")
  write_tfds(folder, "imagenet2012", {"train": 40, "validation": 6})
  write_tfds(folder, "imagenet21k", {"full": 25})
  write_tfds(folder, "cifar10", {"train": 8, "test": 4})
  write_tfds(folder, "oxford_iiit_pet", {"train": 5, "test": 3})
  write_tfds(folder, "oxford_flowers102", {"train": 5, "validation": 4})
  write_tfds(folder, "imagenet_v2", {"test": 3})
  return str(folder)


def read_images(source):
  examples = source.read(range(len(source)))
  images = np.stack([decode(image) for image, _ in examples])
  return images, np.array([label for _, label in examples])


def test_digits_are_those_of_scikit_learn_bit_for_bit(digits_dir):
  digits = load_digits()
  order = np.random.RandomState(0).permutation(1797)
  expected = np.round(255 * digits.images / 16)

  train = read_images(open_source("digits", "train", digits_dir))
  test = read_images(open_source("digits", "test", digits_dir))

  assert (len(train[1]), len(test[1])) == (1437, 360)
  for (images, labels), ids in (train, order[:1437]), (test, order[1437:]):
    for channel in range(3):
      np.testing.assert_array_equal(images[..., channel], expected[ids])
    np.testing.assert_array_equal(labels, digits.target[ids])


@pytest.mark.parametrize(
  "name, split, examples, classes",
  [
    ("imagenet2012", "train[:90%]", 36, 1000),
    ("imagenet2012", "train+validation", 46, 1000),
    ("imagenet2012:5.1.0", "validation", 6, 1000),
    ("imagenet21k", "full[20:]", 5, 21843),
    ("cifar10", "test", 4, 10),
    ("oxford_iiit_pet", "test", 3, 37),
    ("oxford_flowers102", "train+validation", 9, 102),
    ("imagenet_v2", "test", 3, 1000),
    ("imagenet_v2/matched-frequency", "test", 3, 1000),
  ],
)
def test_the_official_layouts_can_be_read(
  miniatures, name, split, examples, classes
):
  source = open_source(name, split, miniatures)
  images, labels = read_images(source)

  assert len(source) == examples
  assert source.num_classes == len(source.class_names) == classes
  assert images.shape == (examples, 32, 32, 3)
  assert labels.max() < classes


def test_class_names_are_those_of_the_data_set(miniatures):
  flowers = open_source("oxford_flowers102", "train", miniatures)
  unnamed = open_source("cifar10", "train", miniatures)

  assert flowers.class_names[0] == "pink primrose"
  assert unnamed.class_names[9] == "9"


def test_the_folder_of_data_sets_comes_from_the_environment(
  digits_dir, monkeypatch
):
  monkeypatch.setenv("TFDS_DATA_DIR", digits_dir)

  assert len(open_source("digits", "test")) == 360


@pytest.mark.parametrize(
  "name, words",
  [
    ("cifar10", "in {dir}/cifar10.*prepare cifar10 --data_dir={dir}"),
    ("imagenet2012", "{dir}/downloads/manual .*img_val.tar.*prepare imagenet2"),
    ("imagenet21k", "{dir}/downloads/manual .*fall11_whole.tar"),
  ],
)
def test_an_unprepared_data_set_says_where_and_how(tmp_path, name, words):
  with pytest.raises(DatasetNotFoundError, match=words.format(dir=tmp_path)):
    open_source(name, "train", str(tmp_path))


def test_an_unknown_data_set_shows_its_neighbours(tmp_path):
  with pytest.raises(UserError, match="nearest names are.* imagenette"):
    open_source("imagnet", "train", str(tmp_path))
  with pytest.raises(UserError, match="nearest names are digits"):
    open_source("digts", "train", str(tmp_path))


@pytest.mark.parametrize(
  "split, words",
  [
    *(
      (split, r"train \(1437\), test \(360\)")
      for split in ("val", "train[", "all[:5]", "train[:2000]")
    ),
    ("train[:0]", "holds no examples"),
  ],
)
def test_a_wrong_or_empty_split_is_refused(digits_dir, split, words):
  with pytest.raises(UserError, match=words):
    open_source("digits", split, digits_dir)


def test_a_wrong_feature_shows_the_features_there_are(digits_dir):
  with pytest.raises(UserError, match="no feature 'real_label'.*image, label"):
    open_source("digits", "test", digits_dir, label_key="real_label")
  with pytest.raises(UserError, match="'image' of digits is not one class"):
    open_source("digits", "test", digits_dir, label_key="image")
  with pytest.raises(UserError, match="no feature 'label' that is"):
    open_source("digits", "test", digits_dir, image_key="label")


def test_what_is_prepared_already_is_left_and_described(tmp_path, capsys):
  write_tfds(tmp_path, "cifar10", {"train": 8, "test": 4}, 32, "tfrecord")
  before = sorted(tmp_path.rglob("*"))

  assert main(["prepare", "cifar10", f"--data_dir={tmp_path}"]) == 0

  out = capsys.readouterr().out
  assert "already prepared" in out
  assert "train: 8 examples" in out and "test: 4 examples" in out
  assert sorted(tmp_path.rglob("*")) == before

  [info] = tmp_path.rglob("dataset_info.json")
  info.write_text("{")
  assert main(["prepare", "cifar10", f"--data_dir={tmp_path}"]) == 2
  assert f"{info.parent} " in capsys.readouterr().err


def test_the_newest_version_is_taken_unless_one_is_named(tmp_path):
  for version in "3.0.2", "3.0.10", "2.1.0":
    (tmp_path / "cats" / version).mkdir(parents=True)
    (tmp_path / "cats" / version / "dataset_info.json").write_text("{}")

  newest = tfds.find_prepared("cats", str(tmp_path))
  named = tfds.find_prepared("cats:2.1.0", str(tmp_path))

  assert newest.name == "3.0.10"
  assert named.name == "2.1.0"
  assert tfds.find_prepared("cats:1.0.0", str(tmp_path)) is None


def test_damaged_record_files_are_said_with_the_way_out(tmp_path):
  write_tfds(tmp_path, "cifar10", {"train": 4})
  [file] = tmp_path.glob("cifar10/*/*train*array_record*")
  file.write_bytes(file.read_bytes()[:100])

  with pytest.raises(UserError, match=f"{file}, record 2 .*missing or damaged"):
    open_source("cifar10", "train", str(tmp_path)).read([2])


@pytest.mark.parametrize(
  "name", ["", ".", "../x", "/data/cifar10", "a/b/c", "a/", ":1.0.0", "a:b/c"]
)
def test_what_is_no_name_of_a_data_set_is_refused(tmp_path, name):
  with pytest.raises(UserError, match="is not the name.*folder:DIR"):
    open_source(name, "train", str(tmp_path))


def test_leftovers_next_to_a_whole_version_are_ignored(digits_dir, tmp_path):
  whole = tmp_path / "digits/all/1.0.0"
  leftovers = "incomplete.A1B2C3_1.0.0", "1.0.0.incompleteA1B2C3", "2.0.0.bak"
  for name in leftovers:
    (tmp_path / "digits/all" / name).mkdir(parents=True)
    (tmp_path / "digits/all" / name / "dataset_info.json").write_text("{}")
  (tmp_path / "digits/all/2.0.0").mkdir()
  (tmp_path / "digits/.DS_Store").touch()
  assert tfds.find_prepared("digits", str(tmp_path)) is None

  shutil.copytree(tfds.find_prepared("digits/all", digits_dir), whole)

  assert tfds.find_prepared("digits", str(tmp_path)) == whole


@pytest.mark.parametrize("content", ["", "{}"])
def test_without_a_default_in_the_metadata_configs_are_listed(
  digits_dir, tmp_path, content
):
  version = tfds.find_prepared("digits/all", str(digits_dir))
  metadata = tmp_path / "digits/.config/metadata.json"
  metadata.parent.mkdir(parents=True)
  metadata.write_text(content)

  shutil.copytree(version, tmp_path / "digits/5to9/1.0.0")
  assert len(open_source("digits", "test", str(tmp_path))) == 360
  shutil.copytree(version, tmp_path / "digits/all/1.0.0")
  with pytest.raises(UserError, match="one of: digits/5to9, digits/all"):
    open_source("digits", "test", str(tmp_path))


@pytest.mark.parametrize("names", ["a\nb\n", "a\n" * 12])
def test_a_wrong_number_of_class_names_is_reported(digits_dir, tmp_path, names):
  shutil.copytree(digits_dir, tmp_path, dirs_exist_ok=True)
  for file in tmp_path.glob("digits/all/*/label.labels.txt"):
    file.write_text(names)

  words = f"label.labels.txt of digits names {len(names) // 2} .*json.* 10:"
  with pytest.raises(UserError, match=words):
    open_source("digits", "train", str(tmp_path))


@pytest.mark.parametrize("url", ["file:///data", "s3://bucket/data"])
@pytest.mark.parametrize("name", ["digits", "folder:{}"])
def test_other_storage_is_refused_with_what_is_supported(name, url):
  with pytest.raises(UserError, match=f"{url}: a folder is local.*gs://"):
    open_source(name.format(url), "train", url)
