# SPDX-License-Identifier: Apache-2.0
"""Finds loose images: files, folders of any depth, patterns."""

import glob
import itertools
import os
from collections.abc import Iterator, Sequence

from mixer.data.sources.file_io import is_remote
from mixer.data.sources.image_folder import SUFFIXES, is_hidden, is_image
from mixer.errors import UserError, format_list, nearest


def find_images(paths: Sequence[str]) -> list[str]:
  """Returns the paths of images, each once, in the given order.

  Args:
    paths: files, whatever their suffix; folders, in which the files with the
      suffix of an image count, at any depth; patterns such as "*.jpg" of both.

  Raises:
    UserError: one of them is no image and holds none.
  """
  images = itertools.chain.from_iterable(map(_find, paths))
  return list(dict.fromkeys(images))


def _find(given: str) -> list[str]:
  if is_remote(given):
    raise UserError(
      f"{given} is not on this machine: copy the images, or mount the bucket."
    )
  path = os.path.expanduser(given)
  if os.path.lexists(path) and not os.path.isdir(path):
    return [path]
  matches = (
    [path] if os.path.isdir(path) else sorted(glob.glob(path, recursive=True))
  )
  images = []
  for match in matches:
    if os.path.isdir(match):
      images += _walk(match)
    elif is_image(os.path.basename(match)):
      images.append(match)
  if not images:
    raise UserError(_none_there(given, path, matches))
  return images


def _walk(folder: str) -> Iterator[str]:
  def stop(error: OSError):
    raise error

  for parent, folders, files in os.walk(folder, onerror=stop):
    folders[:] = sorted(x for x in folders if not is_hidden(x))
    for name in sorted(files):
      if is_image(name):
        yield os.path.join(parent, name)


def _none_there(given: str, path: str, matches: Sequence[str]) -> str:
  if matches:
    kinds = " ".join(sorted(SUFFIXES))
    return f"There is no image in {given}: no file ends in one of {kinds}."
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
