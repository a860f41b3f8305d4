# SPDX-License-Identifier: Apache-2.0
"""Finds loose images: files, folders of any depth, patterns."""

import glob
import os
from collections.abc import Sequence

from mixer.data.sources.file_io import is_remote
from mixer.data.sources.listing import (
  KNOWN,
  count_suffixes,
  is_hidden,
  is_image,
  report_left_out,
  scan,
)
from mixer.errors import UserError, format_list, nearest


def find_images(paths: Sequence[str]) -> tuple[list[str], list[str]]:
  """Finds the images in files, folders and patterns, and reports other files.

  Args:
    paths: files, whatever their suffix; folders, in which the files with the
      suffix of an image count, at any depth; patterns such as "*.jpg" of both.

  Returns:
    The paths of images, each once, in the given order, and of the other files
    in the folders and patterns.

  Raises:
    UserError: there is no such file, or there is no image.
  """
  images, others, barren = {}, {}, {}  # as sets with an order
  for given in paths:
    found, rest = {}, {}
    _find(given, found, rest)
    if not found:
      barren[given] = count_suffixes(list(rest))
      rest = rest or {f"{given}/": None}
    images |= found
    others |= rest
  for given, kinds in barren.items():
    # A pattern such as *.jpg may also name a folder.
    if not images or not is_image(given):
      holds = f", but {kinds}" if kinds else ""
      raise UserError(f"There is no image in {given}{holds}. {KNOWN}")
  report_left_out(
    format_list(paths, shown=3), tuple(others), len(images) + len(others)
  )
  return list(images), list(others)


def _find(given: str, images: dict, others: dict) -> None:
  if is_remote(given):
    raise UserError(
      f"{given} is not on this machine: copy the images, or mount the bucket."
    )
  path, seen = os.path.expanduser(given), set()
  if os.path.isdir(path):
    _walk(path, images, others, seen)
  elif os.path.lexists(path):
    images[path] = None
  elif matches := sorted(glob.glob(path, recursive=True)):
    for match in matches:
      if os.path.isdir(match):
        _walk(match, images, others, seen)
      elif not is_hidden(os.path.basename(match)):
        (images if is_image(match) else others)[match] = None
  else:
    raise UserError(_none_there(given, path))


def _walk(folder: str, images: dict, others: dict, seen: set[str]) -> None:
  """Adds the files at any depth, once if links lead to a folder again."""
  if (real := os.path.realpath(folder)) in seen:
    return
  seen.add(real)
  entries = scan(folder, allow_dangling=True)
  images.update((os.path.join(folder, name), None) for name in entries.images)
  folders = list(entries.folders)
  for name in entries.others:
    if name.endswith("/"):
      folders.append(name.rstrip("/"))
    else:
      others[os.path.join(folder, name)] = None
  for name in sorted(folders):
    _walk(os.path.join(folder, name), images, others, seen)


def _none_there(given: str, path: str) -> str:
  if glob.has_magic(path):
    return (
      f"No file or folder matches {given!r}: look for a slip in the pattern."
    )
  parent = os.path.dirname(os.path.abspath(path))
  if not os.path.isdir(parent):
    return f"There is no {given}, nor a folder {parent}."
  names = sorted(os.listdir(parent))
  near = nearest(os.path.basename(path), names, most=3)
  shown = format_list(near or names) or "nothing"
  return f"There is no {given}. In {parent} there is {shown}."
