# SPDX-License-Identifier: Apache-2.0
"""TFRecord files of TFDS, read in any order through an index of their own."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import runs
import tensorflow_datasets as tfds
from layouts import write_tfds

from mixer.data.sources import open_source, records
from mixer.errors import DatasetNotFoundError, UserError

SPLITS = {"train": 40, "test": 7}
TFRECORD = tfds.core.file_adapters.TfRecordFileAdapter


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """One data set in both formats: {format: folder of data sets}."""
  folders = {}
  for file_format in "tfrecord", "array_record":
    folder = tmp_path_factory.mktemp(file_format)
    write_tfds(folder, "cifar10", SPLITS, 32, file_format)
    folders[file_format] = str(folder)
  return folders


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """The user's cache, where the system has it."""
  monkeypatch.delenv("MIXER_CACHE_DIR")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "mixer"


@pytest.fixture
def copied(prepared, tmp_path):
  """A data set that a test may damage, and the file of its split train."""
  shutil.copytree(prepared["tfrecord"], tmp_path / "copied")
  [file] = (tmp_path / "copied").glob("cifar10/*/*train*")
  return str(tmp_path / "copied"), file


@pytest.fixture
def sharded(prepared, tmp_path):
  """The 40 records of train in 16 files: the folder, and the records."""
  return write_shards(prepared, tmp_path / "sharded", "tfrecord", 16)


def change_json(file, change):
  content = json.loads(file.read_text())
  change(content)
  file.write_text(json.dumps(content))


def write_shards(prepared, target, file_format, shards):
  """Spreads train over files by TFDS's own writers."""
  source = open_source("cifar10", "train", prepared[file_format])
  records = [bytes(record) for record in source.records]
  folder = target / "cifar10" / "3.0.2"
  shutil.copytree(prepared[file_format] + "/cifar10/3.0.2", folder)
  [old] = folder.glob("*train*")
  old.unlink()
  bounds = [round(40 * shard / shards) for shard in range(shards + 1)]
  kind = tfds.core.FileFormat(file_format)
  adapter = tfds.core.file_adapters.ADAPTER_FOR_FORMAT[kind]
  for shard in range(shards):
    part = records[bounds[shard] : bounds[shard + 1]]
    name = f"cifar10-train.{file_format}-{shard:05d}-of-{shards:05d}"
    adapter.write_examples(folder / name, enumerate(part))
  lengths = np.diff(bounds).astype(str).tolist()
  change_json(
    folder / "dataset_info.json",
    lambda info: info["splits"][0].update(shardLengths=lengths),
  )
  return str(target), records


def open_train(folder, split="train"):
  return open_source("cifar10", split, folder)


def index_files(cache):
  return sorted(cache.glob("tfrecord_index/*"))


@pytest.mark.parametrize(
  "split",
  ["train", "train[:90%]", "train[3:-5]", "test+train[35:]", "train[:3]+train"],
)
def test_both_formats_give_the_same_examples(prepared, split):
  ours = open_train(prepared["tfrecord"], split)
  theirs = open_train(prepared["array_record"], split)

  assert isinstance(ours.records, records.TFRecords)
  assert isinstance(theirs.records, records.ArrayRecords)
  assert len(ours) == len(theirs)
  everything = range(len(ours))
  assert ours.read(everything) == theirs.read(everything)
  assert ours.class_names == theirs.class_names


def test_records_of_many_files_are_found(sharded):
  folder, records = sharded

  whole = open_train(folder)
  part = open_train(folder, "train[7:31]")

  assert [bytes(record) for record in whole.records] == records
  assert [bytes(record) for record in part.records] == records[7:31]
  with pytest.raises(IndexError):
    part.records[24]


def test_array_record_is_taken_where_there_is_both(copied, prepared):
  folder, file = copied
  [other] = Path(prepared["array_record"]).glob("*/*/*train*")
  shutil.copy(other, file.parent)
  change_json(
    file.parent / "dataset_info.json",
    lambda info: info.update(alternativeFileFormats=["array_record"]),
  )

  source = open_train(folder)

  assert isinstance(source.records, records.ArrayRecords)
  assert source.read([5]) == open_train(prepared["tfrecord"]).read([5])


def test_folders_of_the_first_versions_of_tfds_can_be_read(copied):
  folder, file = copied
  before = open_train(folder)
  (file.parent / "features.json").unlink()

  def as_before(info):
    del info["fileFormat"]
    for split in info["splits"]:
      del split["filepathTemplate"]

  change_json(file.parent / "dataset_info.json", as_before)

  source = open_train(folder)

  assert source.read(range(40)) == before.read(range(40))
  assert source.class_names == before.class_names


