# SPDX-License-Identifier: Apache-2.0
"""Shards of the data set, written by processes; resumes after interruptions."""

import contextlib
import fcntl
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from mixer.data import decode
from mixer.data.sources.file_io import RandomAccessFile
from mixer.datasets import dedup
from mixer.datasets.imagenet21k.archive import run_in_processes
from mixer.errors import UserError
from mixer.storage import atomic_write, write_text

INDEX = "index.npy"
PLAN = "plan.json"
LOCK = "lock"


# Archive, index, first and last row, file to write, lists of exclusions.
Task = tuple[Path, Path, int, int, Path, tuple[str, ...]]


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
) -> list[dict]:
  """Writes the shards that are missing.

  Args:
    archive: file with the images.
    index: .npy file of `archive.index`.
    files: one path per shard; each takes an equal range of hashes.
    exclude: files with hashes of images to leave out.
    workers: number of processes; each holds a whole shard in memory.

  Returns:
    The contents of each shard: the number of images `written`, `num_bytes` as
    records, and two lists of the images left out: (file name, reason) of the
    `unreadable`, (file name, near duplicate) of the `excluded`.
  """
  hashes = np.load(index, mmap_mode="r")["hash"]
  inner = [(i << 64) // len(files) for i in range(1, len(files))]
  inner = np.searchsorted(hashes, np.array(inner, np.uint64)).tolist()
  ends = [*inner, len(hashes)]
  tasks = [
    (archive, index, begin, end, file, exclude)
    for begin, end, file in zip([0, *inner], ends, files, strict=True)
    if not file.exists()
  ]
  if done := len(files) - len(tasks):
    print(f"{done:,} of {len(files):,} shards are finished: going on.")
  list(run_in_processes(_write_shard, tasks, workers, "shards"))
  return [json.loads(_sidecar(file).read_text()) for file in files]


def _sidecar(file: Path) -> Path:
  return file.with_name(f"{file.name}.json")


def _write_shard(task: Task) -> tuple[int, None]:
  """Writes a shard and its sidecar; returns the number of images read."""
  archive, index, begin, end, file, exclude = task
  rows = np.load(index, mmap_mode="r")[begin:end]
  contents = {"written": 0, "num_bytes": 0, "unreadable": [], "excluded": []}
  with atomic_write(file) as unfinished:
    # One record per group, as TFDS: groups are read and unpacked whole.
    writer = array_record_module.ArrayRecordWriter(
      str(unfinished), "group_size:1"
    )
    for row, data in zip(rows, _read(archive, rows), strict=True):
      name = row["name"].decode()
      try:
        image = decode.decode(data)
      except ValueError as error:
        reason = str(error).partition("\n")[0]
        contents["unreadable"].append((name, reason))
        continue
      duplicate = _exclusions(exclude).find(image)
      if duplicate is not None:
        contents["excluded"].append((name, duplicate))
        continue
      record = _serialize(data, int(row["label"]), name)
      writer.write(record)
      contents["written"] += 1
      contents["num_bytes"] += len(record)
    writer.close()
    write_text(_sidecar(file), json.dumps(contents))
  return len(rows), None


def _read(archive: Path, rows: np.ndarray) -> Iterator[bytes]:
  """Yields the bytes of each row, read in order of their offsets."""
  images = [b""] * len(rows)
  file = RandomAccessFile(str(archive))
  try:
    for i in np.argsort(rows["offset"]):
      size = int(rows["size"][i])
      images[i] = file.read(int(rows["offset"][i]), size)
      if len(images[i]) != size:
        raise UserError(f"{archive} has become shorter: download it again.")
  except OSError as error:
    raise UserError(f"Cannot read {archive}: {error}.") from error
  yield from images


_exclusions = functools.cache(dedup.load)


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
    write_text(folder / PLAN, json.dumps(plan))
    yield


def _clear(folder: Path, plan: Mapping[str, object]) -> None:
  for file in folder.glob("*.partial.*"):  # of atomic_write
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
