# SPDX-License-Identifier: Apache-2.0
"""Files read at any offset by many threads, on a disk or in a bucket."""

import concurrent.futures
import contextlib
import os
import resource
import threading
from collections.abc import Iterator, Sequence

from etils import epath

from mixer.data.sources import DatasetNotFoundError
from mixer.errors import UserError
from mixer.storage import storage_errors

# Of a thousand shards not all can stay open: many systems give a process 1,024
# descriptors.
MAX_OPEN = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class LocalFile:
  """Closed when the last thread that reads it has forgotten it."""

  def __init__(self, path: str):
    self._descriptor = os.open(path, os.O_RDONLY)
    if hasattr(os, "posix_fadvise"):  # Linux
      # Else the system reads on beyond each record: the whole file, in effect.
      os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

  def read(self, offset: int, size: int) -> bytes:
    """Returns `size` bytes from `offset` on, fewer at the end of the file."""
    return os.pread(self._descriptor, size, offset)

  def __del__(self):
    # Nothing to close where opening failed.
    if hasattr(self, "_descriptor"):
      os.close(self._descriptor)


class RemoteFile:
  """File in a bucket, read by one thread at a time."""

  def __init__(self, path: str):
    self._path = path
    self._lock = threading.Lock()
    self._stack = contextlib.ExitStack()
    with _os_errors(path):
      self._file = self._stack.enter_context(epath.Path(path).open("rb"))

  def read(self, offset: int, size: int) -> bytes:
    with self._lock, _os_errors(self._path):
      self._file.seek(offset)
      return self._file.read(size)

  def __del__(self):
    self._stack.close()


def open_file(path: str) -> LocalFile | RemoteFile:
  return RemoteFile(path) if is_remote(path) else LocalFile(path)


def read_file(path: str) -> bytes:
  """Returns the contents of a file; raises UserError if it cannot be read."""
  try:
    if is_remote(path):
      with _os_errors(path):
        return epath.Path(path).read_bytes()
    with open(path, "rb") as file:
      return file.read()
  except OSError as error:
    raise UserError(
      f"Cannot read {path}: {error.strerror or error}. Mend its permissions, or"
      " bring it back: files must stay as they are while they are in use."
    ) from error


def is_remote(path: str | os.PathLike) -> bool:
  """Returns whether a path is in a bucket, which system calls cannot read."""
  return "://" in os.fspath(path)


def stat_files(files: Sequence[str]) -> list[tuple[int, int]]:
  """Returns (size, time of change) of each file; the time is 0 in a bucket.

  Raises:
    DatasetNotFoundError: files are missing; shows the first of them.
  """
  with concurrent.futures.ThreadPoolExecutor(32) as pool:
    stats = list(pool.map(_stat, files))
  missing = [file for file, stat in zip(files, stats, strict=True) if not stat]
  if missing:
    raise DatasetNotFoundError(
      f"{len(missing)} of {len(files)} record files are missing, the first is"
      f" {missing[0]}. Copy the missing ones again, or move the folder away and"
      " prepare the data set again."
    )
  return stats


def _stat(file: str) -> tuple[int, int] | None:
  try:
    if is_remote(file):
      return epath.Path(file).stat().length, 0
    stat = os.stat(file)
  except FileNotFoundError:
    return None
  return stat.st_size, stat.st_mtime_ns


@contextlib.contextmanager
def _os_errors(path: str) -> Iterator[None]:
  """Turns unknown errors of libraries for buckets into OSErrors."""
  try:
    with storage_errors(path):
      yield
  except (OSError, UserError):
    raise
  except Exception as error:
    raise OSError(str(error)) from error
