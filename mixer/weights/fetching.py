# SPDX-License-Identifier: Apache-2.0
"""Published files: from the cache, else from the first mirror that has them.

Beside a file in the cache lies its sha256, as the program sha256sum writes it,
so that later damage is seen.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from mixer.cache import cache_folder
from mixer.errors import UserError
from mixer.weights.download import Unavailable, download
from mixer.weights.published import Mirror, Published

_UNITS = {"MiB": 2**20, "GiB": 2**30}


def fetch(published: Published, cache: str | None = None) -> Path:
  """Returns the file of published weights, which is fetched if need be.

  Args:
    published: from the registry.
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
