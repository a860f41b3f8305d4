# SPDX-License-Identifier: Apache-2.0
"""How the hosts meet: host 0 waits for all others, and they look for it.

What cannot be one run, such as another version of the code on a host, ends all
that are there, each with the same message.
"""

import functools
import hashlib
import importlib.metadata
import platform
import selectors
import socket
import sys
import time
from pathlib import Path

from mixer.errors import RetryableError, UserError, format_list
from mixer.hosts.cluster import Cluster
from mixer.hosts.wire import Garbled, Message, Wire

SAY_EVERY = 10.0
# For what a connection has to say, while others wait for their turn.
_GREETING_SECONDS, _RETRY_SECONDS = 5.0, 0.5
# For host 0 to get to a connection: others may be slow to say who they are.
_TURN_SECONDS = 60.0
_PACKAGES = "jax", "jaxlib", "flax", "optax", "numpy"


def meet(
  cluster: Cluster, *, timeout: float, silence: float
) -> dict[int, Wire]:
  """Returns the connections: host 0's to all others, another's to host 0.

  Args:
    cluster: of several hosts.
    timeout: seconds until the hosts that are there give up.
    silence: seconds after which a host that says nothing is not there.

  Raises:
    UserError: not all arrived, or they cannot be one run.
  """
  versions()  # it reads every file: not while others wait
  if cluster.host == 0:
    return _Reception(cluster, timeout).run()
  return {0: _Arrival(cluster, timeout, silence).run()}


@functools.cache
def versions() -> dict[str, str]:
  """What has to be the same on all hosts."""
  code = hashlib.sha256()
  folder = Path(__file__).parent.parent
  for file in sorted(folder.rglob("*.py")):
    code.update(f"{file.relative_to(folder)} ".encode() + file.read_bytes())
  return {
    "code in mixer/": code.hexdigest()[:12],
    "python": ".".join(platform.python_version_tuple()[:2]),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
  }


class _Reception:
  """Host 0: lets the others in."""

  def __init__(self, cluster: Cluster, timeout: float):
    self._cluster = cluster
    self._timeout = timeout
    self._guests: dict[int, Wire] = {}
    self._selector = selectors.DefaultSelector()
    self._deadline = time.monotonic() + timeout

  def run(self) -> dict[int, Wire]:
    port = self._cluster.address[1]
    # The second port will be jax.distributed's: that it can be reached too is
    # seen now, as jax would abort. It is open when the first one is.
    with self._selector, _listen(port + 1) as second, _listen(port) as door:
      self._selector.register(door, selectors.EVENT_READ, self._greet)
      self._selector.register(second, selectors.EVENT_READ, _turn_away)
      try:
        self._wait()
      except BaseException as error:
        if isinstance(error, UserError):
          again = isinstance(error, RetryableError)
          self._send_all(refused=str(error), again=again)
        for guest in self._guests.values():
          guest.close()
        raise
    self._send_all(welcome=True)
    return self._guests

  def _wait(self) -> None:
    say = time.monotonic() + SAY_EVERY
    while missing := self._missing():
      now = time.monotonic()
      if now >= self._deadline:
        raise RetryableError(self._absent(missing))
      if now >= say:
        say = now + SAY_EVERY
        _say(self._waiting(missing))
        self._send_all(waiting=self._waiting(missing))
      for key, _ in self._selector.select(min(say, self._deadline) - now):
        key.data(key.fileobj)

  def _missing(self) -> list[int]:
    return [
      i
      for i in range(1, self._cluster.hosts)
      if i not in self._guests or self._guests[i].is_closed()
    ]

  def _waiting(self, missing: list[int]) -> str:
    which = format_list([str(i) for i in missing])
    return (
      f"waiting for {len(missing)} of {self._cluster.hosts} hosts ({which}) at "
      f"{self._cluster.coordinator}"
    )

  def _absent(self, missing: list[int]) -> str:
    which = format_list([str(i) for i in missing])
    one = len(missing) == 1
    return (
      f"Host{'' if one else 's'} {which} of {self._cluster.hosts} did not "
      f"arrive at {self._cluster.coordinator} within {self._timeout:g} s: look "
      f"at {'its log, or start it' if one else 'their logs, or start them'} "
      "again."
    )

  def _greet(self, door: socket.socket) -> None:
    connection, (address, *_) = door.accept()
    address = address.removeprefix("::ffff:")  # of IPv4
    wire = Wire(connection)
    wire.patience(_GREETING_SECONDS)
    try:
      hello = _check_hello(wire.receive())
      index = hello["host"]
      problem = hello["problem"] or self._objection(hello, address)
    except (TimeoutError, Garbled):
      wire.close()
      _say(f"{address} connected and is no host of a run: not let in")
      return
    if problem:
      wire.send(refused=problem)
      wire.close()
      raise UserError(problem)
    self._guests[index] = wire
    wire.send(waiting=None)
    # It says nothing more until all are there.
    leaves = functools.partial(self._let_go, index)
    self._selector.register(wire, selectors.EVENT_READ, leaves)

  def _objection(self, hello: Message, address: str) -> str | None:
    """Says why this host and those here cannot be one run."""
    index, count, mine = hello["host"], hello["hosts"], self._cluster.hosts
    if count != mine:
      return (
        f"Host {index} ({address}) has been told of {count} hosts and host 0 "
        f"of {mine}: start all of them with the same number."
      )
    if not 0 < index < mine:
      return (
        f"Host {index} ({address}) is none of the {mine} of this run: hosts "
        "are counted from 0."
      )
    if index in self._guests and self._guests[index].is_closed():
      self._let_go(index, self._guests[index])
    if index in self._guests:
      return (
        f"Two hosts say that they are host {index} of {mine}, one of them at "
        f"{address}: give each its own index."
      )
    theirs, ours = hello["versions"], versions()
    for name in ours:
      if theirs.get(name) != ours[name]:
        return (
          f"Host {index} ({address}) has another {name} ({theirs.get(name)}) "
          f"than host 0 ({ours[name]}): install the same on all hosts."
        )
    return None

  def _let_go(self, index: int, wire: Wire) -> None:
    """A host that ended while it waited may come again."""
    if self._guests.get(index) is wire:
      self._selector.unregister(wire)
      self._guests.pop(index).close()

  def _send_all(self, **message: object) -> None:
    for guest in self._guests.values():
      guest.send(**message)


