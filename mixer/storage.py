# SPDX-License-Identifier: Apache-2.0
"""Storage: local folders and buckets (gs://), atomic writes, the user's cache.

Paths are those of etils.epath, which reads and writes a bucket through gcsfs.
While a bucket cannot be reached, a run trains on, and gcsfs and TensorStore
repeat each request for half a minute or longer. A periodic upload of metrics
that fails is left to the next one, a checkpoint that fails in the background to
the next checkpoint. Failures that the run waits for end it with RetryableError:
metrics before a checkpoint, the second checkpoint in a row, results.
"""

import contextlib
import errno
import importlib.util
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from etils import epath

from mixer.errors import RetryableError, UserError

# Without TensorFlow, if possible: etils decides at its first use.
if importlib.util.find_spec("gcsfs"):
  os.environ.setdefault("EPATH_USE_TF", "false")

# Errors of a full or read-only disk; their OSError has no filename.
DISK_ERRORS = errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS


def storage_path(path: str | os.PathLike) -> epath.Path:
  """Returns an absolute local path, or one of a bucket.

  Raises:
    UserError: another kind of storage, for which Orbax would silently write a
      local folder of that name; or the packages for buckets are missing.
  """
  url = re.match(r"(\w+):(/+)([^/]*)", os.fspath(path))
  if url is None:
    return epath.Path(Path(os.path.expanduser(path)).absolute())
  scheme, slashes, bucket = url.groups()
  if scheme != "gs" or slashes != "//" or not bucket:
    raise UserError(
      f"{path}: a folder is local, such as /data, or in a bucket of Google "
      "Cloud Storage, gs://BUCKET/DIR. Nothing else is supported."
    )
  # Experimental, and it would ask for the bucket's type at every call.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  try:
    import fsspec
    import gcsfs  # noqa: F401
  except ImportError as error:
    raise UserError(
      f"{path} needs the packages for buckets: pip install gcsfs"
    ) from error
  # It logs the traceback of each error that it also raises.
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
  # No cached listings: other processes write there, too.
  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
  return epath.Path(path)


def is_in_bucket(path: str | os.PathLike) -> bool:
  """Returns True for gs://, where nothing can be appended or renamed."""
  return os.fspath(path).startswith("gs://")


@contextlib.contextmanager
def local_copy(path: epath.Path | Path) -> Iterator[Path]:
  """Yields a local file with the contents and the name of `path`."""
  if not is_in_bucket(path):
    yield Path(path)
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder) / path.name
    with path.open("rb") as source, copy.open("wb") as target:
      shutil.copyfileobj(source, target, 2**20)
    yield copy


@contextlib.contextmanager
def storage_errors(place: str | os.PathLike | None) -> Iterator[None]:
  """Turns errors of a full disk and of a bucket into messages for the user.

  Args:
    place: the user's name for the folder or file.

  Raises:
    UserError: the user must change something.
    RetryableError: the bucket cannot be reached.
  """
  try:
    yield
  except Exception as error:
    if (known := explain(error, place or "")) is None:
      raise
    raise known from error


def explain(error: Exception, place: str | os.PathLike) -> UserError | None:
  """Returns the message for an error of storage; None for any other."""
  if isinstance(error, OSError) and error.errno in DISK_ERRORS:
    # Files for a bucket are written on the local disk first.
    disk = tempfile.gettempdir() if is_in_bucket(place) else place
    return UserError(
      f"Cannot write to {error.filename or disk}: {error.strerror}. Free some "
      "space, or make it writable, and start the same command again."
    )
  if isinstance(error, UserError) or not is_in_bucket(place):
    return None
  import google.auth.exceptions as auth

  bucket = os.fspath(place).split("/")[2]
  code = str(getattr(error, "code", ""))  # of HTTP
  lacks_credentials = isinstance(
    error, (auth.DefaultCredentialsError, auth.RefreshError)
  )
  if lacks_credentials or code == "401":
    return UserError(
      f"{place}: there are no valid credentials for the bucket. Log in with "
      "gcloud auth application-default login, or give the service account of "
      "this machine access."
    )
  if code == "403" or str(error).startswith("Forbidden"):
    return UserError(
      f"{place}: permission denied. Ask the owner of gs://{bucket} for the "
      "role Storage Object User, or name another bucket."
    )
  if _is_transient(error, code):
    reason = str(error).partition("\n")[0][:200] or type(error).__name__
    return RetryableError(
      f"{place} cannot be reached ({reason}). Nothing that was saved is lost: "
      "start the same command again."
    )
  return None


