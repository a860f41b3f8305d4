# SPDX-License-Identifier: Apache-2.0
"""Atomic writes: a reader sees the old file or the new one, never a part."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from mixer.errors import UserError
from mixer.storage import DISK_ERRORS, is_in_bucket


class WriteError(OSError, UserError):
  """An error of the operating system, with the name of the user's file."""

  def __str__(self) -> str:
    return f"Cannot write {self.filename}: {self.strerror}."


@contextlib.contextmanager
def atomic_write(path: epath.Path | Path) -> Iterator[Path]:
  """Replaces a file as a whole, when the block has ended without an error.

  Args:
    path: the file to replace or create, on a disk or in a bucket.

  Yields:
    A temporary local path with the same suffix, to write to. On a disk it is in
    the same folder, and renamed; for a bucket it is uploaded.

  Raises:
    WriteError: the system refuses to write the file.
  """
  if is_in_bucket(path):
    with tempfile.TemporaryDirectory() as folder:
      temporary = Path(folder) / path.name
      yield temporary
      epath.Path(temporary).copy(path, overwrite=True)
    return
  temporary = Path(path.with_name(f"{path.stem}.partial{path.suffix}"))
  try:
    yield temporary
    with temporary.open("rb") as file:
      os.fsync(file.fileno())
    temporary.replace(path)
  except OSError as error:
    is_disk_error = error.filename is None and error.errno in DISK_ERRORS
    if not is_disk_error and str(error.filename) != str(temporary):
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
  if is_in_bucket(file):
    raise UserError(f"--{flag}={file} must be a local file: copy it yourself.")
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
