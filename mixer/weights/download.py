# SPDX-License-Identifier: Apache-2.0
"""Published files: from the cache, else from the first mirror that has them.

Next to a file in the cache lies its sha256, in the format of sha256sum, to
detect later damage. An interrupted download goes on where it was.
"""

import contextlib
import fcntl
import hashlib
import http.client
import importlib.util
import json
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from mixer.cache import cache_folder
from mixer.errors import UserError
from mixer.weights.published import Mirror, Published

_UNITS = {"MiB": 2**20, "GiB": 2**30}
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 2**20
_FRUITLESS = 2  # attempts in a row that bring nothing, before giving up


class Unavailable(Exception):
  """A mirror does not give the file; says why."""


def fetch(published: Published, cache: str | None = None) -> Path:
  """Returns the file of published weights, which is fetched if need be.

  Args:
    published: from the zoo.
    cache: the folder of all fetched weights; None: weights in the user's.

  Raises:
    UserError: no mirror gives it, or it has changed since it was fetched.
  """
  folder = Path(cache).expanduser() if cache else cache_folder("weights")
  if (path := _find(published, folder)) is not None:
    return path
  stem = folder / published.name
  try:
    stem.parent.mkdir(parents=True, exist_ok=True)
    with _locked(stem.with_name(f"{stem.name}.lock"), published.name):
      # It may have come while another process held the lock.
      return _find(published, folder) or _fetch(published, folder)
  except OSError as error:
    raise UserError(
      f"Cannot write to {stem.parent} ({error.strerror or error}): name "
      "another folder with the environment variable MIXER_CACHE_DIR."
    ) from error


def _place(published: Published, mirror: Mirror, folder: Path) -> Path:
  return folder / f"{published.name}{mirror.suffix}"


def _find(published: Published, folder: Path) -> Path | None:
  """The file in the cache.

  Raises:
    UserError: it differs from the fetched or from the published file.
  """
  for mirror in published.mirrors:
    path = _place(published, mirror, folder)
    if not path.exists():
      continue
    record = _record(path)
    digest = _digest(path)
    if record.exists():
      if record.read_text().split()[:1] != [digest]:
        raise UserError(
          f"{path} has changed since it was fetched, or {record.name} beside "
          "it has: delete both, and give the same command again."
        )
    elif wrong := _wrong(path, mirror, digest):  # brought here by hand
      raise UserError(
        f"{path} is not the file that was published: {wrong}. Delete it, and "
        f"bring {mirror.url} in whole."
      )
    else:
      with contextlib.suppress(OSError):  # of a cache that others keep
        _write_record(path, digest)
    return path
  return None


def _fetch(published: Published, folder: Path) -> Path:
  failures = []
  for mirror in published.mirrors:
    path = _place(published, mirror, folder)
    if mirror.suffix == ".pth" and importlib.util.find_spec("torch") is None:
      failures.append((mirror, "PyTorch, which reads it, is not installed"))
      continue
    try:
      partial = download(mirror.url, path, f"{published.name}{mirror.suffix}")
    except Unavailable as error:
      failures.append((mirror, str(error)))
      _say(f"{mirror.url}: {error}.")
      continue
    digest = _digest(partial)
    if wrong := _wrong(partial, mirror, digest):
      partial.unlink()
      failures.append((mirror, wrong))
      _say(f"{mirror.url}: {wrong}.")
      continue
    _write_record(path, digest)
    partial.replace(path)
    return path
  tried = "\n".join(f"  {mirror.url}\n    {why}" for mirror, why in failures)
  place = _place(published, published.mirrors[0], folder)
  raise UserError(
    f"{published.name} could not be fetched. Download one of these where that "
    f"is possible, bring it to {place} (with the ending that it has there), "
    f"and give the same command again:\n{tried}"
  )


def _wrong(path: Path, mirror: Mirror, digest: str) -> str:
  """Describes a difference from the published file; "" without one."""
  if mirror.size is not None:
    number, unit = mirror.size.split()
    decimals = len(number.partition(".")[2])
    size = path.stat().st_size / _UNITS[unit]
    # Listings round, and do not say how.
    if abs(size - float(number)) >= 10**-decimals:
      return f"it has {size:.{decimals}f} {unit} instead of {mirror.size}"
  if mirror.sha256 is not None and not digest.startswith(mirror.sha256):
    return (
      f"its sha256 begins with {digest[: len(mirror.sha256)]} instead of "
      f"{mirror.sha256}"
    )
  return ""


