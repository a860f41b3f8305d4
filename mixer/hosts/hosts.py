# SPDX-License-Identifier: Apache-2.0
"""The hosts of a run: they agree, watch each other, and end together."""

import atexit
import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Iterator

from mixer import cli
from mixer.errors import UserError, format_list
from mixer.hosts.cluster import Cluster
from mixer.hosts.leaving import leave
from mixer.hosts.rendezvous import meet
from mixer.hosts.wire import Garbled, Wire

# Seconds that host 0 waits for the others to end before it does: without its
# jax.distributed service they would be aborted.
_END_SECONDS = 5.0
# Seconds in which the news of a lost host arrives. Its peers' collectives fail
# at the same time, and would look like errors of their own.
_NEWS_SECONDS = 2.0
# Long after our own messages; this one aborts the process.
_JAX_HEARTBEAT_SECONDS, _JAX_SHUTDOWN_SECONDS = 600, 60

CRASH = 1


@contextlib.contextmanager
def join(cluster: Cluster, *, silence: float = 60.0) -> Iterator["Hosts"]:
  """Meets the other hosts, and ends with them.

  A host whose block ends with an error ends all: the others print what it was
  and leave with the same exit code, whatever they are doing. When a host is
  lost, all others leave with EX_TEMPFAIL.

  Args:
    cluster: with one host, nothing is opened.
    silence: seconds after which a host that says nothing is lost.

  Raises:
    UserError: not all hosts arrived, or they cannot be one run.
  """
  hosts = Hosts(cluster, silence=silence)
  try:
    yield hosts
  except BaseException as error:
    if error is hosts.agreed:
      hosts.close()
    else:
      hosts.abandon(error)
    raise
  hosts.close()


