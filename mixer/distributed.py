# SPDX-License-Identifier: Apache-2.0
"""Several hosts as one program, on jax.distributed.

Connections, heartbeats and the key-value store are jax's. On top of them: small
values gathered from all hosts, and an error of one host raised on all.
"""

import atexit
import contextlib
import errno
import hashlib
import importlib.metadata
import ipaddress
import json
import logging
import math
import os
import platform
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from mixer.cli import EX_TEMPFAIL, exit_code
from mixer.cluster import Cluster
from mixer.config_check import diff_configs
from mixer.errors import RetryableError, UserError, format_list, notify
from mixer.jax_setup import device_count

_PACKAGES = "jax", "jaxlib", "flax", "optax", "numpy"
# jax aborts the process when its own timeout ends: ours has to end first.
_JAX_MARGIN_SECONDS = 60
# Key of the error that ends all hosts, and for how long its host waits until
# the others have read it.
_STOP, _POLL_SECONDS, _STOP_SECONDS = "mixer/stop", 1.0, 15.0
_PUBLIC = "mixer/public"  # folder of keys, one a host
_EXIT_SECONDS = 3.0  # for the other hosts to exit before host 0


@contextlib.contextmanager
def initialize(cluster: Cluster) -> Iterator["Hosts"]:
  """Connects the hosts and starts jax's backends; ends with them.

  If the block raises an error on one host, all others print it and exit with
  its code. If a host is lost, the others exit with EX_TEMPFAIL, or jax aborts
  them (134) after `cluster.heartbeat` seconds.

  Raises:
    UserError: hosts are missing, their code differs, or jax has no backend.
  """
  if cluster.hosts == 1:
    device_count()
    yield Hosts(cluster)
    return
  _connect(cluster)
  hosts = Hosts(cluster)
  try:
    hosts.check_same(
      _versions(),
      "runs other software than host 0: install the same code and packages on "
      "all hosts",
    )
    device_count()
    yield hosts
  except BaseException as error:
    if error is hosts.shared_error:
      hosts.shutdown()
    else:
      hosts.abort(error)
    raise
  hosts.shutdown()


def _connect(cluster: Cluster) -> None:
  """Calls jax.distributed.initialize, which waits for all hosts.

  In a thread: signals and the timeout are handled meanwhile, where jax would
  abort the process and name no host.
  """
  import jax

  failures = []
  which = f"host {cluster.host} of {cluster.hosts}"

  def connect():
    try:
      jax.distributed.initialize(
        cluster.coordinator,
        num_processes=cluster.hosts,
        process_id=cluster.host,
        local_device_ids=cluster.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(cluster.wait) + _JAX_MARGIN_SECONDS,
        heartbeat_timeout_seconds=cluster.heartbeat,
        coordinator_bind_address=bind_address,
      )
    except Exception as error:
      failures.append(error)

  bind_address = _bind_address(cluster) if cluster.host == 0 else None
  # gRPC would send this traffic through the proxy of the environment.
  proxies = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy")
  name, _, port = cluster.coordinator.rpartition(":")
  name = name.strip("[]")
  os.environ["no_grpc_proxy"] = f"{proxies},{name}" if proxies else name
  jax.config.update("jax_check_proxy_envs", False)
  notify(
    f"This is {which}; waits for all of them at {cluster.coordinator}, up to "
    f"{cluster.wait:g} s."
  )
  thread = threading.Thread(target=connect, daemon=True)
  thread.start()
  thread.join(cluster.wait)
  if not thread.is_alive() and not failures:
    return
  atexit.register(hard_exit, EX_TEMPFAIL)
  if failures:
    raise RetryableError(
      f"jax.distributed cannot connect {which} to {cluster.coordinator}: "
      f"{failures[0]}"
    ) from failures[0]
  raise RetryableError(
    f"Not all of {cluster.hosts} hosts connected to {cluster.coordinator} "
    f"within {cluster.wait:g} s; this is {which}. Look at the logs of the "
    f"others, or start them again; they need to reach port {port} of host 0."
  )


