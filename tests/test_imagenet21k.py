# SPDX-License-Identifier: Apache-2.0
"""A miniature of the official archive, prepared as records."""

import fcntl
import gzip
import hashlib
import io
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
from runs import TIMEOUT, wait_until
from tensorflow_datasets.proto import tf_example_pb2

from mixer.data.sources import open_source
from mixer.datasets import class_names
from mixer.datasets.imagenet21k import archive, imagenet21k_dataset_builder
from mixer.errors import UserError
from mixer.tools.data import main, prepare

Builder = imagenet21k_dataset_builder.Builder
SYNSETS = ("n00004475", "n01440764", "n02084071", "n12998815", "n15102894")
EACH = 12
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
  file = io.BytesIO()
  PIL.Image.fromarray(image).convert(mode).save(file, "JPEG", quality=quality)
  return file.getvalue()


def png(image):
  return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


ODD = {
  "n00004475_90.JPEG": b"",
  "n00004475_91.JPEG": jpeg(picture(91))[:700],
  "n01440764_92.JPEG": b"<html><body>This photo is no longer there.</body>",
  "n01440764_93.JPEG": png(picture(93)),
  "n02084071_94.JPEG": jpeg(picture(94), mode="CMYK"),
  "n02084071_95.JPEG": jpeg(picture(95), mode="L"),
}
BROKEN = sorted(ODD)[:3]


def members():
  """The bytes of each member of the miniature archive, by its name."""
  plain = {
    f"{synset}_{i}.JPEG": jpeg(picture(100 * c + i))
    for c, synset in enumerate(SYNSETS)
    for i in range(EACH)
  }
  return {**plain, **ODD}


