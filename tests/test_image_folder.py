# SPDX-License-Identifier: Apache-2.0
"""Images in folders: splits, classes, and messages about wrong layouts."""

import hashlib
import os
import pickle
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from photographs import encoded

from mixer.data.decode import decode
from mixer.data.sources import open_source
from mixer.errors import DatasetNotFoundError, UserError

CLASSES = ("ant", "bee", "cat")


def write(path, value=0, kind="PNG"):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = np.full((4, 4, 3), value, np.uint8)
  path.write_bytes(encoded(image, kind))


@pytest.fixture
def tree(tmp_path):
  """train with 20 images a class, test with 5; each its own grey value."""
  for split, number in ("train", 20), ("test", 5):
    for label, name in enumerate(CLASSES):
      for i in range(number):
        write(tmp_path / "pets" / split / name / f"{i}.png", 25 * label + i)
  return tmp_path / "pets"


def open_folder(folder, split="train", **options):
  return open_source(f"folder:{folder}", split, **options)


def paths(source):
  return [source.locate(i) for i in range(len(source))]


def refused(folder, split="train", **options):
  """Returns the message about a folder that cannot be opened."""
  with pytest.raises(UserError) as caught:
    open_folder(folder, split, **options)
  return str(caught.value)


def test_images_and_labels_are_those_of_the_folders(tree):
  source = open_folder(tree)

  examples = source.read(range(60))

  assert (len(source), source.class_names) == (60, CLASSES)
  for i, (image, label) in enumerate(examples):
    path = Path(source.locate(i))
    assert path.parent == tree / "train" / CLASSES[label]
    assert image == path.read_bytes()
    assert (decode(image) == 25 * label + int(path.stem)).all()
  assert len(set(paths(source))) == 60
  assert len(open_folder(tree, "test")) == 15


def test_the_order_is_that_of_a_hash_of_class_and_file(tree):
  def key(path):
    relative = os.path.relpath(path, tree / "train").encode()
    return hashlib.blake2b(relative, digest_size=8).digest()

  expected = sorted(map(str, tree.glob("train/*/*")), key=key)

  assert paths(open_folder(tree)) == expected
  moved = shutil.move(tree, tree.parent / "elsewhere")
  assert [
    path.replace(str(moved), str(tree)) for path in paths(open_folder(moved))
  ] == expected


def test_parts_of_a_split_are_a_random_sample(tree):
  whole = paths(open_folder(tree))

  first = paths(open_folder(tree, "train[:50%]"))
  second = paths(open_folder(tree, "train[50%:]"))

  assert first + second == whole
  for part in first, second:
    assert {Path(path).parent.name for path in part} == {*CLASSES}


@pytest.mark.parametrize(
  "split, begin, end",
  [
    ("train[10:]", 10, 60),
    ("train[5:-5]", 5, 55),
    ("train[:99%]", 0, 59),
    ("train[0shard]", 0, 60),
  ],
)
def test_the_split_syntax_is_that_of_tfds(tree, split, begin, end):
  whole = paths(open_folder(tree))

  assert paths(open_folder(tree, split)) == whole[begin:end]


def test_splits_can_be_added(tree):
  source = open_folder(tree, "train[:10]+test+train[55:]")

  train, test = paths(open_folder(tree)), paths(open_folder(tree, "test"))
  assert paths(source) == train[:10] + test + train[55:]
  assert paths(open_folder(tree, "all")) == test + train
  [(image, label)] = source.read([12])
  assert image == Path(test[2]).read_bytes()
  assert Path(test[2]).parent.name == CLASSES[label]


def test_class_folders_alone_are_one_split(tree):
  source = open_folder(tree / "train")

  assert paths(source) == paths(open_folder(tree))
  assert "train (60)" in refused(tree / "train", "test")


def test_without_train_classes_are_those_of_all_splits(tree):
  write(tree / "test" / "dog" / "1.png")
  assert open_folder(tree).class_names == CLASSES

  (tree / "train").rename(tree / "day")

  assert open_folder(tree, "day").class_names == (*CLASSES, "dog")


def test_a_file_gives_the_order_of_the_classes(tree):
  file = tree.parent / "classes.txt"
  file.write_text("cat\n\nant \n\n  bee\nzebra\n", encoding="utf-8-sig")

  source = open_folder(tree, classes=str(file))

  assert source.class_names == ("cat", "ant", "bee", "zebra")
  for i, (_, label) in enumerate(source.read(range(60))):
    assert Path(source.locate(i)).parent.name == source.class_names[label]


