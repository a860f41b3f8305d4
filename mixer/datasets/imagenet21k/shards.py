# SPDX-License-Identifier: Apache-2.0
"""Writes shards one by one, in any order and as often as interrupted."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from mixer.data import decode
from mixer.datasets import dedup
from mixer.datasets.imagenet21k import pool, progress
from mixer.errors import UserError

INCOMPLETE = "incomplete."


@dataclasses.dataclass(frozen=True)
class Contents:
  """What has become of the images of a shard.

  Attributes:
    written: the number of images in it.
    num_bytes: their size as records.
    unreadable: (file name, reason) of those that cannot be decoded.
    excluded: (file name, what it resembles) of those that other sets hold.
    file_bytes: the size of the file.
  """

  written: int
  num_bytes: int
  unreadable: list[tuple[str, str]]
  excluded: list[tuple[str, str]]
  file_bytes: int


@dataclasses.dataclass(frozen=True)
class _Task:
  """One shard: the rows [begin, end) of the index."""

  archive: Path
  index: Path
  begin: int
  end: int
  file: Path
  exclude: tuple[str, ...]


def features(label: tfds.features.ClassLabel) -> tfds.features.FeaturesDict:
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
  """Writes those of the shards that are not there yet.

  Args:
    archive: where the images lie.
    index: the .npy file of `archive.index`.
    files: one path for each shard; each takes an equal range of hashes.
    exclude: lists of hashes of images to leave out.
    workers: processes; each needs memory for a whole shard.

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
  line = progress.Line("Wrote", "shards", len(files), done)
  for images in pool.run(_write_shard, tasks, workers):
    line.add(images)
  return [_contents(file) for file in files]


def _sidecar(file: Path) -> Path:
  return file.with_name(f"{file.name}.json")


def _contents(file: Path) -> Contents | None:
  """Returns what is in a shard; None if it is not finished."""
  if not file.exists() or not _sidecar(file).exists():
    return None
  contents = Contents(**json.loads(_sidecar(file).read_text()))
  # A machine that lost power may have kept the name and not the bytes.
  return contents if contents.file_bytes == file.stat().st_size else None


def _write_shard(task: _Task) -> int:
  """Writes a shard and its sidecar; returns how many images it looked at."""
  rows = np.load(task.index, mmap_mode="r")[task.begin : task.end]
  unfinished = task.file.with_name(INCOMPLETE + task.file.name)
  # One record a group, as TFDS writes it: groups are read and unpacked whole.
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
    twin = _exclusions(task.exclude).find(image)
    if twin is not None:
      excluded.append((name, twin))
      continue
    record = _serialize(data, int(row["label"]), name)
    writer.write(record)
    written += 1
    num_bytes += len(record)
  writer.close()
  contents = Contents(
    written, num_bytes, unreadable, excluded, unfinished.stat().st_size
  )
  replace(_sidecar(task.file), json.dumps(dataclasses.asdict(contents)))
  unfinished.replace(task.file)
  return len(rows)


def _read(archive: Path, rows: np.ndarray) -> Iterator[bytes]:
  """Yields the bytes of each row, read in the order in which they lie."""
  images = [b""] * len(rows)
  file = os.open(archive, os.O_RDONLY)
  try:
    # The system would read on behind each image, for nothing.
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
  # A label is a number here: the names of the classes do not matter.
  anything = features(tfds.features.ClassLabel())
  return example_serializer.ExampleSerializer(anything.get_serialized_info())


def _serialize(image: bytes, label: int, file_name: str) -> bytes:
  example = {"image": image, "label": label, "file_name": file_name.encode()}
  # The order of a message's fields would differ from process to process.
  return (
    _serializer().get_tf_example(example).SerializeToString(deterministic=True)
  )


def replace(path: Path, text: str) -> None:
  """Writes a file such that it is never seen half written."""
  unfinished = path.with_name(INCOMPLETE + path.name)
  unfinished.write_text(text)
  unfinished.replace(path)