def write_archive(path, images, folder=""):
  """A tar of one tar a class, in the order of the classes, as the official."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as outer:
    if folder:
      entry = tarfile.TarInfo(folder)
      entry.type = tarfile.DIRTYPE
      outer.addfile(entry)
    for synset in sorted({name.partition("_")[0] for name in images}):
      inner = tar_of({n: b for n, b in images.items() if n.startswith(synset)})
      entry = tarfile.TarInfo(f"{folder}{synset}.tar")
      entry.size = len(inner)
      outer.addfile(entry, io.BytesIO(inner))


def tar_of(images):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w") as tar:
    for name, data in images.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(data)
      tar.addfile(entry, io.BytesIO(data))
  return file.getvalue()


def manual(data_dir):
  return Path(data_dir) / "downloads" / "manual"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
  """A folder of data sets in which only the archive lies."""
  data_dir = tmp_path_factory.mktemp("official")
  write_archive(manual(data_dir) / "fall11_whole.tar", members())
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
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Builder, "SHARD_BYTES", shard_bytes(5))
    prepare("imagenet21k", str(data_dir), workers=1)
  return data_dir


def shard_bytes(number):
  """The size at which the miniature takes so many shards."""
  return -(-sum(map(len, members().values())) // number)


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


def test_every_image_that_can_be_decoded_keeps_its_bytes_and_class(prepared):
  classes = sorted(class_names.synsets())

  found = examples(prepared)

  expected = {n: b for n, b in members().items() if n not in BROKEN}
  assert {name: image for name, image, _ in found} == expected
  assert len(found) == len(expected)
  for name, _, label in found:
    assert classes[label] == name.partition("_")[0]


def test_what_cannot_be_decoded_is_listed_with_the_reason(prepared):
  lines = (prepared / FOLDER / "unreadable.txt").read_text().splitlines()

  assert [line.split("\t")[0] for line in lines] == BROKEN
  assert all("decode" in line.split("\t")[1] for line in lines)
  assert (prepared / FOLDER / "excluded.txt").read_text() == ""


def test_the_order_is_that_of_a_hash_of_the_names(prepared):
  names = [name for name, _, _ in examples(prepared)]

  assert names == sorted(
    names,
    key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest(),
  )


def test_a_slice_is_read_through_the_sources(prepared):
  source = open_source("imagenet21k", "full[:3]", str(prepared))

  assert len(source) == 3
  assert source.num_classes == 21_843
  assert source.class_names[0] == "n00004475"
  assert source.read(range(3)) == [
    (image, label) for _, image, label in examples(prepared)[:3]
  ]


def test_prepare_says_how_many_were_written_and_left_out(data_dir, capfd):
  code = main(["prepare", "imagenet21k", f"--data_dir={data_dir}"])

  out = capfd.readouterr().out
  assert code == 0
  assert "63 images written" in out
  assert "3 that cannot be decoded" in out
  assert "21,838 of 21,843 classes have no images: n00005787, n00006024" in out
  assert "full: 63 examples" in out


def test_neither_workers_nor_shards_change_the_examples(prepared, data_dir):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Builder, "SHARD_BYTES", shard_bytes(2))
    prepare("imagenet21k", str(data_dir), workers=3)

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
  if "record-0000" not in task.file.name or task.file.name[-10] > "3":
    time.sleep(3600)
  return write_shard(task)

if __name__ == "__main__":
  shards._write_shard = write_first_shards
  Builder.SHARD_BYTES = int(sys.argv[2])
  sys.exit(main(["prepare", "imagenet21k", "--data_dir=" + sys.argv[1]]))
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

  prepare("imagenet21k", str(unfinished))

  assert records(unfinished) == records(prepared)
  assert before.items() <= finished(unfinished, FOLDER).items()
  out = capfd.readouterr().out
  assert f"{len(before)} of {MANY} shards are finished" in out
  assert "Indexing" not in out
  assert os.listdir(unfinished / "imagenet21k" / "fall11") == ["1.0.0"]


def kill_a_worker(process):
  for child in psutil.Process(process.pid).children():
    if "spawn_main" in " ".join(child.cmdline()):
      return child.kill()


def press_ctrl_c(process):
  os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize(
  "stop, code, message",
  [
    (press_ctrl_c, 130, "Stopped. Give the same command again.\n"),
    (kill_a_worker, 2, "error: A worker process was killed"),
  ],
)
def test_a_stopped_preparation_says_so_and_resumes(
  stop, code, message, prepared, data_dir, monkeypatch
):
  stopped_with, errors = begin_and_stop(data_dir, stop)
  before = finished(data_dir)

  monkeypatch.setattr(Builder, "SHARD_BYTES", shard_bytes(MANY))
  prepare("imagenet21k", str(data_dir))

  assert stopped_with == code
  assert errors.startswith(message) and "Traceback" not in errors
  assert records(data_dir) == records(prepared)
  assert before.items() <= finished(data_dir, FOLDER).items()


def test_a_shard_that_lost_its_end_is_written_again(prepared, unfinished):
  name = min(finished(unfinished))
  file = unfinished / "imagenet21k/fall11/1.0.0.unfinished" / name
  file.write_bytes(file.read_bytes()[:-1])

  prepare("imagenet21k", str(unfinished))

  assert records(unfinished) == records(prepared)


def test_another_archive_starts_over(unfinished, capfd):
  other = {name: jpeg(picture(i)) for i, name in enumerate(members())}
  write_archive(manual(unfinished) / "fall11_whole.tar", other)

  prepare("imagenet21k", str(unfinished))

  assert "Starting over: the archive changed" in capfd.readouterr().out
  assert {n: image for n, image, _ in examples(unfinished)} == other


def test_another_size_of_shards_starts_over_with_the_same_index(
  prepared, unfinished, monkeypatch, capfd
):
  monkeypatch.setattr(Builder, "SHARD_BYTES", shard_bytes(MANY - 1))

  prepare("imagenet21k", str(unfinished))

  out = capfd.readouterr().out
  assert "Starting over: the size of the shards changed" in out
  assert "Indexing" not in out
  assert records(unfinished) == records(prepared)


def test_two_processes_do_not_work_on_the_same_shards(unfinished):
  lock = unfinished / "imagenet21k/fall11/1.0.0.unfinished/lock"
  before = finished(unfinished)

  with lock.open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="Another process"):
      prepare("imagenet21k", str(unfinished))

  assert finished(unfinished) == before


def write_list(tmp_path, images):
  """The list of hashes of a folder of images, made by the command."""
  folder = tmp_path / "downstream" / "test" / "thing"
  folder.mkdir(parents=True)
  for i, image in enumerate(images):
    (folder / f"{i}.jpg").write_bytes(image)
  out = tmp_path / "hashes.txt"
  name = f"folder:{tmp_path / 'downstream'}"
  assert main(["hash", name, "--split=test", f"--out={out}"]) == 0
  return out


def test_recompressed_and_resized_images_of_a_list_are_left_out(
  data_dir, prepared, capfd
):
  smaller = cv2.resize(picture(3), None, fx=0.7, fy=0.7)
  file = write_list(
    data_dir, [jpeg(picture(205), quality=60), jpeg(smaller), jpeg(picture(77))]
  )

  main(
    ["prepare", "imagenet21k", f"--data_dir={data_dir}", f"--exclude={file}"]
  )

  twins = ["n00004475_3.JPEG", "n02084071_5.JPEG"]
  lines = (data_dir / FOLDER / "excluded.txt").read_text().splitlines()
  assert [line.split("\t")[0] for line in lines] == twins
  assert all("downstream test " in line for line in lines)
  assert "2 that other data sets hold" in capfd.readouterr().out
  assert records(data_dir) == [
    record
    for record, (name, _, _) in zip(
      records(prepared), examples(prepared), strict=True
    )
    if name not in twins
  ]


def test_another_list_of_exclusions_starts_over(unfinished, capfd):
  file = write_list(unfinished, [jpeg(picture(205))])

  prepare("imagenet21k", str(unfinished), exclude=[file])

  out = capfd.readouterr().out
  assert "Starting over: the list of exclusions changed" in out
  assert "n02084071_5.JPEG" not in [n for n, _, _ in examples(unfinished)]


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
  images = {n: b for n, b in members().items() if not n.startswith("n02084071")}
  images = {name: images[name] for name in images if name not in BROKEN}
  path = manual(data_dir) / "winter21_whole.tar.gz"
  write_archive(path, images, folder="winter21_whole/")

  prepare("imagenet21k/winter21", str(data_dir))

  source = open_source("imagenet21k/winter21", "full", str(data_dir))
  assert source.class_names == (*SYNSETS[:2], *SYNSETS[3:])
  found = examples(data_dir, "imagenet21k/winter21/1.0.0")
  assert {n: image for n, image, _ in found} == images
  for name, _, label in found:
    assert source.class_names[label] == name.partition("_")[0]


@pytest.mark.parametrize("name", ["fall11_whole.tar", "fall11_whole.tar.gz"])
def test_a_compressed_archive_is_refused_with_what_to_do(tmp_path, name):
  write_archive(manual(tmp_path) / name, {"n00004475_0.JPEG": jpeg(picture(0))})
  data = (manual(tmp_path) / name).read_bytes()
  (manual(tmp_path) / name).write_bytes(gzip.compress(data))

  with pytest.raises(UserError, match="compressed") as caught:
    prepare("imagenet21k", str(tmp_path))

  command = str(caught.value).partition("Unpack it first: ")[2]
  subprocess.run(command, shell=True, check=True)
  assert (manual(tmp_path) / "fall11_whole.tar").read_bytes() == data


def test_a_class_that_fall11_does_not_have_is_named(tmp_path):
  images = {"n00004475_1.JPEG": b"", "n00004476_1.JPEG": b""}
  write_archive(manual(tmp_path) / "fall11_whole.tar", images)

  with pytest.raises(UserError, match="not of this release: n00004476. Is"):
    prepare("imagenet21k", str(tmp_path))


@pytest.mark.parametrize("there", [[], ["winter21_whole.tar"]])
def test_a_missing_archive_is_said_with_where_to_get_it(
  tmp_path, there, capsys
):
  manual(tmp_path).mkdir(parents=True)
  for name in there:
    (manual(tmp_path) / name).touch()

  code = main(["prepare", "imagenet21k", f"--data_dir={tmp_path}"])

  message = capsys.readouterr().err
  assert code == 2
  assert "fall11_whole.tar" in message
  assert str(manual(tmp_path)) in message
  assert "image-net.org" in message


def test_an_archive_that_is_cut_short_or_spoilt_is_refused(official, tmp_path):
  path = manual(tmp_path) / "fall11_whole.tar"
  path.parent.mkdir(parents=True)
  whole = (manual(official) / "fall11_whole.tar").read_bytes()
  second = whole.index(b"n01440764_3.JPEG")
  spoilt = whole[:second] + b"?" + whole[second + 1 :]

  for damaged in whole[: len(whole) // 2], spoilt, b"<html>" * 200, b"":
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged or cut short"):
      prepare("imagenet21k", str(tmp_path))


def test_a_class_whose_last_image_is_cut_short_is_refused(tmp_path):
  path = manual(tmp_path) / "fall11_whole.tar"
  path.parent.mkdir(parents=True)
  with tarfile.open(path, "w") as outer:
    for name, end in ("n00004475", 1536), ("n01440764", None):
      inner = tar_of({f"{name}_0.JPEG": b"0" * 2000})[:end]
      entry = tarfile.TarInfo(f"{name}.tar")
      entry.size = len(inner)
      outer.addfile(entry, io.BytesIO(inner))

  with pytest.raises(UserError, match="damaged or cut short at byte 512"):
    prepare("imagenet21k", str(tmp_path))


@pytest.mark.parametrize(
  "fields, words",
  [
    ({"size": -512}, "damaged"),
    ({"size": -1024}, "damaged"),
    ({"size": 1 << 62}, "damaged"),
    ({"name": "n" * 300}, "damaged"),
    ({"type": tarfile.GNUTYPE_LONGNAME, "size": 1 << 40}, "damaged"),
    ({"type": tarfile.GNUTYPE_LONGNAME, "size": -512}, "damaged"),
    ({"type": tarfile.LNKTYPE}, "a link or a device"),
    ({"type": tarfile.SYMTYPE}, "a link or a device"),
    ({"type": tarfile.CHRTYPE}, "a link or a device"),
  ],
)
def test_archives_with_damaged_or_special_members_are_refused(
  tmp_path, fields, words
):
  info = tarfile.TarInfo("n00004475.tar")
  for key, value in fields.items():
    setattr(info, key, value)
  path = tmp_path / "fall11_whole.tar"
  path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))

  with pytest.raises(UserError, match=words):
    archive.inner_tars(path)


def test_no_end_mark_no_long_name_and_no_folder_hides_an_image(tmp_path):
  long = "n00004475/" + "very/" * 30 + "n00004475_1.JPEG"
  inner = tar_of({"n00004475_0.JPEG": b"0" * 600, long: b"1"})
  # Without the two blocks of zeros that mark an end, up to the last image.
  inner = inner.rstrip(b"\0")
  inner += b"\0" * (-len(inner) % 512)
  path = tmp_path / "fall11_whole.tar"
  with tarfile.open(path, "w") as outer:
    for name in "n00004475.tar", "n01440764.tar":
      entry = tarfile.TarInfo(name)
      entry.size = len(inner)
      outer.addfile(entry, io.BytesIO(inner))
  data = path.read_bytes()

  tars = archive.inner_tars(path)
  found = archive.index({"n00004475": tars["n00004475"]}, ["n00004475"], 1)

  images = {
    row["name"]: data[row["offset"] : row["offset"] + row["size"]]
    for row in found
  }
  assert images == {b"n00004475_0.JPEG": b"0" * 600, b"n00004475_1.JPEG": b"1"}


def test_of_images_with_one_name_the_last_counts(tmp_path):
  path = tmp_path / "fall11_whole.tar"
  inner = io.BytesIO()
  with tarfile.open(fileobj=inner, mode="w") as tar:
    for content in b"first", b"last":
      entry = tarfile.TarInfo("n00004475_0.JPEG")
      entry.size = len(content)
      tar.addfile(entry, io.BytesIO(content))
  path.write_bytes(inner.getvalue())

  [row] = archive.index(
    {"n00004475": (path, 0, path.stat().st_size)}, ["n00004475"], 1
  )

  data = path.read_bytes()
  assert data[row["offset"] : row["offset"] + row["size"]] == b"last"


def test_an_archive_without_images_is_refused(tmp_path):
  manual(tmp_path).mkdir(parents=True)
  with tarfile.open(manual(tmp_path) / "fall11_whole.tar", "w") as outer:
    inner = tar_of({})
    entry = tarfile.TarInfo("n00004475.tar")
    entry.size = len(inner)
    outer.addfile(entry, io.BytesIO(inner))

  with pytest.raises(UserError, match="holds no images"):
    prepare("imagenet21k", str(tmp_path))


def test_the_classes_are_those_of_the_published_heads():
  synsets = class_names.synsets()

  classes = list(synsets)
  assert len(classes) == 21_843
  assert classes == sorted(classes)
  assert (classes[0], classes[-1]) == ("n00004475", "n15102894")
  # Those of which the archive of fall 2011 has no images.
  assert classes[9205] == "n03931044"
  assert classes[15027] == "n09859684"
  assert synsets["n00004475"] == "organism, being"
  assert synsets["n02084071"].startswith("dog, domestic dog")
  assert all(synsets.values())


def test_fewer_than_one_worker_is_refused(data_dir, capsys):
  code = main(
    ["prepare", "imagenet21k", f"--data_dir={data_dir}", "--workers=0"]
  )

  assert code == 2
  assert "workers=0 must be at least 1" in capsys.readouterr().err


def test_options_of_imagenet21k_are_refused_elsewhere(tmp_path, capsys):
  for option in "--workers=2", "--exclude=hashes.txt":
    code = main(["prepare", "digits", option, f"--data_dir={tmp_path}"])

    assert code == 2
    assert option.partition("=")[0] in capsys.readouterr().err
