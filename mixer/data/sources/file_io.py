# SPDX-License-Identifier: Apache-2.0
"""Files and folders, on a disk or in a bucket: lists and random access."""

import collections
import concurrent.futures
import contextlib
import functools
import os
import resource
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from etils import epath

from mixer.data.decode import SUFFIXES
from mixer.errors import (
  DatasetNotFoundError,
  UserError,
  format_list,
  nearest,
  notify,
)
from mixer.storage import is_in_bucket, storage_errors

# Of a thousand shards not all can stay open: many systems give a process 1,024
# descriptors.
MAX_OPEN = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

KNOWN = f"The suffixes of images are {' '.join(sorted(SUFFIXES))}."
if ".heic" not in SUFFIXES:
  KNOWN += " .heic and .heif need pip install pillow-heif."

# Names that systems leave among the user's.
_IGNORED = frozenset(
  {"@eaDir", "__MACOSX", "lost+found", "Thumbs.db", "desktop.ini"}
)


class RandomAccessFile:
  """File that many threads read at any offset; in a bucket one at a time.

  It is closed when the last thread that reads it has dropped it.
  """

  def __init__(self, path: str):
    self._path = path
    self._lock = threading.Lock() if is_in_bucket(path) else None
    with _os_errors(path):
      self._file = _open(path)
    if self._lock is None and hasattr(os, "posix_fadvise"):  # Linux
      # Else the system reads on beyond each record: the whole file, in effect.
      os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

  def read(self, offset: int, size: int) -> bytes:
    """Returns `size` bytes from `offset` on, fewer at the end of the file."""
    if self._lock is None:
      return os.pread(self._file.fileno(), size, offset)
    with self._lock, _os_errors(self._path):
      self._file.seek(offset)
      return self._file.read(size)

  def __del__(self):
    if hasattr(self, "_file"):  # it could be opened
      self._file.close()


def _open(path: str) -> IO[bytes]:
  if is_in_bucket(path):
    return epath.Path(path).open("rb")
  return open(path, "rb", buffering=0)


def read_file(path: str) -> bytes:
  """Returns the contents of a file; raises UserError if it cannot be read."""
  try:
    with _os_errors(path), _open(path) as file:
      return file.read()
  except OSError as error:
    raise UserError(
      f"Cannot read {path}: {error.strerror or error}. Mend its permissions, or"
      " bring it back: files must stay as they are while they are in use."
    ) from error


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
    if is_in_bucket(file):
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


class Entries(NamedTuple):
  """Contents of a folder: names of its folders, images and others, sorted.

  A folder with the suffix of an image is among the others, with a slash.
  """

  folders: list[str]
  images: list[str]
  others: list[str]


def is_image(name: str) -> bool:
  """Returns whether a visible file has the suffix of an image."""
  return os.path.splitext(name)[1].lower() in SUFFIXES and not is_hidden(name)


def is_hidden(name: str) -> bool:
  """Returns whether a file or folder is hidden or the system's."""
  return name.startswith(".") or name in _IGNORED


def scan(folder: str) -> Entries:
  """Lists a folder, also in a bucket, without what systems hide or leave in it.

  Raises:
    UserError: the folder cannot be listed, or has links that lead nowhere.
  """
  folders, images, others, dangling = [], [], [], []
  try:
    is_local = not is_in_bucket(folder)
    for entry in (
      os.scandir(folder) if is_local else epath.Path(folder).iterdir()
    ):
      name = entry.name
      if is_hidden(name):
        continue
      if is_local and entry.is_symlink() and not os.path.exists(entry.path):
        dangling.append(name)
      # A bucket takes long to tell folders from files.
      elif is_image(name) and (not is_local or entry.is_file()):
        images.append(name)
      elif is_image(name):  # or a pipe, whose reader would wait for ever
        others.append(f"{name}/" if entry.is_dir() else name)
      else:
        (folders if entry.is_dir() else others).append(name)
  except OSError as error:
    raise UserError(
      f"Cannot list {folder}: {error.strerror or error}. Check its permissions."
    ) from error
  if dangling:
    raise UserError(
      f"Links in {folder} lead nowhere: {format_list(sorted(dangling))}. Mend"
      " them or move them away."
    )
  return Entries(sorted(folders), sorted(images), sorted(others))


def scan_all(folders: Sequence[str]) -> list[Entries]:
  with concurrent.futures.ThreadPoolExecutor(32) as pool:
    return list(pool.map(scan, folders))


def count_suffixes(names: Sequence[str]) -> str:
  """Returns "30 .cr2, 2 without a suffix, 1 folder" for file names."""
  kinds = [
    "folder"
    if name.endswith("/")
    else os.path.splitext(name)[1].lower() or "without a suffix"
    for name in names
  ]
  counts = collections.Counter(kinds).most_common()
  return format_list([f"{n:,} {kind}" for kind, n in counts])


def describe_missing(given: str, path: str) -> str:
  """Returns a message about a path that is not there, with near names."""
  folder, name = os.path.split(os.path.abspath(path))
  if is_in_bucket(path):
    folder, name = os.path.split(path)
  if not epath.Path(folder).is_dir():
    return f"There is no {given}, nor a folder {folder}."
  names = sorted(x.name for x in epath.Path(folder).iterdir())
  shown = format_list(nearest(name, names, most=3) or names) or "nothing"
  return f"There is no {given}. In {folder} there is {shown}."


def compose(text: str) -> str:
  """Returns the one Unicode form in which names are compared."""
  return unicodedata.normalize("NFC", text)


@functools.cache  # once, although evaluators open the same folders
def report_left_out(place: str, names: tuple[str, ...], total: int) -> None:
  """Prints how many of all files in a place are no images, by their suffix."""
  if names:
    notify(
      f"{len(names):,} of {total:,} files in {place} are left out:"
      f" {count_suffixes(names)}. {KNOWN}"
    )
