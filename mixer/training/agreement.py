# SPDX-License-Identifier: Apache-2.0
"""What the hosts of a run have in common, and what they decide together."""

import collections
import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mixer.config_check import complete, differences, to_dict
from mixer.errors import UserError, some
from mixer.hosts import Hosts
from mixer.training.mixing import AXIS
from mixer.training.run_folder import make_folder

PATIENCE = 30.0  # seconds for what one host writes to be seen by another


def meet(hosts: Hosts, config: ConfigDict, workdir: str | None) -> Path:
  """Makes the run's folder, once the hosts agree, and connects their devices.

  Nothing is left half-started where they do not.

  Raises:
    UserError: on all hosts, with what one of them complains of.
  """
  with hosts.together():
    folder = make_folder(workdir)
  with hosts.together():
    check_same_config(hosts, config)
    check_shared(hosts, folder)
  hosts.initialize()
  with hosts.together():
    check_same_devices(hosts)
  return folder


def check_same_config(hosts: Hosts, config: ConfigDict):
  """Raises UserError, on all hosts, if one was given another config."""
  with hosts.together():
    own = to_dict(complete(config))
  first, *others = hosts.gather(own)
  for host, other in enumerate(others, start=1):
    if changes := list(differences(first, other)):
      listed = "\n  ".join(changes)
      raise UserError(
        f"Host {host} has another config than host 0: start all hosts with the "
        f"same command and the same code.\n  {listed}"
      )


def check_shared(hosts: Hosts, folder: Path):
  """Raises UserError on all hosts if the folder is not one and the same.

  Host 0 writes there, the others read what it has written.
  """
  if hosts.count == 1:
    return
  token, word = folder / ".hosts", secrets.token_hex()
  if hosts.is_first:
    token.write_text(word)
  word = hosts.gather(word)[0]
  sees = hosts.gather(_appears(token, word))
  if hosts.is_first:
    token.unlink()
  if not all(sees):
    strangers = some([str(host) for host, x in enumerate(sees) if not x])
    raise UserError(
      f"--workdir={folder} is not the same folder on all hosts: what host 0 "
      f"writes there does not appear on host {strangers}. Name one that they "
      "share, such as a mounted bucket or NFS."
    )


def _appears(file: Path, content: str) -> bool:
  """Whether a file has this content, or soon has: NFS and buckets take time."""
  deadline = time.monotonic() + PATIENCE
  while True:
    with contextlib.suppress(OSError):
      if file.read_text() == content:
        return True
    if time.monotonic() > deadline:
      return False
    time.sleep(0.2)


def check_same_devices(hosts: Hosts):
  """Raises UserError on all hosts if they have unequal numbers of devices."""
  counts = hosts.gather(jax.local_device_count())
  if len(set(counts)) > 1:
    raise UserError(
      f"The hosts have {', '.join(map(str, counts))} devices, in their order: "
      "a batch is shared by equal hosts."
    )


class StopVote:
  """Whether any host has been asked to stop, known to all at the same step.

  A small collective beside each update, so that nobody waits for the answer:
  it is looked at when the update has long been done.
  """

  def __init__(
    self,
    interrupted: Callable[[], bool],
    hosts: Hosts,
    devices: Sequence[jax.Device],
  ):
    """Opens the vote.

    Args:
      interrupted: whether this host has been asked.
      hosts: all of them.
      devices: of all hosts.
    """
    self._interrupted = interrupted
    self._hosts = hosts
    self._is_carried = False
    self._any = jax.pmap(
      lambda wish: jax.lax.pmax(wish, AXIS), axis_name=AXIS, devices=devices
    )
    self._votes = collections.deque()

  @property
  def is_carried(self) -> bool:
    """Whether to stop now; all hosts have the same answer at the same step."""
    if self._hosts.count == 1:
      return self._interrupted()
    return self._is_carried

  def cast(self):
    """Votes along with an update; does not wait."""
    if self._hosts.count > 1:
      wish = np.full(jax.local_device_count(), self._interrupted(), np.int32)
      self._votes.append(self._any(wish))

  def count(self):
    """Counts the oldest vote; its update is done."""
    if self._votes:
      self._is_carried |= bool(np.asarray(self._votes.popleft()).any())

  def ask(self) -> bool:
    """Votes and waits for the answer, where there is time for it."""
    self._is_carried |= any(self._hosts.gather(self._interrupted()))
    return self._is_carried


def all_devices() -> list[jax.Device]:
  """The devices of all hosts, those of a host beside one another.

  A host feeds its own, so that what they get is a slice of the global batch.
  """
  return sorted(jax.devices(), key=lambda x: (x.process_index, x.id))
