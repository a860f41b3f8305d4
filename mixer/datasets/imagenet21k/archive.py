# SPDX-License-Identifier: Apache-2.0
"""Where each image lies in a tar of tars, one inner tar a class."""

import hashlib
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mixer.datasets.imagenet21k import pool, progress
from mixer.errors import UserError, format_list

GZIP = b"\x1f\x8b"
BLOCK = 512

# synset -> the file, its first byte there and its end
Tars = dict[str, tuple[Path, int, int]]


def find(folder: Path, release: str) -> Path | None:
  """Returns the archive of a release, such as fall11, in a folder.

  Raises:
    UserError: it is there, but compressed.
  """
  for suffix in ".tar", ".tar.gz":
    path = folder / f"{release}_whole{suffix}"
    if not path.is_file():
      continue
    with path.open("rb") as file:
      if file.read(2) != GZIP:
        return path
    command = f"gunzip {path}"
    if suffix == ".tar":
      command = f"mv {path} {path}.gz && gunzip {path}.gz"
    raise UserError(
      f"{path} is compressed, and what is compressed cannot be read at random."
      f" Unpack it first: {command}"
    )
  return None


def inner_tars(archive: Path) -> Tars:
  """Returns where the tar of each class lies."""
  size = archive.stat().st_size
  found, others = {}, []
  for name, begin, length in _members(archive, 0, size):
    synset, suffix = os.path.splitext(name)
    if suffix == ".tar":
      found[synset] = archive, begin, begin + length
    else:
      others.append(name)
  if others:
    print(f"Left out, because they are no tars: {format_list(others)}.")
  if not found:
    raise UserError(
      f"{archive} holds no tar archives; the official one holds one for each"
      " class."
    )
  return found


def index(tars: Tars, labels: Sequence[str], workers: int) -> np.ndarray:
  """Returns one row for each image: hash, offset, size, label, name.

  Rows are in the order of the hash of the name, which is a shuffle that is the
  same everywhere. Of several images with the same name the last counts, as it
  does where an archive is unpacked.

  Raises:
    UserError: the archive is damaged, or holds no images.
  """
  numbers = {synset: i for i, synset in enumerate(labels)}
  tasks = [(numbers[synset], *place) for synset, place in tars.items()]
  parts, line = {}, progress.Line("Indexed", "classes", len(tasks))
  for label, rows in pool.run(_index_class, tasks, workers):
    parts[label] = rows
    line.add(len(rows))
  rows = np.concatenate([parts[label] for label in sorted(parts)])
  if not len(rows):
    raise UserError(f"{next(iter(tars.values()))[0]} holds no images.")
  rows = rows[np.argsort(rows["hash"], kind="stable")]
  return rows[np.append(rows["name"][:-1] != rows["name"][1:], True)]


def _index_class(task: tuple[int, Path, int, int]) -> tuple[int, np.ndarray]:
  label, archive, begin, end = task
  members = list(_members(archive, begin, end))
  names = [name.encode(errors="backslashreplace") for name, _, _ in members]
  hashes = [name_hash(name) for name in names]
  names = np.array(names, np.bytes_)
  kinds = [("hash", "u8"), ("offset", "i8"), ("size", "i8"), ("label", "i4")]
  rows = np.empty(len(members), [*kinds, ("name", names.dtype)])
  rows["hash"] = hashes
  rows["offset"] = [offset for _, offset, _ in members]
  rows["size"] = [size for _, _, size in members]
  rows["label"] = label
  rows["name"] = names
  return label, rows


def name_hash(name: bytes) -> int:
  """Returns the 64-bit number by which the images are ordered."""
  digest = hashlib.blake2b(name, digest_size=8).digest()
  return int.from_bytes(digest, "big")


def _members(
  path: Path, begin: int, end: int
) -> Iterator[tuple[str, int, int]]:
  """Yields (file name, offset, size) of the files of a tar inside a file.

  Raises:
    UserError: it ends too early, or is not a tar.
  """
  damaged = (
    f"{path} is no tar, damaged or cut short at byte {{}}: download it again."
  )
  # Without a buffer, headers are read and images are not.
  with path.open("rb", buffering=0) as file:
    file.seek(begin)
    at = begin
    try:
      with tarfile.open(fileobj=file, mode="r:") as tar:
        # An archive whose end is not marked would run on into the next one.
        while (member := tar.next()) and member.offset < end:
          at = member.offset
          if member.offset_data + member.size > end:
            raise UserError(damaged.format(at))
          if member.isfile():
            yield (
              os.path.basename(member.name),
              member.offset_data,
              member.size,
            )
          tar.members.clear()  # they would stay in memory
        at = member.offset if member else tar.offset
    except tarfile.TarError as error:
      raise UserError(damaged.format(at)) from error
    # To tarfile a spoilt header is the end; a true end is a block of zeros.
    file.seek(at)
    if at < end and any(file.read(BLOCK)):
      raise UserError(damaged.format(at))
