# SPDX-License-Identifier: Apache-2.0
"""Index of the offsets of TFRecord files, which the format lacks.

A file is a chain of records: the length of the contents in 8 bytes, a checksum
of those in 4, the contents, a checksum of these in 4. The index is made once by
hopping over them, and kept in the user's cache: one array of offsets a split,
mapped into memory by every process that reads.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixer.cache import cache_folder
from mixer.data.sources.base import COPY_AGAIN
from mixer.data.sources.file_io import (
  fingerprint,
  is_remote,
  open_file,
  stat_files,
)
from mixer.errors import UserError

HEADER, FOOTER = 12, 4

_THREADS = 16
_SILENT_SECONDS = 3
_CHECKED_RECORDS = 4096


@dataclasses.dataclass(frozen=True)
class SplitFiles:
  """The record files of a whole split, as TFDS's metadata has them.

  Attributes:
    name: of the split.
    files: paths, in order.
    lengths: how many records each of them holds.
  """

  name: str
  files: tuple[str, ...]
  lengths: tuple[int, ...]

  def firsts(self) -> list[int]:
    """Returns the place of each file's first record in the index."""
    # Behind the records of each file stands where it ends.
    ends = itertools.accumulate(length + 1 for length in self.lengths)
    return [0, *ends][:-1]


class Index:
  """The offsets of a split's records; small when sent to another process.

  Attributes:
    fingerprint: of the files that it is the index of.
  """

  def __init__(self, version: str, path: Path | None, offsets: np.ndarray):
    """Takes the file in which the offsets lie, or None."""
    self.fingerprint = version
    self._path = path
    self._offsets = offsets

  def span(self, place: int) -> tuple[int, int]:
    """Returns where a record begins and ends in its file, with its frame."""
    begin, end = self._offsets[place : place + 2].tolist()
    return begin, end

  def __getstate__(self) -> dict[str, object]:
    # Many processes share one mapped file.
    kept = self._offsets if self._path is None else None
    return self.__dict__ | {"_offsets": kept}

  def __setstate__(self, state: dict[str, object]) -> None:
    self.__dict__.update(state)
    if self._offsets is None:
      self._offsets = _map(self._path)


def open_index(split: SplitFiles) -> Index:
  """Returns the index of a split's files from the cache, or makes it.

  Raises:
    UserError: a file is missing or damaged, or holds another number of records
      than TFDS's metadata says.
  """
  stats = stat_files(split.files)
  sizes = [size for size, _ in stats]
  version = fingerprint(stats)
  path = _cached_at(split, sizes)
  try:
    offsets = _map(path)
    if _is_valid(offsets, split, sizes):
      return Index(version, path, offsets)
  except (OSError, EOFError, ValueError):
    pass  # There is none, or it is damaged.
  # Unreadable folders have none, which is what glob says of them.
  left_behind = list(path.parent.glob(f"{split.name}.*.npy"))
  if left_behind:
    _say(
      f"The index of the TFRecord files of {split.name} no longer fits them:"
      " making it again."
    )
  offsets = _build(split, sizes)
  try:
    _write(path, offsets)
    for old in left_behind:
      if old != path:
        old.unlink(missing_ok=True)
    return Index(version, path, _map(path))
  except (OSError, ValueError) as error:
    _say_once(
      f"The index of TFRecord files cannot be kept in {path.parent.parent}"
      f" ({error}), and is made again at every start. Set MIXER_CACHE_DIR to a"
      " folder that can be written."
    )
    return Index(version, None, offsets)


def _cached_at(split: SplitFiles, sizes: Sequence[int]) -> Path:
  """Returns where the index of files of these sizes lies in the cache."""
  folder = os.path.dirname(split.files[0])
  if not is_remote(folder):
    folder = os.path.abspath(folder)
  names = [os.path.basename(file) for file in split.files]
  # Without times: hosts with copies of their own share one cache.
  name = f"{split.name}.{fingerprint(names, split.lengths, sizes)}.npy"
  return cache_folder("tfrecord_index") / fingerprint(folder) / name


def _map(path: Path) -> np.ndarray:
  # As a plain array: numpy.memmap takes several times as long for one element.
  return np.asarray(np.load(path, mmap_mode="r"))