def _bind_address(cluster: Cluster) -> str:
  """Returns the address on which host 0 listens: only the given one.

  All addresses if it is not this machine's own (behind NAT), or if the name of
  this machine is its loopback device here and something else elsewhere.

  Raises:
    UserError: another program has the port.
  """
  name, _, port = cluster.coordinator.rpartition(":")
  name = name.strip("[]")
  try:
    family, *_, address = socket.getaddrinfo(
      name, int(port), type=socket.SOCK_STREAM
    )[0]
    is_name = name not in ("localhost", address[0])
    if not (is_name and ipaddress.ip_address(address[0]).is_loopback):
      socket.create_server(address[:2], family=family).close()
      host = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
      return f"{host}:{port}"
  except OSError as error:
    if error.errno == errno.EADDRINUSE:
      raise UserError(
        f"Host 0 cannot listen on port {port} of {socket.gethostname()} "
        f"({error.strerror}): end the program that uses it, or choose another "
        "port for the run, on all hosts."
      ) from error
  return f"[::]:{port}"


class Hosts:
  """The hosts of a run, seen from one of them.

  All hosts make the same calls in the same order, from their main threads;
  `publish`, `published` and `end_stalled` are for any thread at any time.

  Attributes:
    index, count: of this host and of all.
    rounds: number of gathers begun.
    shared_error: the one that `raise_on_all` raised.
    on_stall: takes the message of `end_stalled` of another host.
  """

  def __init__(self, cluster: Cluster):
    """Watches for errors of other hosts, if jax.distributed is initialized."""
    self.index, self.count = cluster.host, cluster.hosts
    self.is_first = cluster.host == 0
    self.shared_error = None
    self.rounds = 0
    self.on_stall = notify
    self._closed = threading.Event()
    if self.count > 1:
      from jax._src import distributed

      self._store = distributed.global_state.client
      self._watcher = threading.Thread(target=self._watch, daemon=True)
      self._watcher.start()

  def gather(self, value: object) -> list:
    """Returns the values of all hosts, in their order.

    Args:
      value: of JSON's types.
    """
    if self.count == 1:
      return [value]
    self.rounds += 1
    key = f"mixer/gather/{self.rounds}"
    self._store.key_value_set(f"{key}/{self.index}", json.dumps(value))
    values = [json.loads(self._get(f"{key}/{i}")) for i in range(self.count)]
    # All hosts are in this round, so all have read the one before.
    if self.rounds > 1:
      self._store.key_value_delete(
        f"mixer/gather/{self.rounds - 1}/{self.index}"
      )
    return values

  def _get(self, key: str) -> str:
    """Waits for a key, and returns to Python now and then for signals."""
    while True:
      try:
        return self._store.blocking_key_value_get(key, 2000)
      except RuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
          raise

  def publish(self, value: object) -> None:
    """Replaces this host's public value, of JSON's types."""
    if self.count > 1:
      key, text = f"{_PUBLIC}/{self.index}", json.dumps(value)
      with contextlib.suppress(RuntimeError):  # a lost coordinator
        self._store.key_value_set(key, text, allow_overwrite=True)

  def published(self) -> dict[int, object]:
    """Returns the public values of the hosts that have any."""
    values = []
    if self.count > 1:
      with contextlib.suppress(RuntimeError):  # a lost coordinator
        values = self._store.key_value_dir_get(_PUBLIC)
    return {int(key.rpartition("/")[2]): json.loads(x) for key, x in values}

  @contextlib.contextmanager
  def raise_on_all(self) -> Iterator[None]:
    """Raises a UserError of the block on all hosts, if any host raises one.

    The message of several hosts names them in front of each line.
    """
    error = None
    try:
      yield
    except UserError as raised:
      if self.count == 1:
        raise
      error = raised
    mine = error and [str(error), isinstance(error, RetryableError)]
    failures = self.gather(mine)
    if any(failures):
      is_transient = all(failure[1] for failure in failures if failure)
      kind = RetryableError if is_transient else UserError
      texts = [failure and failure[0] for failure in failures]
      self.shared_error = kind(_merge(texts))
      raise self.shared_error from error

  def check_same(
    self, value: dict, problem: str, ignored: tuple[str, ...] = ()
  ) -> None:
    """Raises UserError on all hosts if a host has another value than host 0.

    Args:
      value: of JSON's types.
      problem: the sentence after "Host 1", without its full stop.
      ignored: keys that may differ.
    """
    first, *others = self.gather(value)
    with self.raise_on_all():
      for host, other in enumerate(others, start=1):
        if changes := list(diff_configs(first, other, ignored=ignored)):
          listed = "\n  ".join(changes)
          raise UserError(f"Host {host} {problem}.\n  {listed}")

  def shutdown(self) -> None:
    """Waits for all hosts and disconnects."""
    import jax

    self.gather(None)
    self._closed.set()
    # A thread that is in C++ while Python exits would abort the process.
    self._watcher.join()
    jax.distributed.shutdown()

  def abort(self, error: BaseException) -> None:
    """Ends the other hosts with this error; the caller ends this one."""
    text, code = _describe(error)
    # A normal exit would wait for the others in jax.distributed.
    atexit.register(hard_exit, code)
    self._stop(f"Host {self.index} stopped: {text}", code)

  def end_stalled(self, text: str) -> NoReturn:
    """Ends all hosts with EX_TEMPFAIL, although main threads are stuck."""
    if self.count > 1:
      self._stop(text, EX_TEMPFAIL, is_stalled=True)
    hard_exit(EX_TEMPFAIL)

  def _stop(self, text: str, code: int, is_stalled: bool = False) -> None:
    """Ends the other hosts with a message."""
    self._closed.set()
    with contextlib.suppress(RuntimeError):  # another host was faster, or lost
      stop = json.dumps([text, code, is_stalled])
      self._store.key_value_set(_STOP, stop)
    self._wait_for_readers()

  def _watch(self) -> None:
    """Ends this process when another host has stopped with an error."""
    while not self._closed.wait(_POLL_SECONDS):
      try:
        stop = self._store.key_value_try_get(_STOP)
      except RuntimeError:  # not there; of a lost coordinator jax takes care
        continue
      text, code, is_stalled = json.loads(stop)
      if is_stalled:
        self.on_stall(text)
      else:
        os.write(2, f"{text}\n".encode())
      self._wait_for_readers()
      hard_exit(code)

  def _wait_for_readers(self) -> None:
    """Waits until all hosts have read the error that ends them."""
    with contextlib.suppress(RuntimeError):  # a host is lost
      self._store.wait_at_barrier(_STOP, int(_STOP_SECONDS * 1000))
    if self.is_first:
      # jax aborts hosts that are still there when their coordinator exits.
      time.sleep(_EXIT_SECONDS)


