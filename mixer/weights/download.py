# SPDX-License-Identifier: Apache-2.0
"""Downloads of published files into the user's cache.

Mirrors are tried in order. An interrupted download resumes, which pooch does
not offer: files have up to several GiB. Size and sha256 are compared with the
published ones, as far as these are known. Repositories of the Hugging Face Hub
("hf:OWNER/NAME") are left to its client, which keeps a cache of its own.
"""

import contextlib
import fcntl
import hashlib
import http.client
import importlib.util
import re
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from mixer.errors import UserError, notify
from mixer.storage import DISK_ERRORS, cache_folder
from mixer.weights.zoo import Mirror, Published

HUB = "hf:"  # prefix of the names of repositories
_HUB_FILES = "*.safetensors", "weights.npz", "*.json", "classes.txt"
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 2**20  # bytes
_MAX_FRUITLESS = 2  # attempts in a row that bring nothing, before giving up
_UNITS = {"MiB": 2**20, "GiB": 2**30}


class Unavailable(Exception):
  """A mirror does not give the file; the message says why."""


def fetch(published: Published, cache: str | None = None) -> Path:
  """Returns the path of published weights in the cache; downloads if needed.

  Args:
    published: an entry of the zoo.
    cache: folder of all downloaded weights; None for weights/ in the user's
      cache.

  Raises:
    UserError: no mirror gives the file, the disk is full, or the cache holds
      another file in its place.
  """
  folder = Path(cache).expanduser() if cache else cache_folder("weights")
  if (path := _find_cached(published, folder)) is not None:
    return path
  lock = folder / f"{published.name}.lock"
  try:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:  # unlocked when the process ends
      notify(f"Fetching {published.name}, or waiting for a process that does.")
      fcntl.flock(file, fcntl.LOCK_EX)
      return _find_cached(published, folder) or _download(published, folder)
  except OSError as error:
    raise UserError(
      f"Cannot write to {lock.parent} ({error.strerror or error}): make room "
      "there, or name another folder with the environment variable "
      "MIXER_CACHE_DIR."
    ) from error


def _cached_path(published: Published, mirror: Mirror, folder: Path) -> Path:
  return folder / f"{published.name}{mirror.suffix}"


def _find_cached(published: Published, folder: Path) -> Path | None:
  """Returns the file in the cache, or None.

  Raises:
    UserError: it is not the published file.
  """
  for mirror in published.mirrors:
    path = _cached_path(published, mirror, folder)
    if path.exists():
      if difference := _difference(path, mirror):
        raise UserError(
          f"{path} is not the file that was published: {difference}. Move it "
          "away and give the same command again, or copy all of "
          f"{mirror.url} there."
        )
      return path
  return None


def _download(published: Published, folder: Path) -> Path:
  """Downloads the file from the first mirror that gives it."""
  failures = []
  for mirror in published.mirrors:
    path = _cached_path(published, mirror, folder)
    try:
      if mirror.suffix == ".pth" and not importlib.util.find_spec("torch"):
        raise Unavailable("PyTorch, which reads it, is not installed")
      partial = path.with_name(f"{path.name}.partial")
      _download_resumably(mirror.url, partial, published.name + mirror.suffix)
      if difference := _difference(partial, mirror):
        partial.unlink()
        raise Unavailable(difference)
    except Unavailable as error:
      failures.append(f"  {mirror.url}\n    {error}")
      notify(f"{mirror.url}: {error}.")
      continue
    partial.replace(path)
    return path
  tried = "\n".join(failures)
  path = _cached_path(published, published.mirrors[0], folder)
  raise UserError(
    f"{published.name} could not be fetched. Download one of these elsewhere, "
    f"copy it to {path} (with its own file extension), and give the same "
    f"command again:\n{tried}"
  )