def _is_transient(error: Exception, code: str) -> bool:
  """Returns True if a request to a bucket failed, and may succeed later."""
  import aiohttp
  import google.api_core.exceptions as api
  import google.auth.exceptions as auth
  import requests

  failed = (
    aiohttp.ClientError,
    api.RetryError,
    auth.TransportError,
    requests.RequestException,
    TimeoutError,
  )
  # TensorStore raises ValueError with the status in its text.
  statuses = "UNAVAILABLE", "DEADLINE_EXCEEDED", "Error connecting"
  return (
    isinstance(error, failed)
    or re.fullmatch(r"408|429|5\d\d", code) is not None
    or isinstance(error, ValueError)
    and any(status in str(error) for status in statuses)
  )


def make_folder(workdir: str | os.PathLike | None) -> epath.Path:
  """Makes a run's folder and checks that it can be written to.

  Raises:
    UserError: none is given, or it cannot be written to.
    RetryableError: its bucket cannot be reached.
  """
  if not workdir:
    raise UserError("Name the run's folder: --workdir=DIR.")
  path = storage_path(workdir)
  # A unique name, because other hosts may do the same at the same time.
  probe = path / f".writable_{os.urandom(8).hex()}"
  with storage_errors(workdir):
    try:
      path.mkdir(parents=True, exist_ok=True)
      probe.write_text("")
      probe.unlink()
    except OSError as error:
      if is_in_bucket(path):
        if not isinstance(error, FileNotFoundError):
          raise
        raise UserError(
          f"{workdir}: there is no bucket {path.parts[2]}. Make it, or mend "
          "the name."
        ) from error
      raise UserError(
        f"Cannot write to --workdir={workdir} ({error.strerror}): choose "
        "another folder, or change its permissions."
      ) from error
  return path


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


def write_text(path: epath.Path | Path, text: str) -> None:
  """Replaces a file as a whole by text; see `atomic_write`."""
  with atomic_write(path) as temporary:
    temporary.write_text(text)


def check_output(
  file: str | os.PathLike,
  flag: str,
  ours: bytes,
  *,
  suffixes: Sequence[str] = (),
  inputs: Iterable[str | os.PathLike] = (),
) -> Path:
  """Checks, before long work begins, that a file can be written or replaced.

  Args:
    file: path as the user gave it; "~" is the home folder.
    flag: name of the command-line flag or argument that gave it.
    ours: pattern of the beginning of files that this project has written; no
      other file is replaced.
    suffixes: the allowed ones, in small letters; none for any.
    inputs: files that are read.

  Returns:
    The path.

  Raises:
    UserError: the file cannot be written, or holds something else.
  """
  if is_in_bucket(file):
    raise UserError(f"{flag}={file} must be a local file: copy it yourself.")
  path = Path(os.path.expanduser(file))
  if path.exists() and not path.is_file():
    raise UserError(f"{flag}={file} is a folder or a device: name a file.")
  if suffixes and path.suffix.lower() not in suffixes:
    raise UserError(f"{flag}={file} must end in {' or '.join(suffixes)}.")
  if not path.parent.is_dir():
    raise UserError(f"There is no folder for {flag}={file}: make it first.")
  if not os.access(path.parent, os.W_OK):
    raise UserError(
      f"Cannot write to the folder of {flag}={file}: choose another, or "
      "change its permissions."
    )
  if not path.exists():
    return path
  for each in map(os.path.expanduser, inputs):
    if os.path.exists(each) and path.samefile(each):
      raise UserError(f"{flag}={file} is an input, {each}: name another file.")
  with path.open("rb") as existing:
    content = existing.read(2**20)
    existing.seek(max(2**20, path.stat().st_size - 2**20))
    content += existing.read()
  if content and not re.match(ours, content, re.DOTALL):
    raise UserError(
      f"{flag}={file} is there already, and this command has not written it: "
      "name another file, or move it away."
    )
  return path


def read_lines(file: str | os.PathLike, described: str) -> list[str]:
  """Returns the lines of a user's list, stripped, without the empty ones.

  Raises:
    UserError: the file, `described` so, cannot be read, or is not UTF-8.
  """
  try:
    # read_text of epath ignores the encoding.
    text = epath.Path(file).expanduser().read_bytes().decode("utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
    raise UserError(f"Cannot read {described}: {reason}.") from error
  return [line.strip() for line in text.splitlines() if line.strip()]


def cache_folder(subject: str) -> Path:
  """Returns the folder of a subject in the user's cache; it may not exist yet.

  $MIXER_CACHE_DIR, else mixer in $XDG_CACHE_HOME, else ~/.cache/mixer.
  """
  cache = os.environ.get("MIXER_CACHE_DIR")
  if not cache:
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = os.path.join(user, "mixer")
  return Path(os.path.expanduser(cache)) / subject
