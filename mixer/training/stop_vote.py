# SPDX-License-Identifier: Apache-2.0
"""Stopping, where several hosts have to do it at the same step."""

import collections
from collections.abc import Callable, Sequence

import jax
import numpy as np

from mixer.hosts import Hosts
from mixer.training.sharding import AXIS, pmap_step


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
    self._any = pmap_step(lambda wish: jax.lax.pmax(wish, AXIS), devices)
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
