# SPDX-License-Identifier: Apache-2.0
"""Random access to the records of ArrayRecord and TFRecord files.

A TFRecord file is a chain of records: the length of the contents in 8 bytes, a
checksum of those in 4, the contents, a checksum of these in 4. It has no index,
so that one is made once, by hopping over the records, and kept in the user's
cache: one array of offsets for each split, which every process that reads maps
into memory.
"""

import bisect
import concurrent.futures
import functools
import hashlib
import itertools
import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mixer.data.sources import COPY_AGAIN
from mixer.data.sources.file_io import MAX_OPEN, RandomAccessFile, stat_files
from mixer.errors import UserError, notify
from mixer.storage import cache_folder, is_in_bucket

HEADER, FOOTER = 12, 4

_THREADS = 16
_SECONDS_BETWEEN_REPORTS = 3


class Records(Sequence[bytes]):
  """The serialized examples of a split, by id; safe for many threads.

  Attributes:
    files: paths; a file that a sum of splits names twice is listed twice.
    skips: records of each file before the first one that belongs to the split.
    ends: examples up to the end of each file's part.
  """

  def __init__(self, instructions: Iterable):
    """Takes the file_instructions of a TFDS split."""
    instructions = list(instructions)
    self.files = [each.filename for each in instructions]
    self.skips = [each.skip for each in instructions]
    self.ends = [*itertools.accumulate(each.take for each in instructions)]

  def __len__(self) -> int:
    return self.ends[-1]

  def __getitem__(self, i: int) -> bytes | memoryview:
    return self._read(*self._find(i))

  def locate(self, i: int) -> str:
    """Returns the file and the number of an example's record, from 0."""
    file, record = self._find(i)
    return f"{self.files[file]}, record {record}"

  def _find(self, i: int) -> tuple[int, int]:
    """Maps an example's id to (number of its file, record in it)."""
    if not 0 <= i < len(self):
      raise IndexError(f"There is no example {i} of {len(self)}.")
    file = bisect.bisect_right(self.ends, i)
    begin = self.ends[file - 1] if file else 0
    return file, self.skips[file] + i - begin

  def _read(self, file: int, record: int) -> bytes | memoryview:
    """Reads a record of one of the files."""
    raise NotImplementedError


class ArrayRecords(Records):
  """Reads ArrayRecord files, which have an index of their own.

  array_record's data source keeps every file open; a thousand shards exceed the
  limit of many systems.
  """

  def __init__(self, instructions: Iterable):
    """Raises UserError if files are missing or in a bucket."""
    super().__init__(instructions)
    if is_in_bucket(self.files[0]):
      raise UserError(
        f"{self.files[0]} is ArrayRecord, which cannot be read from a bucket."
        " Mount the bucket as a folder (gs:// with gcsfuse), or prepare the"
        " data set as TFRecord."
      )
    self._version = _fingerprint(stat_files(self.files))

  def _read(self, file: int, record: int) -> bytes:
    path = self.files[file]
    try:
      return _open_array_record(path, self._version).read([record])[0]
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

  def __init__(self, instructions: Iterable, splits: Iterable):
    """Opens the indexes of the files.

    Args:
      instructions: the file_instructions of a TFDS split.
      splits: TFDS's whole splits, of which that is a part or a sum.

    Raises:
      UserError: a file is missing, damaged, or holds another number of records
        than TFDS's metadata says.
    """
    super().__init__(instructions)
    # Each file's index, and the place of its first record in it.
    places: dict[str, tuple[Path, int]] = {}
    for split in splits:
      files = [each.filename for each in split.file_instructions]
      lengths = [each.take for each in split.file_instructions]
      if {*files} & {*self.files}:
        index = open_index(split.name, files, lengths)
        # After the records of each file comes its size.
        ends = itertools.accumulate(length + 1 for length in lengths)
        for file, first in zip(files, [0, *ends], strict=False):
          places[file] = index, first
    self._places = [places[file] for file in self.files]

  def _read(self, file: int, record: int) -> memoryview:
    path = self.files[file]
    index, first = self._places[file]
    place = first + record
    begin, end = _offsets(index)[place : place + 2].tolist()
    length = end - begin - HEADER - FOOTER
    try:
      data = _open_tfrecord(path, index).read(begin, end - begin)
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
def _open_tfrecord(path: str, version: Path) -> RandomAccessFile:
  del version  # The same path may stand for another file later.
  return RandomAccessFile(path)