class Hosts:
  """All hosts of a run, as one of them sees them.

  Every host makes the same calls in the same order, from its main thread.
  """

  def __init__(self, cluster: Cluster, *, silence: float):
    self.index, self.count = cluster.host, cluster.hosts
    self.is_first = cluster.host == 0
    self.agreed = None  # the error that `together` raised on all
    self._cluster = cluster
    self._silence = silence
    self._initialized = self._closed = False
    self._inbox = queue.SimpleQueue()  # messages of rounds, from any host
    self._ending = threading.Lock()  # of the thread that ends the process
    self._over = threading.Event()
    self._wires: dict[int, Wire] = {}
    if self.count > 1:
      self._wires = meet(cluster, timeout=cluster.wait, silence=silence)
    self._listeners = [
      self._start(self._listen, peer, wire)
      for peer, wire in self._wires.items()
    ]
    if self._wires:
      self._start(self._beat)

  def gather(self, value: object) -> list:
    """Returns the values of all hosts, in their order, when all have called.

    Args:
      value: what JSON can say.
    """
    return self._round("gather", value) if self._wires else [value]

  @contextlib.contextmanager
  def together(self) -> Iterator[None]:
    """Raises on all hosts the UserError that is raised inside on any.

    What all have to say is said once, the rest with the hosts that say it.
    """
    if not self._wires:
      yield
      return
    mine = None
    try:
      yield
    except UserError as error:
      mine = error
    texts = self.gather(None if mine is None else str(mine))
    if any(text is not None for text in texts):
      # It keeps its class and its place if it has nothing to add.
      same = mine is not None and set(texts) == {str(mine)}
      self.agreed = mine if same else UserError(_who_says_what(texts))
      raise self.agreed from mine.__cause__ if same else mine

  def initialize(self) -> None:
    """Makes the devices of all hosts one, before jax looks for its own."""
    if not self._wires:
      return
    import jax

    # It would take SIGTERM away from whoever has asked for it.
    jax.config.update("jax_enable_preemption_service", False)
    _keep_from_proxies(self._cluster.address[0])
    jax.config.update("jax_check_proxy_envs", False)
    self.gather(None)  # it would abort, were it to wait for long
    jax.distributed.initialize(
      self._cluster.jax_coordinator,
      num_processes=self.count,
      process_id=self.index,
      local_device_ids=self._cluster.local_devices,
      cluster_detection_method="deactivate",
      heartbeat_timeout_seconds=_JAX_HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_JAX_SHUTDOWN_SECONDS,
    )
    self._initialized = True

  def close(self) -> None:
    """Ends in peace: waits until all hosts are here, and says goodbye."""
    if self._closed or not self._wires:
      return
    self._round("close")
    if self._initialized:
      import jax

      jax.distributed.shutdown()
    self._round("goodbye")
    self._closed = True
    self._over.set()
    for wire in self._wires.values():
      wire.hang_up()
    self._see_off()

  def abandon(self, error: BaseException) -> None:
    """Tells the others why this host ends, which is for the caller to do.

    Does not return if another host turns out to be the reason.
    """
    if self._closed or not self._wires:
      return
    text, code = _last_words(error)
    if not isinstance(error, UserError | KeyboardInterrupt):
      time.sleep(_NEWS_SECONDS)
    self._ending.acquire()
    self._closed = True
    # A normal end would wait for the others in jax.distributed.
    atexit.register(leave, code)
    self._send_all(stop=f"Host {self.index} stopped: {text}", code=code)
    if self.is_first:
      self._see_off()

  def _round(self, kind: str, value: object = None) -> list:
    """Brings one value of each host to all; host 0 collects."""
    if not self.is_first:
      self._send_all(round=kind, value=value)
      return self._inbox.get()[1]["values"]
    messages = {0: {"round": kind, "value": value}}
    while len(messages) < self.count:
      peer, message = self._inbox.get()
      messages[peer] = message
    messages = [messages[i] for i in range(self.count)]
    if any(message["round"] != kind for message in messages):
      raise RuntimeError(
        "The hosts do not do the same: "
        + ", ".join(f"host {i} {m['round']}" for i, m in enumerate(messages))
      )
    values = [message["value"] for message in messages]
    self._send_all(round=kind, values=values)
    return values

  def _send_all(self, **message: object) -> None:
    for wire in self._wires.values():
      wire.send(**message)

  def _start(self, work, *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread

  def _beat(self) -> None:
    """Shows the others that this host lives."""
    while not self._over.wait(self._silence / 6):
      self._send_all(beat=True)

  def _listen(self, peer: int, wire: Wire) -> None:
    """Hears what a peer says; that it says nothing ends this process."""
    wire.patience(self._silence)
    parted, why = False, "its process ended"
    try:
      while (message := wire.receive()) is not None:
        if "round" in message:
          parted = message["round"] == "goodbye"
          self._inbox.put((peer, message))
        elif "stop" in message:
          self._end(message["stop"], message["code"])
    except TimeoutError:
      why = f"no sign of life for {self._silence:g} s"
    except Garbled as error:
      why = f"it sent {error}"
    if not parted:
      self._end(
        f"Host {peer} was lost: {why}. Start the same command again on all "
        "hosts: the run goes on from its newest checkpoint.",
        cli.EX_TEMPFAIL,
      )
    wire.close()

  def _end(self, text: str, code: int) -> None:
    """Ends the process, unless another thread does."""
    if not self._ending.acquire(blocking=False):
      return
    os.write(2, f"{text}\n".encode())
    if self.is_first:
      self._send_all(stop=text, code=code)
      self._see_off()
    leave(code)

  def _see_off(self) -> None:
    """Waits a little for the other ends of the connections to close."""
    deadline = time.monotonic() + _END_SECONDS
    for listener in self._listeners:
      if listener is not threading.current_thread():
        listener.join(max(deadline - time.monotonic(), 0))


def _last_words(error: BaseException) -> tuple[str, int]:
  """What the other hosts say of an error, and their exit code."""
  if isinstance(error, UserError):
    return str(error), cli.exit_code(error)
  if isinstance(error, KeyboardInterrupt):
    return "interrupted.", cli.EX_TEMPFAIL
  text = f"{type(error).__name__}: {error} (its own log says where)."
  return text, cli.EX_TEMPFAIL if _may_be_a_peer(error) else CRASH


def _may_be_a_peer(error: BaseException) -> bool:
  """Whether a lost host may be behind it, of which there is no news yet.

  What a machine leaves open when its power fails is seen after a while only,
  and the devices may be faster.
  """
  from jax.errors import JaxRuntimeError

  return isinstance(error, JaxRuntimeError) and not re.search(
    "RESOURCE_EXHAUSTED|INVALID_ARGUMENT|UNIMPLEMENTED", str(error)
  )


def _who_says_what(texts: list[str | None]) -> str:
  """Puts the hosts before each line of what they say, equal texts once."""
  said = {}
  for i, text in enumerate(texts):
    if text is not None:
      said.setdefault(text, []).append(str(i))
  if len(said) == 1 and None not in texts:
    return texts[0]
  return "\n".join(
    # Indented lines go on with the one before them.
    line if line.startswith(" ") else f"{_name(hosts)}: {line}"
    for text, hosts in said.items()
    for line in text.splitlines()
  )


def _name(hosts: list[str]) -> str:
  return f"host{'s' if len(hosts) > 1 else ''} {format_list(hosts)}"


def _keep_from_proxies(host: str) -> None:
  """Lets gRPC go straight to a host, whatever the environment says."""
  names = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy")
  os.environ["no_grpc_proxy"] = f"{names},{host}" if names else host
