# SPDX-License-Identifier: Apache-2.0
"""A miniature of the official archive, prepared as records."""

import contextlib
import fcntl
import gzip
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import psutil
import pytest
import tensorflow_datasets as tfds
from layouts import tar_of
from photographs import encoded
from runs import TIMEOUT, wait_until
from tensorflow_datasets.proto import tf_example_pb2

from mixer.data.sources import open_source
from mixer.datasets import class_names
from mixer.datasets.imagenet21k import archive, imagenet21k_dataset_builder
from mixer.errors import UserError
from mixer.tools.data import main, prepare

Builder = imagenet21k_dataset_builder.Builder
SYNSETS = ("n00004475", "n01440764", "n02084071", "n12998815", "n15102894")
FOLDER = "imagenet21k/fall11/1.0.0"


def picture(seed):
  """Something like a photograph: colours that change at every scale."""
  rng = np.random.default_rng(seed)
  image = sum(
    cv2.resize(rng.normal(0, 1 / n, (n, n, 3)), (80, 64)) * n**0.5
    for n in (3, 7, 15)
  )
  return np.clip(128 + 70 * image, 0, 255).astype(np.uint8)


def jpeg(image, quality=90, mode="RGB"):
  image = PIL.Image.fromarray(image).convert(mode)
  return encoded(image, "JPEG", quality=quality)


ODD = {
  "n00004475_90.JPEG": b"",
  "n00004475_91.JPEG": jpeg(picture(91))[:700],
  "n01440764_92.JPEG": b"<html><body>This photo is no longer there.</body>",
  "n01440764_93.JPEG": encoded(picture(93), "PNG"),
  "n02084071_94.JPEG": jpeg(picture(94), mode="CMYK"),
  "n02084071_95.JPEG": jpeg(picture(95), mode="L"),
}
BROKEN = sorted(ODD)[:3]
# The bytes of each member of the miniature archive, by its name.
MEMBERS = {
  f"{synset}_{i}.JPEG": jpeg(picture(100 * c + i))
  for c, synset in enumerate(SYNSETS)
  for i in range(12)
} | ODD


def archive_of(images, folder=""):
  """A tar of one tar a class, in the order of the classes, as the official."""
  synsets = sorted({name.partition("_")[0] for name in images})
  inner = {
    f"{folder}{synset}.tar": tar_of(
      (n, b) for n, b in images.items() if n.startswith(synset)
    )
    for synset in synsets
  }
  return tar_of(inner.items(), folder)


def write_archive(data_dir, content, name="fall11_whole.tar"):
  """Puts an archive where the user has to, and returns its path."""
  path = Path(data_dir) / "downloads" / "manual" / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  return path


@pytest.fixture(scope="module")
def official(tmp_path_factory):
  """A folder of data sets in which only the archive lies."""
  data_dir = tmp_path_factory.mktemp("official")
  write_archive(data_dir, archive_of(MEMBERS))
  return data_dir


@pytest.fixture
def data_dir(official, tmp_path):
  shutil.copytree(official, tmp_path, dirs_exist_ok=True)
  return tmp_path


@pytest.fixture(scope="module")
def prepared(official, tmp_path_factory):
  """The folder of data sets after `prepare`, by one worker, in five shards."""
  data_dir = tmp_path_factory.mktemp("prepared")
  shutil.copytree(official, data_dir, dirs_exist_ok=True)
  command = ["prepare", "imagenet21k", f"--data_dir={data_dir}", "--workers=1"]
  with (
    pytest.MonkeyPatch.context() as patch,
    (data_dir / "output.txt").open("w") as output,
    contextlib.redirect_stdout(output),
  ):
    patch.setattr(Builder, "SHARD_BYTES", shard_bytes(5))
    assert main(command) == 0
  return data_dir


