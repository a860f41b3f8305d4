# SPDX-License-Identifier: Apache-2.0
"""Index of the images in a tar of tars, which has one inner tar per class."""

import concurrent.futures
import concurrent.futures.process
import hashlib
import multiprocessing
import os
import signal
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from mixer.data.workers import block_signals, die_with_parent
from mixer.errors import DatasetNotFoundError, UserError, format_list, notify

PROGRESS_SECONDS = 10
GZIP = b"\x1f\x8b"
BLOCK = 512
MAX_NAME = 255  # characters, as of files

# Synset -> file, first byte and end of its tar in that file.
Tars = dict[str, tuple[Path, int, int]]
Task, Result = TypeVar("Task"), TypeVar("Result")


def find(folder: Path, release: str) -> Path:
  """Returns the archive of a release, such as fall11, in a folder.

  Raises:
    DatasetNotFoundError: there is none.
    UserError: the archive is compressed.
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
      f"{path} is compressed, and a compressed file cannot be read at random."
      f" Unpack it first: {command}"
    )
  raise DatasetNotFoundError(
    f"There is no {release}_whole.tar in {folder}. It comes from"
    " https://image-net.org/download-images, after registering: put it there,"
    " packed as it is, and run this again."
  )


def inner_tars(archive: Path) -> Tars:
  """Locates the tar of each class."""
  size = archive.stat().st_size
  tars, others = {}, []
  for name, begin, length in _members(archive, 0, size):
    synset, suffix = os.path.splitext(name)
    if suffix == ".tar":
      tars[synset] = archive, begin, begin + length
    else:
      others.append(name)
  if others:
    notify(f"Left out, because they are no tars: {format_list(others)}.")
  if not tars:
    raise UserError(
      f"{archive} holds no tar archives; the official one holds one for each"
      " class."
    )
  return tars


def index(tars: Tars, labels: Sequence[str], workers: int) -> np.ndarray:
  """Returns one row per image: hash, offset, size, label, name.

  Rows are sorted by the hash of the name, a shuffle that is the same on every
  machine. If several images have the same name, the last one counts, as when
  the archive is unpacked.

  Raises:
    UserError: the archive is damaged, or holds no images.
  """
  numbers = {synset: i for i, synset in enumerate(labels)}
  tasks = [(numbers[synset], *place) for synset, place in tars.items()]
  parts = list(run_in_processes(_index_class, tasks, workers, "classes"))
  parts.sort(key=lambda rows: rows["label"][:1].tolist())
  rows = np.concatenate(parts)
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
  return len(rows), rows


def name_hash(name: bytes) -> int:
  """Returns the 64-bit number by which the images are ordered."""
  digest = hashlib.blake2b(name, digest_size=8).digest()
  return int.from_bytes(digest, "big")


def _members(
  path: Path, begin: int, end: int
) -> Iterator[tuple[str, int, int]]:
  """Yields (file name, offset, size) of the files of a tar inside a file.

  Raises:
    UserError: the tar ends too early, is damaged, or holds links or devices.
  """
  damaged = (
    f"{path} is no tar, damaged or cut short at byte {{}}: download it again."
  )
  # Unbuffered, so that only the headers are read.
  with path.open("rb", buffering=0) as file:
    file.seek(begin)
    at = begin
    try:
      with tarfile.open(fileobj=file, mode="r:") as tar:
        # Without an end mark, tarfile would run on into the next archive.
        while (member := tar.next()) and member.offset < end:
          at = member.offset
          name = os.path.basename(member.name)
          is_within = 0 <= member.size <= end - member.offset_data
          if not is_within or len(name) > MAX_NAME:
            raise tarfile.ReadError
          if member.isfile():
            yield name, member.offset_data, member.size
          elif not member.isdir():
            raise UserError(
              f"{path} holds {name} at byte {at}, a link or a device: pack"
              " plain files (tar --hard-dereference)."
            )
          tar.members.clear()  # tarfile would keep them in memory
        at = member.offset if member else tar.offset
    except (tarfile.TarError, MemoryError, RecursionError) as error:
      raise UserError(damaged.format(at)) from error
    # tarfile takes a damaged header for the end; the end is a block of zeros.
    file.seek(at)
    if at < end and any(file.read(BLOCK)):
      raise UserError(damaged.format(at))


def run_in_processes(
  function: Callable[[Task], tuple[int, Result]],
  tasks: Sequence[Task],
  workers: int,
  parts: str,
) -> Iterator[Result]:
  """Yields results in order of completion; prints progress every ten seconds.

  Args:
    function: maps a task to its number of images and its result.
    tasks: its arguments.
    workers: number of processes.
    parts: name of the tasks in messages, such as "shards".
  """
  images, begin = 0, time.monotonic()
  printed = begin
  # A fork would copy locks that other threads hold.
  with concurrent.futures.ProcessPoolExecutor(
    workers, multiprocessing.get_context("spawn"), initializer=_begin_worker
  ) as pool:
    # The workers start here. Ctrl-C reaches every process of a terminal, and
    # must not interrupt one that is starting.
    with block_signals({signal.SIGINT}):
      futures = [pool.submit(function, task) for task in tasks]
    try:
      for done, future in enumerate(
        concurrent.futures.as_completed(futures), 1
      ):
        number, result = future.result()
        yield result
        images += number
        now = time.monotonic()
        if now - printed > PROGRESS_SECONDS or done == len(tasks):
          printed, seconds = now, max(now - begin, 1e-3)
          left = (len(tasks) - done) * seconds / done / 60
          print(
            f"{done:,} of {len(tasks):,} {parts}, {images / seconds:,.0f}"
            f" images/s, {left:,.0f} min left",
            flush=True,
          )
    except concurrent.futures.process.BrokenProcessPool as error:
      # Ctrl-C may reach a worker before this process.
      time.sleep(0.5)
      raise UserError(
        "A worker process was killed, perhaps for lack of memory: run the same"
        " command again, with fewer --workers. Finished shards are kept."
      ) from error
    finally:
      pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker() -> None:
  # Exits silently on Ctrl-C: the parent prints the message.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
  die_with_parent()