def _download_resumably(url: str, partial: Path, title: str) -> None:
  """Downloads a file; reconnects as long as that brings more of it.

  Continues an earlier partial download: published files do not change.

  Args:
    url: of http or https.
    partial: path to write to.
    title: of the progress bar.

  Raises:
    Unavailable: the server refuses, or cannot be reached.
    OSError: the disk is full.
  """
  fruitless = 0
  while True:
    size = _size(partial)
    try:
      return _transfer(url, partial, title)
    except urllib.error.HTTPError as error:
      error.close()
      if error.code == 416:  # no range left to send
        return None
      raise Unavailable(f"{error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
      if getattr(error, "errno", None) in DISK_ERRORS:
        raise
      fruitless = 0 if _size(partial) > size else fruitless + 1
      if fruitless == _MAX_FRUITLESS:
        raise Unavailable(_explain(error)) from error


def _transfer(url: str, partial: Path, title: str) -> None:
  """Downloads a file, or the rest of it; OSError if the connection breaks."""
  request = urllib.request.Request(url, headers={"User-Agent": "mixer"})
  if begin := _size(partial):
    request.add_header("Range", f"bytes={begin}-")
  with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
    if response.headers.get_content_type() == "text/html":
      raise Unavailable("a web page came instead of the file")
    if response.status != 206:
      begin = 0  # the server sends all of it
    total = None if response.length is None else begin + response.length
    with (
      partial.open("ab" if begin else "wb") as file,
      tqdm.wrapattr(
        file,
        "write",
        total=total,
        initial=begin,
        desc=title,
        disable=None,  # unless on a terminal
      ) as output,
    ):
      shutil.copyfileobj(response, output, _CHUNK)
  if total is not None and _size(partial) != total:
    raise ConnectionError(
      f"the connection ended at byte {_size(partial):,} of {total:,}"
    )


def _difference(path: Path, mirror: Mirror) -> str:
  """Describes how a file differs from the published one; "" if it does not."""
  if mirror.size is not None:
    number, unit = mirror.size.split()
    decimals = len(number.partition(".")[2])
    size = path.stat().st_size / _UNITS[unit]
    # Listings round, in an unknown direction.
    if abs(size - float(number)) >= 10**-decimals:
      return f"it has {size:.{decimals}f} {unit} instead of {mirror.size}"
  if mirror.sha256 is not None:
    with path.open("rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(mirror.sha256):
      begin = digest[: len(mirror.sha256)]
      return f"its sha256 begins with {begin} instead of {mirror.sha256}"
  return ""


def _size(path: Path) -> int:
  return path.stat().st_size if path.exists() else 0


def _explain(error: Exception) -> str:
  reason = getattr(error, "reason", error)
  if isinstance(reason, socket.gaierror):
    return "no network, or no such host"
  if isinstance(reason, TimeoutError):
    return f"no answer within {_TIMEOUT} s"
  return str(reason) or type(reason).__name__


def fetch_from_hub(name: str) -> Path:
  """Returns a local copy of a repository, "hf:OWNER/NAME[@REVISION]".

  Raises:
    UserError: the client is not installed, or does not get the repository.
  """
  repository, _, revision = name.removeprefix(HUB).partition("@")
  with open_hub(repository) as hub:
    folder = hub.snapshot_download(
      repository, revision=revision or None, allow_patterns=_HUB_FILES
    )
  return Path(folder)


@contextlib.contextmanager
def open_hub(repository: str) -> Iterator[ModuleType]:
  """Yields the hub's client; its errors become messages for the user."""
  if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
    raise UserError(
      f"{repository!r} is not a repository of the hub: write OWNER/NAME, such "
      "as me/pets."
    )
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(
      f"{repository} needs the hub's client: pip install huggingface_hub"
    ) from error
  try:
    yield huggingface_hub
  except (OSError, ValueError, huggingface_hub.errors.HTTPError) as error:
    place = f"{repository} on {huggingface_hub.constants.ENDPOINT}"
    raise UserError(f"{place}: {' '.join(str(error).split())[:300]}") from error
