# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from mixer.errors import UserError

# What a disk that takes no more answers; it then names no file.
DISK = errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS


class NotWritten(OSError, UserError):
  """What the system answered, with the file that the user has named."""

  def __str__(self) -> str:
    return f"Cannot write {self.filename}: {self.strerror}."


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
  """Yields where to write, so that a kill leaves the old file or the new.

  Args:
    path: of the file; it is replaced when the block has ended without an error.

  Yields:
    A path beside it, with the same suffix.

  Raises:
    NotWritten: the system refuses it.
  """
  aside = path.with_name(f"{path.stem}.partial{path.suffix}")
  try:
    yield aside
    with aside.open("rb") as file:
      os.fsync(file.fileno())
    aside.replace(path)
  except OSError as error:
    is_full = error.filename is None and error.errno in DISK
    if not is_full and str(error.filename) != str(aside):
      raise  # of something else that the block does
    raise NotWritten(error.errno, error.strerror, str(path)) from error
  finally:
    with contextlib.suppress(OSError):  # whatever it was, is told already
      aside.unlink(missing_ok=True)


def check_place(file: str | os.PathLike, flag: str):
  """Raises UserError, before what takes long, if a file cannot be written.

  Args:
    file: as the user gave it.
    flag: by which.
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