def _write(path: Path, offsets: np.ndarray) -> None:
  """Writes a file that is never seen half written, whoever else writes it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.with_name(f"incomplete.{uuid.uuid4().hex}")
  try:
    with unfinished.open("xb") as file:
      np.save(file, offsets)
    unfinished.replace(path)
  finally:
    unfinished.unlink(missing_ok=True)


def _is_valid(offsets: np.ndarray, split: SplitFiles, sizes: list[int]) -> bool:
  """Returns whether an index is complete and matches the files on disk."""
  firsts = np.array(split.firsts())
  ends = firsts + split.lengths
  if (
    offsets.dtype != np.int64
    or offsets.shape != (ends[-1] + 1,)
    or offsets[firsts].any()
    or not np.array_equal(offsets[ends], sizes)
  ):
    return False
  if is_remote(split.files[0]):
    return True
  # Files of the same sizes may hold other records, or these in another order.
  checks = max(_CHECKED_RECORDS // len(split.files), 1)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    spans = [
      offsets[first : end + 1] for first, end in zip(firsts, ends, strict=True)
    ]
    sound = pool.map(
      _verify_offsets, split.files, spans, itertools.repeat(checks)
    )
    return all(sound)


def _verify_offsets(path: str, offsets: np.ndarray, checks: int) -> bool:
  """Returns whether a file has records at some of these offsets."""
  file = open_file(path)
  # From the end, which is what changes most easily.
  checks = min(checks, len(offsets) - 1)
  for i in np.linspace(len(offsets) - 2, 0, checks, dtype=int).tolist():
    begin, end = offsets[i : i + 2].tolist()
    length = end - begin - HEADER - FOOTER
    if file.read(begin, 8) != length.to_bytes(8, "little", signed=True):
      return False
  return True


def _build(split: SplitFiles, sizes: Sequence[int]) -> np.ndarray:
  """Scans all files, on threads because disks and buckets have latency."""
  begin = said = time.monotonic()
  parts = []
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    jobs = [
      pool.submit(_scan_offsets, *facts)
      for facts in zip(split.files, sizes, split.lengths, strict=True)
    ]
    try:
      for job in jobs:
        parts.append(job.result())
        if time.monotonic() - said > _SILENT_SECONDS:
          said = time.monotonic()
          _say(
            f"Making an index of the TFRecord files of {split.name}:"
            f" {len(parts)} of {len(jobs)} files in {said - begin:.0f} s."
          )
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise
  return np.concatenate(parts)


def _scan_offsets(path: str, size: int, expected: int) -> np.ndarray:
  """Returns where the records of a file begin, and its size, int64."""
  offsets, headers, offset = [], [], 0
  try:
    file = open_file(path)
    # Damage can look like any number of records.
    while offset < size and len(offsets) <= expected:
      header = file.read(offset, HEADER)
      offsets.append(offset)
      headers.append(header)
      offset += int.from_bytes(header[:8], "little") + HEADER + FOOTER
  except OSError as error:
    raise UserError(
      f"Cannot read {path}: {error.strerror or error}."
    ) from error
  damaged = np.flatnonzero(~_lengths_are_sound(b"".join(headers)))
  if damaged.size:
    record = int(damaged[0])
    raise UserError(
      f"{path} is damaged: at byte {offsets[record]}, where record {record}"
      f" should begin, there is none. {COPY_AGAIN}"
    )
  if offset > size:
    raise UserError(
      f"{path} was cut short: it ends at byte {size}, within record"
      f" {len(offsets) - 1}, which begins at byte {offsets[-1]}. {COPY_AGAIN}"
    )
  if offset < size or len(offsets) != expected:
    found = f"more than {expected}" if offset < size else len(offsets)
    raise UserError(
      f"{path} holds {found} records, but dataset_info.json beside it says"
      f" {expected}: they are not of the same data set, or the file was cut"
      f" short. {COPY_AGAIN}"
    )
  return np.array([*offsets, size], np.int64)


def _lengths_are_sound(headers: bytes) -> np.ndarray:
  """Checks the checksum of each whole header of 12 bytes; returns bool [n]."""
  number = len(headers) // HEADER
  rows = np.frombuffer(headers, np.uint8, number * HEADER)
  rows = rows.reshape(number, HEADER)
  crc = np.full(len(rows), 0xFFFFFFFF, np.uint32)
  table = _crc32c_table()
  for column in range(8):
    crc = table[(crc ^ rows[:, column]) & 0xFF] ^ (crc >> 8)
  crc = ~crc
  # TFRecord rotates the checksum and adds a constant.
  masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
  return masked == np.ascontiguousarray(rows[:, 8:]).view("<u4")[:, 0]


@functools.cache
def _crc32c_table() -> np.ndarray:
  table = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), 0)
  return table.astype(np.uint32)


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


@functools.cache
def _say_once(text: str) -> None:
  _say(text)