@pytest.mark.parametrize(
  "content, said",
  [
    ("ant\nbees\n", "not in .*classes.txt: bee, cat.*nearest.*: bees"),
    ("ant\nbee\ncat\nbee\n", "more than once: bee"),
    (None, "Cannot read the classes.*classes.txt"),
  ],
)
def test_a_file_of_classes_that_does_not_fit_is_refused(tree, content, said):
  file = tree.parent / "classes.txt"
  if content:
    file.write_text(content)

  with pytest.raises(UserError, match=said):
    open_folder(tree, classes=str(file))


def test_kinds_of_images_are_known_by_suffix_in_any_case(tmp_path):
  kinds = {"JPG": "JPEG", "jpeg": "JPEG", "png": "PNG", "WebP": "WEBP"}
  kinds |= {"bmp": "BMP", "tif": "TIFF", "TIFF": "TIFF", "gif": "GIF"}
  for suffix, kind in kinds.items():
    write(tmp_path / suffix / f"1.{suffix}", 7, kind)
  for name in ".hidden.png", "Thumbs.db", ".DS_Store", "notes.txt", "x.npy":
    (tmp_path / "png" / name).write_bytes(b"x")
  (tmp_path / ".git").mkdir()
  (tmp_path / "README.md").write_text("Mine.")

  source = open_folder(tmp_path)

  assert len(source) == len(kinds)
  assert source.class_names == tuple(sorted(kinds))


def test_a_source_is_small_when_sent_to_another_process(tmp_path):
  for name in "ab":
    write(tmp_path / name / "0.png")
    for i in range(1, 2000):
      os.link(tmp_path / name / "0.png", tmp_path / name / f"{i:011}.png")
  source = open_folder(tmp_path)

  sent = pickle.dumps(source)

  assert len(sent) < 4000 * (15 + 4) + 2000
  assert paths(pickle.loads(sent)) == paths(source)


def test_the_home_folder_may_be_short(tree, monkeypatch):
  monkeypatch.setenv("HOME", str(tree.parent))

  assert paths(open_folder("~/pets")) == paths(open_folder(tree))


def test_a_missing_folder_shows_its_neighbours(tree):
  with pytest.raises(
    DatasetNotFoundError, match="no folder .*pest. In .* there is pets"
  ):
    open_folder(tree.parent / "pest")
  with pytest.raises(DatasetNotFoundError, match="nor .* /nowhere"):
    open_folder("/nowhere/all")
  with pytest.raises(UserError, match="names no folder"):
    open_folder("")


def test_a_folder_without_classes_shows_what_is_expected(tmp_path):
  assert "nothing at all" in refused(tmp_path)
  (tmp_path / "data").mkdir()
  (tmp_path / "labels.csv").write_text("1,2")

  said = refused(tmp_path)

  assert "data/, labels.csv" in said
  assert "DIR/SPLIT/CLASS/IMAGE" in said
  assert "DIR/CLASS/IMAGE" in said


def empty_cat(tree):
  for path in tree.glob("train/cat/*"):
    path.unlink()
  (tree / "train/cat/urls.txt").write_text("lost")


def name_unicode_twice(tree):
  for name in "cafe\u0301", "caf\u00e9":
    write(tree / "train" / name / "1.png")


def break_link(tree):
  (tree / "train/cat/lost.png").symlink_to("/nowhere")


def leave_only_splits(tree):
  shutil.rmtree(tree)
  for name in "train", "Valid":
    write(tree / name / "1.png")


NOTHING = "train/ant/more.txt"


