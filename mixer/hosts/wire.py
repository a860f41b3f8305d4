# SPDX-License-Identifier: Apache-2.0
"""Messages between two hosts: JSON objects, one a line, over TCP."""

import json
import select
import socket
import threading

Message = dict[str, object]

# A line holds one host's value of a `gather`, or those of all.
LONGEST_LINE = 16 << 20


class Garbled(ValueError):
  """What came is no message: another program is at the other end."""


class Wire:
  """One end of a connection. Any thread may send; one receives."""

  def __init__(self, connection: socket.socket):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self._connection = connection
    self._lines = connection.makefile("rb")
    self._sending = threading.Lock()

  def patience(self, seconds: float) -> None:
    """Sets how long a silence may last before it is a TimeoutError."""
    self._connection.settimeout(seconds)

  def send(self, **message: object) -> bool:
    """Returns whether it went out; who receives will notice if it did not."""
    line = json.dumps(message).encode() + b"\n"
    try:
      with self._sending:
        self._connection.sendall(line)
    except OSError:
      return False
    return True

  def receive(self) -> Message | None:
    """Waits for the next message; None at the end.

    Raises:
      TimeoutError: none came.
      Garbled: what came is no message.
    """
    try:
      line = self._lines.readline(LONGEST_LINE)
    except TimeoutError:
      raise
    except OSError:  # ended by a reset
      return None
    if not line:
      return None
    try:
      message = json.loads(line)
    except ValueError as error:
      raise Garbled(f"{line[:80]!r}") from error
    if not isinstance(message, dict):
      raise Garbled(f"{line[:80]!r}")
    return message

  def hang_up(self) -> None:
    """Ends what is sent; the other end sees it after the last message."""
    try:
      self._connection.shutdown(socket.SHUT_WR)
    except OSError:  # it has hung up as well
      pass

  def is_closed(self) -> bool:
    """Whether the other end has ended and has said nothing before that."""
    try:
      ready, _, _ = select.select([self._connection], [], [], 0)
      return bool(ready) and not self._connection.recv(1, socket.MSG_PEEK)
    except OSError:
      return True

  def close(self) -> None:
    self._lines.close()
    self._connection.close()

  def fileno(self) -> int:
    return self._connection.fileno()