def shard_bytes(number):
  """The size at which the miniature takes so many shards."""
  return -(-sum(map(len, MEMBERS.values())) // number)


def records(data_dir, folder=FOLDER):
  """Each record as bytes, in order."""
  return list(
    tfds.builder_from_directory(Path(data_dir) / folder).as_data_source(
      "full", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
  )


def examples(data_dir, folder=FOLDER):
  """(file name, image bytes, label) of each example, in order."""
  found = []
  for record in records(data_dir, folder):
    feature = tf_example_pb2.Example.FromString(record).features.feature
    name, image = (
      feature[key].bytes_list.value[0] for key in ("file_name", "image")
    )
    [label] = feature["label"].int64_list.value
    found.append((name.decode(), image, label))
  return found


def test_images_that_can_be_decoded_keep_their_bytes_and_classes(prepared):
  classes = sorted(class_names.synsets())

  found = examples(prepared)

  names = [name for name, _, _ in found]
  assert names == sorted(
    MEMBERS.keys() - BROKEN,
    key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest(),
  )
  for name, image, label in found:
    assert image == MEMBERS[name]
    assert classes[label] == name.partition("_")[0]
  source = open_source("imagenet21k", "full[:3]", str(prepared))
  assert source.num_classes == 21_843
  assert source.class_names[0] == "n00004475"
  assert source.read(range(3)) == [(image, x) for _, image, x in found[:3]]


def test_what_cannot_be_decoded_is_listed_with_the_reason(prepared):
  lines = (prepared / FOLDER / "unreadable.txt").read_text().splitlines()
  output = (prepared / "output.txt").read_text()

  assert [line.split("\t")[0] for line in lines] == BROKEN
  assert all("decode" in line.split("\t")[1] for line in lines)
  assert (prepared / FOLDER / "excluded.txt").read_text() == ""
  assert "63 images written; left out: 3 that cannot be decoded" in output
  assert "21,838 of 21,843 classes have no images: n00005787, n0000" in output
  assert "full: 63 examples" in output


def test_neither_workers_nor_shards_change_the_examples(prepared, data_dir):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Builder, "SHARD_BYTES", shard_bytes(2))
    prepare("imagenet21k", str(data_dir), workers=2)

  assert len(list((data_dir / FOLDER).glob("*array_record*"))) == 2
  assert len(list((prepared / FOLDER).glob("*array_record*"))) == 5
  assert records(data_dir) == records(prepared)


# Writes four shards, and then waits for the test to stop it.
INTERRUPTED = """
import sys, time
from mixer.tools.data import main
from mixer.datasets.imagenet21k import shards
from mixer.datasets.imagenet21k.imagenet21k_dataset_builder import Builder

write_shard = shards._write_shard

def write_first_shards(task):
  name = task[4].name
  if "record-0000" not in name or name[-10] > "3":
    time.sleep(3600)
  return write_shard(task)

if __name__ == "__main__":
  shards._write_shard = write_first_shards
  Builder.SHARD_BYTES = int(sys.argv[2])
  options = ["--data_dir=" + sys.argv[1], "--workers=1"]
  sys.exit(main(["prepare", "imagenet21k", *options]))
"""
MANY = 40


def begin_and_stop(data_dir, stop):
  """Stops a preparation in MANY shards after four of them."""
  script = data_dir / "interrupted.py"
  script.write_text(INTERRUPTED)
  process = subprocess.Popen(
    [sys.executable, script, data_dir, str(shard_bytes(MANY))],
    env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    start_new_session=True,
  )
  wait_until(lambda: len(finished(data_dir)) == 4, process)
  workers = psutil.Process(process.pid).children()
  stop(process)
  errors = process.communicate(timeout=TIMEOUT)[1].decode()
  _, alive = psutil.wait_procs(workers, TIMEOUT)
  assert not alive
  assert not (data_dir / FOLDER).exists()
  assert len(finished(data_dir)) == 4
  return process.returncode, errors


def finished(data_dir, folder="imagenet21k/fall11/1.0.0.unfinished"):
  """The time at which each finished shard was written, by its name."""
  return {
    file.name: file.stat().st_mtime_ns
    for file in (data_dir / folder).glob("imagenet21k-full.array_record-*")
    if file.suffix != ".json"
  }


@pytest.fixture(scope="module")
def killed(official, tmp_path_factory):
  data_dir = tmp_path_factory.mktemp("killed")
  shutil.copytree(official, data_dir, dirs_exist_ok=True)
  begin_and_stop(data_dir, stop=lambda process: process.kill())
  return data_dir


@pytest.fixture
def unfinished(killed, tmp_path, monkeypatch):
  """A folder of data sets in which a preparation was killed."""
  shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
  monkeypatch.setattr(Builder, "SHARD_BYTES", shard_bytes(MANY))
  return tmp_path


def test_a_killed_preparation_goes_on_where_it_was(prepared, unfinished, capfd):
  before = finished(unfinished)

  prepare("imagenet21k", str(unfinished), workers=1)

  assert records(unfinished) == records(prepared)
  assert before.items() <= finished(unfinished, FOLDER).items()
  out = capfd.readouterr().out
  assert f"{len(before)} of {MANY} shards are finished" in out
  assert "Indexing" not in out
  assert not (unfinished / "imagenet21k/fall11/1.0.0.unfinished").exists()


def test_a_preparation_stopped_by_ctrl_c_says_so(data_dir):
  code, errors = begin_and_stop(
    data_dir, lambda process: os.killpg(process.pid, signal.SIGINT)
  )

  assert code == 130
  assert errors.startswith("Stopped. Give the same command again.\n")
  assert "Traceback" not in errors


def test_a_killed_worker_is_said():
  with pytest.raises(UserError, match="A worker process was killed"):
    list(archive.run_in_processes(os._exit, [9], 1, "shards"))


def test_another_archive_starts_over(unfinished, capfd):
  other = {name: jpeg(picture(i)) for i, name in enumerate(MEMBERS)}
  write_archive(unfinished, archive_of(other))

  prepare("imagenet21k", str(unfinished), workers=1)

  assert "Starting over: the archive changed" in capfd.readouterr().out
  assert {n: image for n, image, _ in examples(unfinished)} == other


def test_recompressed_and_resized_images_of_a_list_are_left_out(
  unfinished, capfd
):
  """Another list starts over, with the same index."""
  folder = unfinished / "downstream" / "test" / "thing"
  folder.mkdir(parents=True)
  smaller = cv2.resize(picture(3), None, fx=0.7, fy=0.7)
  (folder / "0.jpg").write_bytes(jpeg(picture(205), quality=60))
  (folder / "1.jpg").write_bytes(jpeg(smaller))
  (folder / "2.jpg").write_bytes(jpeg(picture(77)))
  hashes = unfinished / "hashes.txt"
  name = f"folder:{unfinished / 'downstream'}"
  assert main(["hash", name, "--split=test", f"--out={hashes}"]) == 0
  command = ["prepare", "imagenet21k", f"--data_dir={unfinished}"]
  command += ["--workers=1", f"--exclude={hashes}"]

  assert main(command) == 0

  out = capfd.readouterr().out
  assert "Starting over: the list of exclusions changed" in out
  assert "Indexing" not in out
  assert "2 that other data sets hold" in out
  twins = ["n00004475_3.JPEG", "n02084071_5.JPEG"]
  lines = (unfinished / FOLDER / "excluded.txt").read_text().splitlines()
  assert [line.split("\t")[0] for line in lines] == twins
  assert all("downstream test " in line for line in lines)
  names = {name for name, _, _ in examples(unfinished)}
  assert names == MEMBERS.keys() - {*BROKEN, *twins}


def test_two_processes_do_not_work_on_the_same_shards(unfinished):
  lock = unfinished / "imagenet21k/fall11/1.0.0.unfinished/lock"
  before = finished(unfinished)

  with lock.open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="Another process"):
      prepare("imagenet21k", str(unfinished))

  assert finished(unfinished) == before


