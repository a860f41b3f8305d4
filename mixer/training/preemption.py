# SPDX-License-Identifier: Apache-2.0
"""Preemption: signals ask a run to stop; all hosts stop together."""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator

from mixer.distributed import Hosts

# Of Ctrl-C, of a scheduler, and of a terminal that is closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Senders to all processes of a group, such as systemd, may reach one twice:
# within these seconds a signal is the same request.
SAME_REQUEST = 1.0


class PreemptedError(Exception):
  """Ends work, such as an evaluation, when the run was asked to stop."""


@contextlib.contextmanager
def catch_signals(hosts: Hosts) -> Iterator[Callable[[], bool]]:
  """Yields `should_stop()`, which is True once a host was asked to stop.

  All hosts call it equally often, from their main threads: it turns True in the
  same call on all of them, which jax's preemption service agrees on (17 to 33
  us a call, no collective). It stays True. The same signal again, after a
  second or more, raises KeyboardInterrupt at once, or ends the process.

  nohup, which ignores SIGHUP, keeps its effect.

  Args:
    hosts: after `distributed.initialize`.
  """
  received = {}
  calls, is_agreed = 0, False

  def handle(number, frame):
    del frame
    if number not in received:
      received[number] = time.monotonic()
      if number == signal.SIGHUP:
        _leave_closed_terminal()
      # Not print: the signal may have interrupted another print.
      os.write(2, b"\nStopping: saves first. Again to stop at once.\n")
      if hosts.count > 1:
        notify_jax(signal.SIGTERM)
    elif time.monotonic() - received[number] > SAME_REQUEST:
      signal.signal(number, before[number])
      signal.raise_signal(number)

  def should_stop() -> bool:
    nonlocal calls, is_agreed
    if hosts.count == 1:
      return bool(received)
    from jax.experimental import multihost_utils

    if not is_agreed:
      calls += 1
      is_agreed = multihost_utils.reached_preemption_sync_point(calls)
    return is_agreed

  if hosts.count > 1:
    notify_jax = _jax_sigterm_handler()
  before = {
    number: signal.signal(number, handle)
    for number in SIGNALS
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
  }
  try:
    yield should_stop
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _leave_closed_terminal():
  """Discards output to a terminal that is gone, where a write is an error."""
  for stream in 1, 2:
    try:
      os.write(stream, b"")
    except OSError:
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _jax_sigterm_handler() -> Callable[[int], None]:
  """Returns the C function with which jax.distributed handles SIGTERM.

  A handler of Python's takes its place, and has to call it for jax to learn of
  the request; Python's own signal module does not see it.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
  libc.signal.restype = ctypes.c_void_p
  address = libc.signal(signal.SIGTERM, None)
  return ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
