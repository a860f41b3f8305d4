# SPDX-License-Identifier: Apache-2.0
"""Atomic writes: a reader sees the old file or the new one, never a part."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from mixer.errors import UserError

# Errors of a full or read-only disk; the system names no file with them.
DISK_ERRORS = errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS


class WriteError(OSError, UserError):
  """An error of the operating system, with the name of the user's file."""

  def __str__(self) -> str:
    return f"Cannot write {self.filename}: {self.strerror}."


def storage_path(path: str | os.PathLike) -> epath.Path:
  """Returns an absolute local path or a gs:// path, of epath.

  Raises:
    UserError: another kind of storage, for which Orbax would silently write a
      local folder of that name.
  """
  scheme, separator, _ = str(path).partition("://")
  if not separator:
    return epath.Path(path).resolve()
  if scheme != "gs":
    raise UserError(
      f"{path}: a run's folder is local or in a gs:// bucket, and nothing else "
      "is supported. Choose one of these."
    )
  import fsspec

  # Neither TensorFlow, nor cached listings: other processes write there, too.
  os.environ.setdefault("EPATH_USE_TF", "false")
  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
  return epath.Path(path)


def is_in_bucket(path: os.PathLike) -> bool:
  """Returns True for gs://, where nothing can be renamed as a whole."""
  return str(path).startswith("gs://")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
  """Replaces a file by renaming, when the block has ended without an error.

  Args:
    path: the file to replace or create.

  Yields:
    A temporary path in the same folder, with the same suffix, to write to.

  Raises:
    WriteError: the system refuses to write the file.
  """
  if is_in_bucket(path):
    yield path  # an object appears when it is closed
    return
  temporary = path.with_name(f"{path.stem}.partial{path.suffix}")
  try:
    yield temporary
    with temporary.open("rb") as file:
      os.fsync(file.fileno())
    temporary.replace(path)
  except OSError as error:
    is_full = error.filename is None and error.errno in DISK_ERRORS
    if not is_full and str(error.filename) != str(temporary):
      raise  # an error of something else in the block
    raise WriteError(error.errno, error.strerror, str(path)) from error
  finally:
    with contextlib.suppress(OSError):  # the first error is the one to report
      temporary.unlink(missing_ok=True)


def check_writable(file: str | os.PathLike, flag: str):
  """Checks, before long work begins, that a file can be written.

  Args:
    file: path as the user gave it.
    flag: name of the command-line flag that gave it.

  Raises:
    UserError: the file cannot be written.
  """
  path = Path(file).absolute()
  if not path.parent.is_dir():
    raise UserError(f"There is no folder for --{flag}={file}: make it first.")
  if path.is_dir():
    raise UserError(f"--{flag}={file} is a folder: name a file in it.")
  if not os.access(path.parent, os.W_OK):
    raise UserError(
      f"Cannot write to the folder of --{flag}={file}: choose another, or "
      "change its permissions."
    )