def test_an_example_is_located_by_file_and_record(sharded, prepared):
  folder, records = sharded
  source = open_train(folder, "train[7:]")

  where = [source.locate(i) for i in range(len(source))]

  files = {}
  for i, place in enumerate(where):
    path, record = re.fullmatch(r"(.*), record (\d+)", place).groups()
    if path not in files:
      files[path] = [*TFRECORD.make_tf_data(path).as_numpy_iterator()]
    assert files[path][int(record)] == records[7 + i]
  assert len(files) == 14
  other = open_train(prepared["array_record"], "train[7:]").locate(2)
  assert other.endswith("cifar10-train.array_record-00000-of-00001, record 9")


MANY_SHARDS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (48, most))
from mixer.data.sources import open_source, records
for folder in sys.argv[1:]:
  source = open_source("cifar10", "train", folder)
  with ThreadPoolExecutor(8) as pool:
    print(*pool.map(lambda i: len(source.records[i % 40]), range(800)))
  records._open_tfrecord.cache_clear()
"""


def test_threads_read_more_shards_than_a_process_may_open(prepared, tmp_path):
  written = [
    write_shards(prepared, tmp_path / file_format, file_format, 40)
    for file_format in prepared
  ]
  folders = [folder for folder, _ in written]

  done = runs.run([sys.executable, "-c", MANY_SHARDS, *folders], os.environ)

  assert done.stderr == ""
  lines = done.stdout.splitlines()
  for line, (_, contents) in zip(lines, written, strict=True):
    assert [*map(int, line.split())] == [len(x) for x in contents] * 20


def test_a_source_is_small_when_sent_to_another_process(sharded):
  folder, records = sharded
  source = open_train(folder)
  source.read([0])

  sent = cloudpickle.dumps(source)
  received = pickle.loads(sent)

  assert len(sent) < 1000 + 200 * 16
  assert received.read(range(40)) == source.read(range(40))


def test_the_index_is_made_once(copied, cache, monkeypatch):
  folder, _ = copied
  whole = open_train(folder).read(range(40))
  monkeypatch.setattr(records, "_scan", None)

  again = open_train(folder)
  part = open_train(folder, "train[:10]")

  assert again.read(range(40)) == whole
  assert part.read(range(10)) == whole[:10]
  [index] = index_files(cache)
  assert index.name.startswith("train.")


def test_files_that_were_replaced_get_another_index(copied):
  folder, file = copied
  contents = [bytes(record) for record in open_train(folder).records]
  reordered = [contents[39], *contents[:39]]

  def replace(examples):
    file.unlink()
    TFRECORD.write_examples(file, enumerate(examples))
    return [bytes(record) for record in open_train(folder).records]

  for examples in contents[:39] + contents[:1], reordered, contents:
    assert replace(examples) == examples


def test_making_an_index_for_long_says_how_far_it_is(
  sharded, monkeypatch, capsys
):
  folder, _ = sharded
  monkeypatch.setattr(records, "_SECONDS_BETWEEN_REPORTS", -1)

  open_train(folder)

  assert "files of train: 16 of 16 files in" in capsys.readouterr().err


def test_a_damaged_index_is_made_anew(copied, cache):
  folder, _ = copied
  expected = open_train(folder).read(range(40))
  [index] = index_files(cache)
  sound = index.read_bytes()

  for damage in sound[:100], b"":
    index.write_bytes(damage)
    records._offsets.cache_clear()
    assert open_train(folder).read(range(40)) == expected
    assert index.read_bytes() == sound


def test_an_index_that_cannot_be_kept_stops_nothing(
  copied, cache, monkeypatch, capsys
):
  folder, _ = copied
  cache.parent.write_text("a file, in which no folder can be made")
  records._temporary_folder.cache_clear()

  sources = [open_train(folder), open_train(folder)]

  assert len(sources[0].read(range(40))) == 40
  assert pickle.loads(pickle.dumps(sources[1])).read([3]) == sources[0].read(
    [3]
  )
  said = capsys.readouterr().err
  assert said.count("cannot be kept") == 1
  assert "MIXER_CACHE_DIR" in said


def test_processes_may_make_the_same_index_at_once(sharded, cache):
  folder, records = sharded
  code = f"""
from mixer.data.sources import open_source
source = open_source("cifar10", "train", {folder!r})
assert len([source.records[i] for i in range(40)]) == 40
"""
  shutil.rmtree(cache)

  running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]

  assert [process.wait(timeout=runs.TIMEOUT) for process in running] == [0, 0]
  assert [bytes(record) for record in open_train(folder).records] == records
  assert len(index_files(cache)) == 1


def begins_of(file):
  """Returns the offset of each record, by TensorFlow's own reader."""
  records = TFRECORD.make_tf_data(str(file)).as_numpy_iterator()
  return np.cumsum([0, *(len(record) + 16 for record in records)]).tolist()