def _digest(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _record(path: Path) -> Path:
  return path.with_name(f"{path.name}.sha256")


def _write_record(path: Path, digest: str) -> None:
  _record(path).write_text(f"{digest}  {path.name}\n")


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
  """Keeps other processes from fetching the same; a kill unlocks it."""
  with path.open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      _say(f"Another process fetches {name}: waiting for it.")
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def download(url: str, path: Path, title: str) -> Path:
  """Downloads what will be `path`, and returns where it lies until then.

  A part that an earlier call left is continued if the server still has the
  same file, which it says by an ETag or a date. A connection that breaks off
  is made again as long as that brings something.

  Args:
    url: of http or https.
    path: of the whole file; not written to.
    title: of the progress bar.

  Raises:
    Unavailable: the server refuses, or cannot be reached.
    UserError: the disk is full, or the like.
  """
  partial = path.with_name(f"{path.name}.partial")
  fruitless = 0
  while True:
    before = _size(partial)
    try:
      _transfer(url, partial, title)
      _state(partial).unlink(missing_ok=True)
      return partial
    except urllib.error.HTTPError as error:
      error.close()
      raise Unavailable(f"{error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
      fruitless = 0 if _size(partial) > before else fruitless + 1
      if fruitless == _FRUITLESS:
        raise Unavailable(_explain(error)) from error


def _transfer(url: str, partial: Path, title: str) -> None:
  """Brings the file, or the rest of it; raises OSError if it breaks off."""
  begin, validator = _resumable(url, partial)
  request = urllib.request.Request(url, headers={"User-Agent": "mixer"})
  if begin:
    request.add_header("Range", f"bytes={begin}-")
    # If the file has changed, all of it comes instead.
    request.add_header("If-Range", validator)
  try:
    response = urllib.request.urlopen(request, timeout=_TIMEOUT)
  except urllib.error.HTTPError as error:
    if error.code != 416 or not begin:  # the part is not of this file
      raise
    error.close()
    partial.unlink()
    return _transfer(url, partial, title)
  with response:
    if response.headers.get_content_type() == "text/html":
      raise Unavailable("a web page came instead of the file")
    if response.status != 206:
      begin = 0
      partial.unlink(missing_ok=True)
    elif _validator(response.headers) != validator:  # it passed over If-Range
      partial.unlink()
      return _transfer(url, partial, title)
    length = response.headers.get("Content-Length")
    total = None if length is None else begin + int(length)
    _write_state(url, partial, response.headers)
    _copy(response, partial, begin, total, title)
  if total is not None and _size(partial) != total:
    raise ConnectionError(
      f"the connection ended at byte {_size(partial):,} of {total:,}"
    )


def _copy(
  response: http.client.HTTPResponse,
  partial: Path,
  begin: int,
  total: int | None,
  title: str,
) -> None:
  bar = tqdm(
    desc=title,
    total=total,
    initial=begin,
    unit="B",
    unit_scale=True,
    unit_divisor=1024,
    disable=None,  # where nobody watches
  )
  if bar.disable:
    size = "" if total is None else f", {total / 2**20:,.2f} MiB"
    print(f"Fetching {title}{size}", file=sys.stderr, flush=True)
  with bar, partial.open("ab" if begin else "wb") as file:
    while chunk := response.read(_CHUNK):
      try:
        file.write(chunk)
      except OSError as error:
        raise UserError(
          f"Cannot write {partial} ({error.strerror}): make room, and give the "
          "same command again, which goes on from there."
        ) from error
      bar.update(len(chunk))


def _resumable(url: str, partial: Path) -> tuple[int, str]:
  """Bytes downloaded so far, and the server's tag of their file."""
  try:
    state = json.loads(_state(partial).read_text())
    if state["url"] == url and state["validator"]:
      return _size(partial), state["validator"]
  except (OSError, ValueError, KeyError, TypeError):
    pass  # of another program, or cut off as well
  return 0, ""


def _write_state(
  url: str, partial: Path, headers: http.client.HTTPMessage
) -> None:
  state = {"url": url, "validator": _validator(headers)}
  _state(partial).write_text(json.dumps(state))


def _validator(headers: http.client.HTTPMessage) -> str:
  """Returns the server's tag of this version of a file; "" without one."""
  tag = headers.get("ETag", "")
  # By a weak ETag, W/..., no range may be asked for.
  return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _state(partial: Path) -> Path:
  return partial.with_name(f"{partial.name}.json")


def _size(path: Path) -> int:
  return path.stat().st_size if path.exists() else 0


def _explain(error: Exception) -> str:
  reason = getattr(error, "reason", error)
  if isinstance(reason, socket.gaierror):
    return "no network, or no such host"
  if isinstance(reason, TimeoutError):
    return f"no answer within {_TIMEOUT} s"
  return str(reason) or type(reason).__name__
