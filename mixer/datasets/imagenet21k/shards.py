# SPDX-License-Identifier: Apache-2.0
"""Shards of the data set, written by processes; resumes after interruptions."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from mixer.data import decode
from mixer.datasets import dedup
from mixer.datasets.imagenet21k.archive import Progress, run_in_processes
from mixer.errors import UserError
from mixer.storage import atomic_write

INCOMPLETE = "incomplete."  # prefix of shards that are being written
INDEX = "index.npy"
PLAN = "plan.json"
LOCK = "lock"


@dataclasses.dataclass(frozen=True)
class Contents:
  """Contents of a finished shard, and the images that it leaves out.

  Attributes:
    written: number of images in the shard.
    num_bytes: their size as records.
    unreadable: (file name, reason) of images that cannot be decoded.
    excluded: (file name, near duplicate) of images that other sets hold.
    file_bytes: size of the file.
  """

  written: int
  num_bytes: int
  unreadable: list[tuple[str, str]]
  excluded: list[tuple[str, str]]
  file_bytes: int


@dataclasses.dataclass(frozen=True)
class _Task:
  """A shard to write: rows [begin, end) of the index."""

  archive: Path
  index: Path
  begin: int
  end: int
  file: Path
  exclude: tuple[str, ...]


def features(label: tfds.features.ClassLabel) -> tfds.features.FeaturesDict:
  """Returns the features of an example."""
  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(encoding_format="jpeg"),
      "label": label,
      "file_name": tfds.features.Text(),
    }
  )


def write(
  archive: Path,
  index: Path,
  files: Sequence[Path],
  exclude: tuple[str, ...],
  workers: int,
) -> list[Contents]:
  """Writes the shards that are missing.

  Args:
    archive: file with the images.
    index: .npy file of `archive.index`.
    files: one path per shard; each takes an equal range of hashes.
    exclude: files with hashes of images to leave out.
    workers: number of processes; each holds a whole shard in memory.

  Returns:
    The contents of each shard.
  """
  hashes = np.load(index, mmap_mode="r")["hash"]
  inner = [(i << 64) // len(files) for i in range(1, len(files))]
  inner = np.searchsorted(hashes, np.array(inner, np.uint64)).tolist()
  ends = [*inner, len(hashes)]
  tasks = [
    _Task(archive, index, begin, end, file, exclude)
    for begin, end, file in zip([0, *inner], ends, files, strict=True)
    if _contents(file) is None
  ]
  done = len(files) - len(tasks)
  if done:
    print(f"{done:,} of {len(files):,} shards are finished: going on.")
  line = Progress("Wrote", "shards", len(files), done)
  for images in run_in_processes(_write_shard, tasks, workers):
    line.add(images)
  return [_contents(file) for file in files]


def _sidecar(file: Path) -> Path:
  return file.with_name(f"{file.name}.json")


def _contents(file: Path) -> Contents | None:
  """Returns the contents of a shard; None if it is not finished."""
  if not file.exists() or not _sidecar(file).exists():
    return None
  contents = Contents(**json.loads(_sidecar(file).read_text()))
  # After a power failure, the file may exist without its bytes.
  return contents if contents.file_bytes == file.stat().st_size else None


def _write_shard(task: _Task) -> int:
  """Writes a shard and its sidecar; returns the number of images read."""
  rows = np.load(task.index, mmap_mode="r")[task.begin : task.end]
  unfinished = task.file.with_name(INCOMPLETE + task.file.name)
  # One record per group, as TFDS: groups are read and unpacked whole.
  writer = array_record_module.ArrayRecordWriter(
    str(unfinished), "group_size:1"
  )
  written = num_bytes = 0
  unreadable, excluded = [], []
  for row, data in zip(rows, _read(task.archive, rows), strict=True):
    name = row["name"].decode()
    try:
      image = decode.decode(data)
    except ValueError as error:
      unreadable.append((name, str(error).partition("\n")[0]))
      continue
    duplicate = _exclusions(task.exclude).find(image)
    if duplicate is not None:
      excluded.append((name, duplicate))
      continue
    record = _serialize(data, int(row["label"]), name)
    writer.write(record)
    written += 1
    num_bytes += len(record)
  writer.close()
  contents = Contents(
    written, num_bytes, unreadable, excluded, unfinished.stat().st_size
  )
  with atomic_write(_sidecar(task.file)) as temporary:
    temporary.write_text(json.dumps(dataclasses.asdict(contents)))
  unfinished.replace(task.file)
  return len(rows)


def _read(archive: Path, rows: np.ndarray) -> Iterator[bytes]:
  """Yields the bytes of each row, read in order of their offsets."""
  images = [b""] * len(rows)
  file = os.open(archive, os.O_RDONLY)
  try:
    # Turns off readahead.
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    for i in np.argsort(rows["offset"]):
      size = int(rows["size"][i])
      images[i] = os.pread(file, size, int(rows["offset"][i]))
      if len(images[i]) != size:
        raise UserError(f"{archive} has become shorter: download it again.")
  except OSError as error:
    raise UserError(f"Cannot read {archive}: {error}.") from error
  finally:
    os.close(file)
  yield from images


@functools.cache
def _exclusions(files: tuple[str, ...]) -> dedup.Hashes:
  return dedup.load(files)


@functools.cache
def _serializer() -> example_serializer.ExampleSerializer:
  # A label is a number here, so that the class names do not matter.
  unnamed = features(tfds.features.ClassLabel())
  return example_serializer.ExampleSerializer(unnamed.get_serialized_info())


def _serialize(image: bytes, label: int, file_name: str) -> bytes:
  example = {"image": image, "label": label, "file_name": file_name.encode()}
  # Otherwise the order of the fields differs between processes.
  return (
    _serializer().get_tf_example(example).SerializeToString(deterministic=True)
  )


@contextlib.contextmanager
def claim(folder: Path, plan: Mapping[str, object]) -> Iterator[None]:
  """Locks the folder of unfinished work and clears work of another plan.

  Args:
    folder: created if missing.
    plan: everything that the shards depend on, as JSON; the index of the
      archive depends only on its `archive`.

  Raises:
    UserError: another process works in the folder.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / LOCK).open("w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
        f"Another process is at work in {folder}: let it finish, or stop it."
      ) from error
    _clear(folder, plan)
    with atomic_write(folder / PLAN) as temporary:
      temporary.write_text(json.dumps(plan))
    yield


def _clear(folder: Path, plan: Mapping[str, object]) -> None:
  for leftovers in f"{INCOMPLETE}*", "*.partial.*":  # the latter of storage
    for file in folder.glob(leftovers):
      file.unlink()
  if not (folder / PLAN).exists():
    return
  before = json.loads((folder / PLAN).read_text())
  changed = [key for key in plan if before.get(key) != plan[key]]
  if not changed:
    return
  print(
    f"Starting over: the {' and the '.join(changed)} changed since the work in"
    f" {folder} began."
  )
  valid = {LOCK} if "archive" in changed else {LOCK, INDEX}
  for file in folder.iterdir():
    if file.name not in valid:
      file.unlink()
