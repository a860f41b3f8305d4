# SPDX-License-Identifier: Apache-2.0
"""Random access to the records of ArrayRecord and TFRecord files."""

import abc
import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

from mixer.data.sources import tfrecord_index
from mixer.data.sources.base import COPY_AGAIN
from mixer.data.sources.file_io import (
  MAX_OPEN,
  LocalFile,
  RemoteFile,
  fingerprint,
  is_remote,
  open_file,
  stat_files,
)
from mixer.data.sources.tfrecord_index import FOOTER, HEADER, SplitFiles
from mixer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Shards:
  """Maps an example of a split to a file and a record in it.

  Attributes:
    files: paths; a file that a sum of splits names twice is listed twice.
    skips: records of each file before the first one that belongs to the split.
    ends: examples up to the end of each window.
  """

  files: tuple[str, ...]
  skips: tuple[int, ...]
  ends: tuple[int, ...]

  @classmethod
  def of(cls, instructions: Iterable) -> "Shards":
    """Creates it from the file_instructions of a TFDS split."""
    instructions = list(instructions)
    return cls(
      files=tuple(each.filename for each in instructions),
      skips=tuple(each.skip for each in instructions),
      ends=tuple(itertools.accumulate(each.take for each in instructions)),
    )

  def find(self, i: int) -> tuple[int, int]:
    """Returns (which of `files`, record in it) for an example."""
    if not 0 <= i < self.ends[-1]:
      raise IndexError(f"There is no example {i} of {self.ends[-1]}.")
    file = bisect.bisect_right(self.ends, i)
    begin = self.ends[file - 1] if file else 0
    return file, self.skips[file] + i - begin


class Records(Sequence[bytes], abc.ABC):
  """The serialized examples of a split, by id; safe for many threads."""

  def __init__(self, shards: Shards):
    self.shards = shards

  def __len__(self) -> int:
    return self.shards.ends[-1]

  def __getitem__(self, i: int) -> bytes | memoryview:
    return self._read(*self.shards.find(i))

  def locate(self, i: int) -> str:
    """Returns the file and the number of an example's record, from 0."""
    file, record = self.shards.find(i)
    return f"{self.shards.files[file]}, record {record}"

  @abc.abstractmethod
  def _read(self, file: int, record: int) -> bytes | memoryview:
    """Reads a record of one of the shards' files."""


class ArrayRecords(Records):
  """Reads ArrayRecord files, which have an index of their own.

  array_record's data source keeps every file open; a thousand shards exceed the
  limit of many systems.
  """

  def __init__(self, shards: Shards):
    """Raises UserError if files are missing or in a bucket."""
    super().__init__(shards)
    for file in shards.files:
      if is_remote(file):
        raise UserError(
          f"{file} is ArrayRecord, which cannot be read from a bucket. Mount"
          " the bucket as a folder (gs:// with gcsfuse), or prepare the data"
          " set as TFRecord."
        )
    self._fingerprint = fingerprint(stat_files(shards.files))

  def _read(self, file: int, record: int) -> bytes:
    path = self.shards.files[file]
    try:
      return _open_array_record(path, self._fingerprint).read([record])[0]
    except (RuntimeError, IndexError) as error:
      reason = str(error).partition(";")[0].partition("\n")[0]
      raise UserError(
        f"Cannot read {path}, record {record} ({reason}): the file is missing"
        f" or damaged. {COPY_AGAIN}"
      ) from error


@functools.lru_cache(MAX_OPEN)
def _open_array_record(path: str, version: str):
  """Opens a file; it is closed when its last reader drops it."""
  from array_record.python import array_record_module

  del version  # The same path may stand for another file later.
  # No reading ahead: the next record asked for is somewhere else.
  return array_record_module.ArrayRecordReader(
    path,
    options="readahead_buffer_size:0,max_parallelism:0",
    file_reader_buffer_size=32768,
  )


class TFRecords(Records):
  """Reads TFRecord files by an index of their offsets.

  The checksum of the contents is not verified, because that would cost too
  much time. The length before each record reveals a replaced or truncated file.
  """

  def __init__(self, shards: Shards, splits: Iterable[SplitFiles]):
    """Opens the index of every base split with files in `shards`.

    Raises:
      UserError: a file is missing, damaged or not as TFDS describes it.
    """
    super().__init__(shards)
    splits = list(splits)
    self._indexes = [tfrecord_index.open_index(split) for split in splits]
    places = {
      file: (which, first)
      for which, split in enumerate(splits)
      for file, first in zip(split.files, split.firsts(), strict=True)
    }
    # Of each file, its index and its first place in it.
    self._places = [places[file] for file in shards.files]

  def _read(self, file: int, record: int) -> memoryview:
    path = self.shards.files[file]
    which, first = self._places[file]
    index = self._indexes[which]
    begin, end = index.span(first + record)
    length = end - begin - HEADER - FOOTER
    try:
      data = _open_tfrecord(path, index.fingerprint).read(begin, end - begin)
    except OSError as error:
      raise UserError(
        f"Cannot read {path}, record {record}: {error.strerror or error}."
        f" {COPY_AGAIN}"
      ) from error
    if data[:8] != length.to_bytes(8, "little") or len(data) != end - begin:
      raise UserError(
        f"{path} has changed since it was opened: there is no record of"
        f" {length} bytes at byte {begin} any more (record {record}). Start"
        f" again. If that does not help: {COPY_AGAIN}"
      )
    # A view, because a copy costs more than parsing.
    return memoryview(data)[HEADER:-FOOTER]


@functools.lru_cache(MAX_OPEN)
def _open_tfrecord(path: str, version: str) -> LocalFile | RemoteFile:
  del version  # The same path may stand for another file later.
  return open_file(path)