class _Arrival:
  """Another host: looks for host 0."""

  def __init__(self, cluster: Cluster, timeout: float, silence: float):
    self._cluster = cluster
    self._timeout = timeout
    self._silence = silence
    self._deadline = time.monotonic() + timeout
    self._said = time.monotonic()
    self._why = ""

  def run(self) -> Wire:
    while True:
      if (wire := self._connect()) and self._is_welcome(wire):
        return wire
      now = time.monotonic()
      if now >= self._deadline:
        raise RetryableError(
          f"No answer from {self._cluster.coordinator} within "
          f"{self._timeout:g} s ({self._why}): is host 0 running there, and "
          "are this port and the next open to the other hosts?"
        )
      if now >= self._said + SAY_EVERY:
        self._said = now
        _say(f"waiting for host 0 at {self._cluster.coordinator}: {self._why}")
      time.sleep(_RETRY_SECONDS)

  def _connect(self) -> Wire | None:
    rest = max(self._deadline - time.monotonic(), 0.1)
    seconds = min(_GREETING_SECONDS, rest)
    try:
      connection = socket.create_connection(self._cluster.address, seconds)
    except OSError as error:  # its name may not be known yet
      self._why = error.strerror or str(error)
      return None
    wire = Wire(connection)
    wire.patience(min(_TURN_SECONDS, rest))
    wire.send(
      host=self._cluster.host,
      hosts=self._cluster.hosts,
      versions=versions(),
      problem=self._second_port(seconds),
    )
    return wire

  def _second_port(self, seconds: float) -> str | None:
    name, port = self._cluster.address
    try:
      socket.create_connection((name, port + 1), seconds).close()
    except OSError as error:
      return (
        f"Host {self._cluster.host} reaches {self._cluster.coordinator}, but "
        f"not port {port + 1} there ({error.strerror or error}), which "
        "jax.distributed needs: open both ports."
      )
    return None

  def _is_welcome(self, wire: Wire) -> bool:
    """Waits with the others; False if host 0 is gone and may come again."""
    welcome = False
    try:
      while not welcome and (answer := wire.receive()) is not None:
        if refused := answer.get("refused"):
          kind = RetryableError if answer.get("again") else UserError
          raise kind(refused)
        if waiting := answer.get("waiting"):
          _say(waiting)
        welcome = "welcome" in answer
        wire.patience(max(self._silence, 3 * SAY_EVERY))
      self._why = "it closed the connection"
    except TimeoutError:
      self._why = "connected, but no word"
    except Garbled as error:
      raise UserError(
        f"Another program answers at {self._cluster.coordinator}: choose "
        "another port for the run, on all hosts."
      ) from error
    finally:
      if not welcome:
        wire.close()
    return welcome


def _check_hello(message: Message | None) -> Message:
  """Raises Garbled unless a host could have said it."""
  kinds = {"host": int, "hosts": int, "versions": dict, "problem": str | None}
  for name, kind in kinds.items():
    if message is None or not isinstance(message.get(name, ...), kind):
      raise Garbled(f"{message!r:.80}")
  return message


def _listen(port: int) -> socket.socket:
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    return socket.create_server(
      ("", port), family=family, dualstack_ipv6=both, backlog=1024
    )
  except OSError as error:
    raise UserError(
      f"Host 0 cannot listen at port {port} of {socket.gethostname()} "
      f"({error.strerror}): end the program that has it, or choose another "
      "port for the run, on all hosts."
    ) from error


def _turn_away(second: socket.socket) -> None:
  second.accept()[0].close()


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