def open_index(
  split: str, files: Sequence[str], lengths: Sequence[int]
) -> Path:
  """Returns the file with the offsets of a split's records, int64.

  It has the offset of each record of the first file and that file's size, then
  those of the second, and so on.

  Args:
    split: name of the split.
    files: all its record files.
    lengths: number of records of each file.

  Raises:
    UserError: a file is missing, damaged, or of another length.
  """
  stats = stat_files(files)
  name = f"{split}.{_fingerprint(files, lengths, stats)}.npy"
  path = cache_folder("tfrecord_index") / name
  try:
    _offsets(path)
    return path
  except (OSError, EOFError, ValueError):
    pass  # There is none, or it is damaged.
  offsets = _scan(split, files, [size for size, _ in stats], lengths)
  try:
    _write(path, offsets)
  except OSError as error:
    folder = _temporary_folder(f"{path.parent} ({error.strerror})")
    path = Path(folder.name, name)
    _write(path, offsets)
  return path


@functools.cache
def _offsets(index: Path) -> np.ndarray:
  # As a plain array: numpy.memmap takes several times as long for one element.
  return np.asarray(np.load(index, mmap_mode="r"))


def _write(path: Path, offsets: np.ndarray) -> None:
  """Writes a file atomically, whoever else writes the same."""
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.with_name(f"incomplete.{uuid.uuid4().hex}")
  with unfinished.open("xb") as file:
    np.save(file, offsets)
  unfinished.replace(path)


@functools.cache
def _temporary_folder(reason: str) -> tempfile.TemporaryDirectory:
  notify(
    f"The index of TFRecord files cannot be kept in {reason}, and is made again"
    " at every start. Set MIXER_CACHE_DIR to a folder that can be written."
  )
  return tempfile.TemporaryDirectory(prefix="tfrecord_index.")


def _scan(
  split: str, files: Sequence[str], sizes: list[int], lengths: Sequence[int]
) -> np.ndarray:
  """Scans all files, on threads because disks and buckets have latency."""
  parts = []
  begin = reported = time.monotonic()
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for part in pool.map(_scan_file, files, sizes, lengths):
      parts.append(part)
      now = time.monotonic()
      if now - reported > _SECONDS_BETWEEN_REPORTS:
        reported = now
        notify(
          f"Making an index of the TFRecord files of {split}: {len(parts)} of"
          f" {len(files)} files in {now - begin:.0f} s."
        )
  return np.concatenate(parts)


def _scan_file(path: str, size: int, expected: int) -> np.ndarray:
  """Returns the offsets of a file's records, and its size, int64."""
  offsets, offset = [], 0
  try:
    file = RandomAccessFile(path)
    # Damage can look like any number of records.
    while offset < size and len(offsets) <= expected:
      offsets.append(offset)
      length = int.from_bytes(file.read(offset, 8), "little")
      offset += length + HEADER + FOOTER
  except OSError as error:
    raise UserError(
      f"Cannot read {path}: {error.strerror or error}."
    ) from error
  if offset > size:
    raise UserError(
      f"{path} is damaged or was cut short: it ends at byte {size}, within"
      f" record {len(offsets) - 1}, which begins at byte {offsets[-1]}."
      f" {COPY_AGAIN}"
    )
  if offset < size or len(offsets) != expected:
    number = f"more than {expected}" if offset < size else len(offsets)
    raise UserError(
      f"{path} holds {number} records, but dataset_info.json next to it says"
      f" {expected}: they are not of the same data set, or the file is damaged."
      f" {COPY_AGAIN}"
    )
  return np.array([*offsets, size], np.int64)


def _fingerprint(*facts: object) -> str:
  """Returns a hash of the properties of some files."""
  return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