def _describe(error: BaseException) -> tuple[str, int]:
  """Returns an error's text for other hosts, and its exit code."""
  from jax.errors import JaxRuntimeError

  if isinstance(error, UserError):
    return str(error), exit_code(error)
  if isinstance(error, KeyboardInterrupt):
    return "interrupted.", EX_TEMPFAIL
  text = f"{type(error).__name__}: {error} (see its own log)."
  # A collective fails at once when a host is lost, before a missed heartbeat.
  may_be_lost_host = isinstance(error, JaxRuntimeError) and not re.search(
    "RESOURCE_EXHAUSTED|INVALID_ARGUMENT|UNIMPLEMENTED", str(error)
  )
  return text, EX_TEMPFAIL if may_be_lost_host else 1


def _merge(texts: list[str | None]) -> str:
  """Joins the hosts' messages, equal ones once, with the hosts in front."""
  hosts_by_text = {}
  for i, text in enumerate(texts):
    if text is not None:
      hosts_by_text.setdefault(text, []).append(str(i))
  if len(hosts_by_text) == 1 and None not in texts:
    return texts[0]
  return "\n".join(
    # Indented lines continue the one before them.
    line
    if line.startswith(" ")
    else f"host{'s' if len(hosts) > 1 else ''} {format_list(hosts)}: {line}"
    for text, hosts in hosts_by_text.items()
    for line in text.splitlines()
  )


def hard_exit(code: int) -> NoReturn:
  """Ends the process from any thread, after flushing its output.

  Without a peer, a normal exit would wait in jax.distributed, and then abort.
  """

  def flush():
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()

  try:
    # In a thread: the reader may be stuck, or the main thread hold the file.
    flushing = threading.Thread(target=flush, daemon=True)
    flushing.start()
    flushing.join(5.0)
  finally:
    os._exit(code)


def _versions() -> dict[str, str]:
  """Returns a hash of the code and the versions of packages."""
  code = hashlib.sha256()
  folder = Path(__file__).parent
  for file in sorted(folder.rglob("*.py")):
    code.update(f"{file.relative_to(folder)} ".encode() + file.read_bytes())
  return {
    "code in mixer/": code.hexdigest()[:12],
    "python": ".".join(platform.python_version_tuple()[:2]),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
  }