def test_exclusions_do_not_change_a_prepared_data_set(prepared):
  with pytest.raises(UserError, match="--exclude does not change it"):
    prepare("imagenet21k", str(prepared), exclude=["hashes.txt"])


def test_a_wrong_list_of_exclusions_is_said_before_any_work(data_dir):
  with pytest.raises(UserError, match="synsets.txt is not a list.*n00004475"):
    synsets = Path(imagenet21k_dataset_builder.__file__).parent / "synsets.txt"
    prepare("imagenet21k", str(data_dir), exclude=[synsets])
  with pytest.raises(UserError, match="nothing.txt"):
    prepare("imagenet21k", str(data_dir), exclude=["nothing.txt"])


def test_the_classes_of_winter21_are_those_of_its_archive(data_dir):
  images = {
    name: image
    for name, image in MEMBERS.items()
    if name not in BROKEN and not name.startswith("n02084071")
  }
  content = archive_of(images, folder="winter21_whole/")
  write_archive(data_dir, content, "winter21_whole.tar.gz")

  prepare("imagenet21k/winter21", str(data_dir), workers=1)

  source = open_source("imagenet21k/winter21", "full", str(data_dir))
  assert source.class_names == (*SYNSETS[:2], *SYNSETS[3:])
  found = examples(data_dir, "imagenet21k/winter21/1.0.0")
  assert {n: image for n, image, _ in found} == images
  for name, _, label in found:
    assert source.class_names[label] == name.partition("_")[0]


@pytest.mark.parametrize("name", ["fall11_whole.tar", "fall11_whole.tar.gz"])
def test_a_compressed_archive_is_refused_with_what_to_do(tmp_path, name):
  content = archive_of({"n00004475_0.JPEG": jpeg(picture(0))})
  path = write_archive(tmp_path, gzip.compress(content), name)

  with pytest.raises(UserError, match="compressed") as caught:
    prepare("imagenet21k", str(tmp_path))

  command = str(caught.value).partition("Unpack it first: ")[2]
  subprocess.run(command, shell=True, check=True)
  assert path.with_name("fall11_whole.tar").read_bytes() == content


