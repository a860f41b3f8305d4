# SPDX-License-Identifier: Apache-2.0
"""The lock of a run's folder, so that no two processes train in it.

On a disk it is a lock of the file system (flock), which ends with the process.
A bucket has none: there the lock is a lease, the object `.lock`. Its owner
renews it while it lives; another process takes it after three missed renewals.
A generation match, a condition on the object's version, lets only one process
change it.
"""

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import IO

from absl import logging
from etils import epath

from mixer.cli import EX_USAGE
from mixer.errors import UserError, notify
from mixer.storage import is_in_bucket

RENEW_SECONDS = 15.0
LEASE_SECONDS = 3 * RENEW_SECONDS  # three missed renewals
_RETRY_SECONDS = 1.0  # between two tries to lock


class LockedError(UserError):
  """Another process holds the lock."""


def locked(
  folder: epath.Path, *, wait: float = 0.0
) -> contextlib.AbstractContextManager[None]:
  """Keeps other processes from training in the folder.

  Args:
    folder: the run's.
    wait: seconds to keep trying; a file server may take minutes to release the
      lock of a host that has died. In a bucket, a lease that its owner does not
      renew is waited for in any case.

  Raises:
    LockedError: another process holds the lock.
  """
  return (hold_lease if is_in_bucket(folder) else hold_flock)(folder, wait)


@contextlib.contextmanager
def hold_flock(folder: epath.Path, wait: float) -> Iterator[None]:
  """Holds a lock of the file system."""
  deadline = time.monotonic() + wait
  problem = (
    f"Another process trains in {folder}: wait for it to end, or choose "
    "another --workdir."
  )
  with (folder / ".lock").open("w") as file:
    is_reported = False
    while not try_flock(file, folder):
      if time.monotonic() >= deadline:
        raise LockedError(problem)
      if not is_reported:
        logging.warning("%s Trying for %g s.", problem, wait)
        is_reported = True
      time.sleep(_RETRY_SECONDS)
    yield


def try_flock(file: IO, folder: epath.Path) -> bool:
  """Returns True if the file could be locked."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:
    raise UserError(
      f"The file system of {folder} gives no locks ({error.strerror}): mount "
      "it with them, or choose another --workdir."
    ) from error
  return True


@contextlib.contextmanager
def hold_lease(folder: epath.Path, wait: float) -> Iterator[None]:
  """Holds the lease of a folder in a bucket, and renews it in a thread."""
  lease = Lease(folder)
  acquire(lease, wait)
  has_ended = threading.Event()
  renewal = threading.Thread(
    target=renew, args=(lease, has_ended), name="lease", daemon=True
  )
  renewal.start()
  try:
    yield
  finally:
    has_ended.set()
    renewal.join(RENEW_SECONDS)
    with contextlib.suppress(Exception):  # it expires by itself
      lease.release()


def acquire(lease: "Lease", wait: float) -> None:
  """Takes the lease when it is free or has expired; see `locked`."""
  start, seen, renewed = time.monotonic(), 0, time.monotonic()
  while True:
    owner, generation = lease.read()
    now = time.monotonic()
    if owner is not None and generation != seen:
      if seen and now - start >= wait:
        raise LockedError(
          f"Another process trains in {lease.folder} ({owner}): wait for it "
          "to end, or choose another --workdir."
        )
      if not seen:
        notify(
          f"{lease.folder} is locked by {owner}. If that was killed, its lock "
          f"expires in {LEASE_SECONDS:.0f} s: waiting for it."
        )
      seen, renewed = generation, now
    elif owner is None or now - renewed >= LEASE_SECONDS:
      if lease.take(generation):
        return
    time.sleep(_RETRY_SECONDS)


def renew(lease: "Lease", has_ended: threading.Event) -> None:
  """Renews the lease until the event is set.

  While the bucket cannot be reached it tries again. If another process has
  taken the lease meanwhile, this one exits at once: it must not write any more.
  """
  while not has_ended.wait(RENEW_SECONDS):
    try:
      # 0: somebody has deleted it.
      is_ours = lease.take(lease.generation) or lease.take(0)
    except Exception as error:
      logging.warning("Cannot renew the lock of %s: %s", lease.folder, error)
      continue
    if not is_ours and not has_ended.is_set():
      notify(
        f"error: Another process has taken over {lease.folder}, because this "
        f"one could not renew its lock for {LEASE_SECONDS:g} s. That one goes "
        "on."
      )
      os._exit(EX_USAGE)


class Lease:
  """The object `.lock` in a bucket; it contains the name of its owner."""

  def __init__(self, folder: epath.Path):
    from google.cloud import storage

    self.folder = folder
    self.generation = 0
    self._owner = (
      f"process {os.getpid()} on {socket.gethostname()}, {os.urandom(4).hex()}"
    )
    path = os.fspath(folder / ".lock").removeprefix("gs://")
    bucket, _, self._name = path.partition("/")
    self._bucket = storage.Client(project=None).bucket(bucket)

  def read(self) -> tuple[str | None, int]:
    """Returns owner and generation; (None, 0) if it is free."""
    from google.api_core.exceptions import NotFound

    try:
      blob = self._bucket.get_blob(self._name)
      if blob is not None:
        return blob.download_as_text(), blob.generation
    except NotFound:  # its owner has just released it
      pass
    return None, 0

  def take(self, generation: int) -> bool:
    """Writes the object if it has this generation, 0 if there is none."""
    from google.api_core.exceptions import PreconditionFailed

    blob = self._bucket.blob(self._name)
    try:
      blob.upload_from_string(self._owner, if_generation_match=generation)
    except PreconditionFailed:
      # A repeated request finds the object that the first one has written.
      owner, generation = self.read()
      if owner != self._owner:
        return False
      self.generation = generation
    else:
      self.generation = blob.generation
    return True

  def release(self) -> None:
    blob = self._bucket.blob(self._name)
    blob.delete(if_generation_match=self.generation, retry=None)