def cut(*, after):
  """Cuts a file within record 30, so many bytes after its begin."""
  return lambda data, begins: data[: begins[30] + after]


def with_length(length):
  """Gives record 20 another length."""
  return lambda data, begins: (
    data[: begins[20]] + length.to_bytes(8, "little") + data[begins[20] + 8 :]
  )


CUT_SHORT = "is damaged or was cut short: .*within record 30,"


@pytest.mark.parametrize(
  "damage, words",
  [
    (cut(after=3), CUT_SHORT),
    (cut(after=11), CUT_SHORT),
    (cut(after=100), CUT_SHORT),
    (lambda data, _: data[:-1], "is damaged or .*within record 39,"),
    (cut(after=0), "holds 30 records.* says 40"),
    (lambda data, _: 2 * data, "holds more than 40.* says 40"),
    (lambda *_: b"<html>" * 1000, "is damaged .*within record 0"),
    (with_length(0), "is damaged .*within record 2"),
    (with_length(3000), "is damaged .*within record 2"),
    (with_length(2**64 - 1), "is damaged .*within record 2"),
  ],
)
def test_a_damaged_file_is_noticed_at_opening(copied, damage, words):
  folder, file = copied
  file.write_bytes(damage(file.read_bytes(), begins_of(file)))

  with pytest.raises(UserError, match=f"{file} {words}.*Copy the file again"):
    open_train(folder)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_missing_files_are_named_at_opening(prepared, tmp_path, file_format):
  shutil.copytree(prepared[file_format], tmp_path / "copied")
  [file] = (tmp_path / "copied").glob("cifar10/*/*train*")
  file.unlink()

  with pytest.raises(
    DatasetNotFoundError, match=f"1 of 1 .*the first is {file}"
  ):
    open_train(str(tmp_path / "copied"))
  assert len(open_train(str(tmp_path / "copied"), "test")) == 7


def test_a_file_that_changes_under_the_reader_is_named(copied):
  folder, file = copied
  source = open_train(folder)
  source.read([3])
  content = bytearray(file.read_bytes())
  content[begins_of(file)[20]] ^= 1
  file.write_bytes(content)

  assert len(source.read([3])) == 1
  with pytest.raises(UserError, match=f"{file} has changed since.*record 20"):
    source.read([20])
  file.unlink()
  records._open_tfrecord.cache_clear()
  with pytest.raises(UserError, match=f"{file}, record 3: No such file"):
    source.read([3])


def test_a_record_without_the_features_is_named(copied, prepared):
  folder, file = copied
  records = [bytes(record) for record in open_train(folder).records]
  records[5:7] = [b"", b"\xff" * 10]
  TFRECORD.write_examples(file, enumerate(records))
  source = open_train(folder)

  for i in 5, 6:
    with pytest.raises(UserError, match=f"{file}, record {i}, is not an exam"):
      source.read([i])


def test_another_format_says_what_is_needed(copied):
  folder, file = copied
  change_json(
    file.parent / "dataset_info.json",
    lambda info: info.update(fileFormat="riegeli"),
  )

  with pytest.raises(DatasetNotFoundError, match="as riegeli.*prepare cifar10"):
    open_train(folder)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize(
  "content, words",
  [
    ("", "is damaged.*[Cc]opy"),
    ("[]", "is damaged.*[Cc]opy"),
    ("{}", "is damaged.*[Cc]opy"),
    ('{"ofTomorrow": 1}', "was written by another version.*upgrade"),
  ],
)
def test_damaged_metadata_and_another_version_are_two_messages(
  copied, name, content, words
):
  folder, file = copied
  (file.parent / name).write_text(content)

  with pytest.raises(UserError, match=f"{file.parent}.* {words}") as error:
    open_train(folder)
  assert "delete" not in str(error.value)


@pytest.mark.parametrize(
  "kind, words",
  [
    ("my_project.features.Thing", "needs my_project.features.Thing: install"),
    ("tensorflow_datasets.core.features.Hologram", "by another version"),
  ],
)
def test_a_feature_of_an_unknown_class_says_where_it_comes_from(
  copied, kind, words
):
  folder, file = copied
  change_json(
    file.parent / "features.json",
    lambda content: content["featuresDict"]["features"].update(
      extra={"pythonClassName": kind}
    ),
  )

  with pytest.raises(UserError, match=words):
    open_train(folder)
