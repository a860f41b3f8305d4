# SPDX-License-Identifier: Apache-2.0
"""Finds loose images: files, folders of any depth, patterns."""

import glob
import itertools
import os
from collections.abc import Iterator, Sequence

from mixer.data.sources.file_io import is_remote
from mixer.data.sources.listing import (
  KNOWN,
  count_suffixes,
  describe_missing,
  is_hidden,
  is_image,
  report_left_out,
)
from mixer.errors import UserError, format_list


def find_images(paths: Sequence[str]) -> tuple[list[str], list[str]]:
  """Finds the images in files, folders and patterns, and reports other files.

  Args:
    paths: files, whatever their suffix; folders, in which the files with the
      suffix of an image count, at any depth; patterns such as "*.jpg" of both.

  Returns:
    The paths of images, each once, in the given order, and of the other files
    in the folders and patterns.

  Raises:
    UserError: there is no such file, or no image in one of the paths.
  """
  images, others = {}, {}  # as sets with an order
  for given in paths:
    found, rest = _find(given)
    if not found:
      holds = f", but {count_suffixes(rest)}" if rest else ""
      raise UserError(f"There is no image in {given}{holds}. {KNOWN}")
    images |= dict.fromkeys(found)
    others |= dict.fromkeys(rest)
  report_left_out(
    format_list(paths, shown=3), tuple(others), len(images) + len(others)
  )
  return list(images), list(others)


def _find(given: str) -> tuple[list[str], list[str]]:
  if is_remote(given):
    raise UserError(
      f"{given} is not on this machine: copy the images, or mount the bucket."
    )
  path = os.path.expanduser(given)
  matches = [path] if os.path.lexists(path) else glob.glob(path, recursive=True)
  if not matches and glob.has_magic(path):
    raise UserError(
      f"No file or folder matches {given!r}: look for a slip in the pattern."
    )
  if not matches:
    raise UserError(describe_missing(given, path))
  images, others = [], []
  for file in itertools.chain.from_iterable(map(_walk, sorted(matches))):
    name = os.path.basename(file)
    if file == path or is_image(name):
      images.append(file)
    elif not is_hidden(name):
      others.append(file)
  return images, others


def _walk(path: str) -> Iterator[str]:
  """Yields a file, or those in a folder at any depth, sorted."""

  def stop(error: OSError):
    raise error

  if not os.path.isdir(path):
    yield path
    return
  seen = {os.path.realpath(path)}  # links may lead to a folder again
  for parent, folders, files in os.walk(path, onerror=stop, followlinks=True):
    yield from (os.path.join(parent, name) for name in sorted(files))
    for name in sorted(folders):
      real = os.path.realpath(os.path.join(parent, name))
      if is_hidden(name) or real in seen:
        folders.remove(name)
      seen.add(real)
    folders.sort()
