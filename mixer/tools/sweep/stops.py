# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM over a sequence of runs."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

from mixer.cli import sigterm_to_keyboard_interrupt
from mixer.training.preemption import SIGNALS


@contextlib.contextmanager
def heard() -> Iterator[Callable[[], bool]]:
  """Yields whether a stop has been asked for since the beginning.

  A run hears of signals itself, saves and says so; but one that comes after
  its last step, while it writes its weights, is of no use to it, and the next
  run is not to begin. Python tells a socket of every signal, whoever handles
  it. Between runs, where there is nothing to save, a signal is Ctrl-C.
  """
  listener, teller = socket.socketpair()
  listener.setblocking(False)
  teller.setblocking(False)

  def asked() -> bool:
    try:
      received = listener.recv(4096, socket.MSG_PEEK)
    except BlockingIOError:
      return False
    return any(number in received for number in SIGNALS)

  told_before = signal.set_wakeup_fd(teller.fileno(), warn_on_full_buffer=False)
  try:
    with sigterm_to_keyboard_interrupt():
      yield asked
  finally:
    signal.set_wakeup_fd(told_before)
    listener.close()
    teller.close()