def test_a_missing_archive_is_said_with_where_to_get_it(tmp_path, capsys):
  other = write_archive(tmp_path, b"", "winter21_whole.tar")

  code = main(["prepare", "imagenet21k", f"--data_dir={tmp_path}"])

  message = capsys.readouterr().err
  assert code == 2
  assert f"no fall11_whole.tar in {other.parent}" in message
  assert "image-net.org" in message


def header(**fields):
  """Returns a tar with one member, without contents, that has such fields."""
  info = tarfile.TarInfo("n00004475.tar")
  for key, value in fields.items():
    setattr(info, key, value)
  return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


WHOLE = archive_of(MEMBERS)
ONE = tar_of([("n00004475_0.JPEG", b"0" * 2000)])
LONG_NAME = tarfile.GNUTYPE_LONGNAME


@pytest.mark.parametrize(
  "content, words",
  [
    (WHOLE[: len(WHOLE) // 2], "damaged or cut short"),
    (WHOLE.replace(b"n01440764_3.J", b"?01440764_3.J"), "damaged or cut short"),
    (b"<html>" * 200, "damaged or cut short"),
    (b"", "damaged or cut short"),
    (tar_of([("n00004475.tar", ONE[:1536])]), "cut short at byte 512"),
    (tar_of([("n00004475.tar", tar_of([]))]), "holds no images"),
    (tar_of([("n00004476.tar", ONE)]), "not of this release: n00004476. Is"),
    (header(size=-512), "damaged"),
    (header(size=1 << 62), "damaged"),
    (header(name="n" * 300), "damaged"),
    (header(type=LONG_NAME, size=1 << 40), "damaged"),
    (header(type=LONG_NAME, size=-512), "damaged"),
    (header(type=tarfile.LNKTYPE), "a link or a device"),
    (header(type=tarfile.SYMTYPE), "a link or a device"),
    (header(type=tarfile.CHRTYPE), "a link or a device"),
  ],
  ids=range(15),
)
def test_an_archive_that_is_not_the_official_one_is_refused(
  tmp_path, content, words
):
  write_archive(tmp_path, content)

  with pytest.raises(UserError, match=words):
    prepare("imagenet21k", str(tmp_path), workers=1)


def test_no_end_mark_no_long_name_and_no_folder_hides_an_image(tmp_path):
  name, long = "n00004475_0.JPEG", "n00004475/" + "very/" * 30
  images = [(name, b"0"), (name, b"0" * 600), (f"{long}n00004475_1.JPEG", b"1")]
  # Without the two blocks of zeros that mark an end, up to the last image.
  inner = tar_of(images).rstrip(b"\0")
  inner += b"\0" * (-len(inner) % 512)
  path = tmp_path / "fall11_whole.tar"
  data = tar_of([("n00004475.tar", inner), ("n01440764.tar", inner)])
  path.write_bytes(data)

  tars = archive.inner_tars(path)
  found = archive.index({"n00004475": tars["n00004475"]}, ["n00004475"], 1)

  # Of two images with one name the last counts.
  images = [
    (row["name"], data[row["offset"] : row["offset"] + row["size"]])
    for row in found
  ]
  assert sorted(images) == [
    (b"n00004475_0.JPEG", b"0" * 600),
    (b"n00004475_1.JPEG", b"1"),
  ]


def test_the_classes_are_those_of_the_published_heads():
  synsets = class_names.synsets()

  classes = list(synsets)
  assert len(classes) == 21_843
  assert classes == sorted(classes)
  assert (classes[0], classes[-1]) == ("n00004475", "n15102894")
  # Those of which the archive of fall 2011 has no images.
  assert classes[9205] == "n03931044"
  assert classes[15027] == "n09859684"
  assert synsets["n02084071"].startswith("dog, domestic dog")
  assert all(synsets.values())


@pytest.mark.parametrize(
  "name, option",
  [
    ("imagenet21k", "--workers=0"),
    ("digits", "--workers=2"),
    ("digits", "--exclude=hashes.txt"),
  ],
)
def test_options_that_do_not_fit_are_refused(data_dir, capsys, name, option):
  code = main(["prepare", name, option, f"--data_dir={data_dir}"])

  assert code == 2
  assert option.partition("=")[0].strip("-") in capsys.readouterr().err