@pytest.mark.parametrize(
  "change, split, said",
  [
    ("loose.png", "train", "lie loose.*loose.png"),
    ("test/loose.png", "train", "test hold images, test, train hold folders"),
    ("train/bee/drone/1.png", "train", "/train/bee holds folders .*: drone"),
    ("train/a\nb/1.png", "train", r"line break .*: 'a\\nb'"),
    ("train/a\u2028b/1.png", "train", "line break"),
    ("train/a\udcffb/1.png", "train", "not UTF-8"),
    ("test/dog/1.png", "test", "test are not in train: dog"),
    ("boxes/dog/1.png", "boxes", "boxes are not in train: dog"),
    (empty_cat, "train", r"1 of 3 class .*/train hold .*\(but 1 .txt\): cat."),
    (break_link, "train", "lead nowhere: lost.png"),
    (leave_only_splits, "train", "lie in Valid, train without class folders"),
    (name_unicode_twice, "train", "two folders each for caf\u00e9"),
    (NOTHING, "val", r"There are: test \(15\), train \(60\)"),
    (NOTHING, "train[", r"There are: test \(15\), train \(60\)"),
    (NOTHING, "all[:5]", r"There are: test \(15\), train \(60\)"),
    (NOTHING, "train[:0]", "holds no examples"),
    (NOTHING, "train[30:20]", "holds no examples"),
  ],
)
def test_a_layout_or_split_that_does_not_fit_is_refused(
  tree, change, split, said
):
  if callable(change):
    change(tree)
  else:
    write(tree / change)

  assert re.search(said, refused(tree, split))


def test_faults_of_one_split_do_not_concern_another(tree):
  empty_cat(tree)
  write(tree / "train/bee/drone/1.png")

  assert len(open_folder(tree, "test")) == 15


def test_a_folder_that_may_not_be_read_is_said():
  # Not in pytest's own folder, where another user may read nothing at all.
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    for name in "ab":
      write(Path(folder) / name / "1.png")
    os.chmod(f"{folder}/b", 0)
    user = os.geteuid()
    try:
      if user == 0:  # who may read everything
        os.seteuid(65534)
      said = refused(folder)
    finally:
      os.seteuid(user)
      os.chmod(f"{folder}/b", 0o755)

  assert f"Cannot list {folder}/b: Permission denied" in said


def test_a_file_that_vanishes_is_named(tree):
  source = open_folder(tree)
  os.unlink(source.locate(3))

  assert len(source.read([2, 4])) == 2
  with pytest.raises(UserError, match=f"{source.locate(3)}: No such file"):
    source.read([3])


def test_options_of_the_other_kind_of_data_set_are_refused(tree, digits_dir):
  with pytest.raises(UserError, match="classes=x.txt.*digits"):
    open_source("digits", "train", digits_dir, classes="x.txt")
  with pytest.raises(UserError, match="label=breed .* folders are the labels"):
    open_source(f"folder:{tree}", "train", label_key="breed")


def test_files_that_are_left_out_are_counted_by_suffix(tree, capsys):
  for name in "1.CR2", "2.cr2", "3.svg", "4", ".hidden", "Thumbs.db":
    (tree / "train" / "cat" / name).touch()
  (tree / "train" / "5.cr2").touch()
  (tree / "train" / "cat" / "album.jpg").mkdir()
  os.mkfifo(tree / "train" / "cat" / "pipe.jpg")

  assert len(open_folder(tree)) == len(open_folder(tree, "train[:100%]")) == 60

  message = capsys.readouterr().err
  assert message.count(f"7 of 67 files in {tree}/train are left out") == 1
  assert "3 .cr2, 1 .svg, 1 without a suffix" in message
  assert "1 .jpg" in message and "1 folder" in message
  assert ".heic" in message  # a suffix, or one that needs a package


def test_where_no_file_has_a_known_suffix_the_suffixes_are_shown(tree):
  for path in tree.glob("*/*/*.png"):
    path.rename(path.with_suffix(".svg"))

  for split, number in ("train[:90%]", 60), ("test", 15):
    said = refused(tree, split)
    assert f"3 of 3 class folders in {tree}/{split.partition('[')[0]}" in said
    assert f"{number} .svg" in said and ".jpeg" in said
  assert "15 .svg" in refused(tree / "test")


def test_a_class_has_one_name_in_every_unicode_form(tree):
  composed, parts = "caf\u00e9", "cafe\u0301"
  write(tree / "train" / parts / "1.png")
  write(tree / "test" / composed / "1.png")
  file = tree.parent / "classes.txt"
  file.write_text("\n".join((*CLASSES, parts)))

  for split in "train", "test":
    for options in {}, {"classes": str(file)}:
      source = open_folder(tree, split, **options)
      assert composed in source.class_names
      assert len(source.read(range(len(source)))) == len(source)


def test_train_is_found_in_any_case(tree):
  (tree / "train").rename(tree / "Train")
  write(tree / "test" / "dog" / "1.png")

  assert "test are not in train: dog" in refused(tree, "test")
