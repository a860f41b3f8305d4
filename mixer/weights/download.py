# SPDX-License-Identifier: Apache-2.0
"""One file over HTTP: goes on where an interruption left off."""

import http.client
import json
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from mixer.errors import UserError

_TIMEOUT = 30  # seconds without a byte
_CHUNK = 2**20
_FRUITLESS = 2  # attempts in a row that bring nothing, before giving up


class Unavailable(Exception):
  """A mirror does not give the file; says why."""


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
