# SPDX-License-Identifier: Apache-2.0
"""Listings of folders: images by their suffix, and the files left out."""

import collections
import concurrent.futures
import functools
import os
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from mixer.data.decode import SUFFIXES
from mixer.data.sources.file_io import is_remote
from mixer.errors import UserError, format_list, nearest, notify

KNOWN = f"The suffixes of images are {' '.join(sorted(SUFFIXES))}."
if ".heic" not in SUFFIXES:
  KNOWN += " .heic and .heif need pip install pillow-heif."

# Names that systems leave among the user's.
_IGNORED = frozenset(
  {"@eaDir", "__MACOSX", "lost+found", "Thumbs.db", "desktop.ini"}
)
_THREADS = 32


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
    is_local = not is_remote(folder)
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
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
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
  if is_remote(path):
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
