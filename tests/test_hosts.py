# SPDX-License-Identifier: Apache-2.0
"""Hosts meet, agree, and end together."""

import contextlib
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from mixer.cli import EX_OK, EX_TEMPFAIL, EX_USAGE
from mixer.errors import UserError
from mixer.hosts import Cluster, join

CRASH = 1
ROOT = Path(__file__).parent.parent

# A host of a run: joins, does what a test says, and ends as programs here do.
PROGRAM = """
import os, signal, sys, time
from mixer import cli
from mixer.errors import UserError
from mixer.hosts import Cluster, join, rendezvous

def main():
  cluster = Cluster("localhost:{port}", {count}, {index}, wait={wait})
  with join(cluster, **{options}) as hosts:
{body}

if __name__ == "__main__":
  rendezvous.SAY_EVERY = {say_every}
  sys.exit(cli.run_cli(main))
"""


def free_port():
  """A port that is free like the one after it."""
  while True:
    with socket.socket() as first, socket.socket() as second:
      first.bind(("localhost", 0))
      port = first.getsockname()[1]
      with contextlib.suppress(OSError, OverflowError):
        second.bind(("localhost", port + 1))
        return port


class Run:
  """Processes that are hosts of one run; those that are left are killed."""

  def __init__(self, tmp_path):
    self.port = free_port()
    self.folder = tmp_path
    self.processes = []

  def start(
    self,
    body,
    count,
    *,
    index=None,
    port=None,
    env=None,
    say_every=10,
    wait=300,
    **options,
  ):
    """Starts one host, or without an index all of them."""
    indices = range(count) if index is None else [index]
    for index in indices:
      text = PROGRAM.format(
        port=port or self.port,
        count=count,
        index=index,
        wait=wait,
        options=options,
        say_every=say_every,
        body=textwrap.indent(textwrap.dedent(body), "    "),
      )
      script = self.folder / f"host{len(self.processes)}.py"
      script.write_text(text)
      self.processes.append(
        subprocess.Popen(
          [sys.executable, script],
          env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
        )
      )
    return self.processes[-1]

  def lines(self):
    """Waits for a line of each."""
    return [process.stdout.readline() for process in self.processes]

  def end(self):
    """Waits for all; returns their exit codes, outputs and errors."""
    ended = [process.communicate(timeout=60) for process in self.processes]
    outputs, errors = zip(*ended, strict=True)
    return [p.returncode for p in self.processes], outputs, errors


@pytest.fixture
def run(tmp_path):
  run = Run(tmp_path)
  yield run
  for process in run.processes:
    process.kill()
    process.communicate()


def connect(port):
  """Connects as soon as somebody listens."""
  deadline = time.monotonic() + 30
  while True:
    try:
      return socket.create_connection(("localhost", port))
    except OSError:
      assert time.monotonic() < deadline
      time.sleep(0.05)


def test_a_single_host_opens_nothing_and_agrees_with_itself():
  threads = threading.active_count()
  error = UserError("Mend it.")

  with pytest.raises(UserError) as raised, join(Cluster()) as hosts:
    assert (hosts.index, hosts.count, hosts.is_first) == (0, 1, True)
    assert hosts.gather({"a": 1}) == [{"a": 1}]
    assert threading.active_count() == threads
    hosts.initialize()
    with hosts.together():
      raise error

  assert raised.value is error


def test_values_of_all_hosts_come_in_their_order(run):
  body = """
    time.sleep((hosts.count - hosts.index) / 10)
    values = hosts.gather({"host": hosts.index, "long": "x" * 100000})
    print([value["host"] for value in values], {len(v["long"]) for v in values})
    print(hosts.gather(hosts.is_first))
  """
  run.start(body, 4)

  codes, outputs, errors = run.end()

  assert codes == [EX_OK] * 4, errors
  said = "[0, 1, 2, 3] {100000}\n[True, False, False, False]\n"
  assert outputs == (said,) * 4


@pytest.mark.parametrize("slow", [0, 1])
def test_hosts_end_in_peace_whichever_is_first(slow, run):
  run.start(f"time.sleep(hosts.index == {slow})", 3)

  codes, _, errors = run.end()

  assert (codes, errors) == ([EX_OK] * 3, ("", "", ""))


def test_a_host_that_never_comes_ends_the_others(run):
  run.start("pass", 3, index=0, wait=2, say_every=0.5)
  run.start("pass", 3, index=1, wait=20)

  codes, _, errors = run.end()

  assert codes == [EX_TEMPFAIL] * 2
  for error in errors:
    *waiting, last = error.splitlines()
    assert last == (
      f"error: Host 2 of 3 did not arrive at localhost:{run.port} within 2 s: "
      "look at its log, or start it again."
    )
    assert waiting
    assert set(waiting) <= {
      f"waiting for 1 of 3 hosts (2) at localhost:{run.port}",
      f"waiting for 2 of 3 hosts (1, 2) at localhost:{run.port}",
    }


def test_hosts_that_do_not_find_the_first_say_so(run):
  run.start("pass", 2, index=1, wait=1)

  [code], _, [error] = run.end()

  assert code == EX_TEMPFAIL
  assert f"No answer from localhost:{run.port} within 1 s" in error
  assert "Connection refused" in error


def test_ctrl_c_ends_the_waiting(run):
  first = run.start("pass", 3, index=0, say_every=0.5)
  connect(run.port).close()
  other = run.start("pass", 3, index=1)
  assert "(2)" in other.stderr.readline()  # it hears from host 0
  other.send_signal(signal.SIGINT)
  other.wait(timeout=20)
  first.send_signal(signal.SIGINT)

  codes, *_ = run.end()

  assert codes == [130, 130]


def test_a_host_that_ends_while_it_waits_may_come_again(run):
  run.start("print(hosts.gather(1))", 3, index=0, say_every=0.5)
  other = run.start("pass", 3, index=1)
  assert "(2)" in other.stderr.readline()
  other.kill()
  other.wait()
  run.start("hosts.gather(2)", 3, index=1)
  run.start("hosts.gather(3)", 3, index=2)

  codes, outputs, errors = run.end()

  assert codes == [EX_OK, -signal.SIGKILL, EX_OK, EX_OK], errors
  assert outputs[0] == "[1, 2, 3]\n"


@pytest.mark.parametrize(
  ("others", "message"),
  [
    ([(3, 1), (3, 1)], "Two hosts say that they are host 1 of 3"),
    ([(3, 3)], "Host 3 (127.0.0.1) is none of the 3"),
    ([(4, 1)], "has been told of 4 hosts and host 0 of 3"),
  ],
)
def test_hosts_that_cannot_be_one_run_all_say_why(others, message, run):
  run.start("pass", 3, index=0)
  connect(run.port).close()
  for count, index in others:
    run.start("pass", count, index=index)

  codes, _, errors = run.end()

  assert codes == [EX_USAGE] * len(codes)
  assert all(message in error for error in errors), errors


def test_another_version_on_a_host_is_seen(run, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(ROOT / "mixer", other / "mixer")
  with (other / "mixer" / "errors.py").open("a") as file:
    file.write("# changed\n")
  run.start("pass", 2, index=0)
  run.start("pass", 2, index=1, env={"PYTHONPATH": str(other)})

  codes, _, errors = run.end()

  assert codes == [EX_USAGE] * 2
  for error in errors:
    assert "has another code in mixer/" in error
    assert "install the same on all hosts" in error


def test_strangers_are_not_let_in(run):
  run.start("print(hosts.gather(1))", 2, index=0)
  for words in (
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\xff\n",
    b"[1]\n",
    b'{"host": 1}\n',
    b'{"host": "x", "hosts": 2, "problem": null, "versions": {}}\n',
    b'{"host": 1, "hosts": 2, "problem": null, "versions": [1]}\n',
    b'{"host": 1, "hosts": 2, "problem": 5, "versions": {}}\n',
  ):
    with connect(run.port) as stranger:
      stranger.sendall(words)
      stranger.shutdown(socket.SHUT_WR)
      assert stranger.recv(100) == b""
  run.start("hosts.gather(2)", 2, index=1)

  codes, outputs, errors = run.end()

  assert codes == [EX_OK, EX_OK], errors
  assert outputs[0] == "[1, 2]\n"
  assert errors[0].count("is no host of a run: not let in") == 8


def test_a_port_that_another_program_has_is_named(run):
  with http.server.HTTPServer(
    ("localhost", 0), http.server.SimpleHTTPRequestHandler
  ) as server:
    port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run.start("pass", 2, index=0, port=port)
    run.start("pass", 2, index=1, port=port)

    codes, _, [first, other] = run.end()
    server.shutdown()

  assert codes == [EX_USAGE] * 2
  # Or at the next, which it needs as well, if something has that by chance.
  taken = f"{port}|{port + 1}"
  assert re.search(f"Host 0 cannot listen at port ({taken}) ", first)
  assert f"Another program answers at localhost:{port}" in other


def test_a_program_that_says_nothing_is_not_waited_for(run):
  with socket.create_server(("localhost", 0)) as silent:
    run.start("pass", 2, index=1, port=silent.getsockname()[1], wait=1)

    [code], _, [error] = run.end()

  assert code == EX_TEMPFAIL
  assert "(connected, but no word)" in error


def test_an_error_of_the_devices_may_be_a_host_that_is_lost(run):
  """Power that fails says no goodbye; the next start will tell."""
  run.start(
    """
    from jax.errors import JaxRuntimeError
    if hosts.index:
      raise JaxRuntimeError("UNAVAILABLE: connection reset by peer")
    time.sleep(600)
    """,
    2,
  )

  codes, _, [error, _] = run.end()

  assert codes == [EX_TEMPFAIL, EX_TEMPFAIL]
  assert "Host 1 stopped: JaxRuntimeError: UNAVAILABLE" in error


def test_strangers_that_say_nothing_hold_up_hosts_and_no_more(run):
  """They take host 0 five seconds each, as long as a greeting may."""
  run.start("print(hosts.gather(hosts.index), flush=True)", 2, index=0)
  strangers = [connect(run.port) for _ in range(2)]
  run.start("hosts.gather(hosts.index)", 2, index=1)

  codes, [said, _], _ = run.end()

  assert (codes, said) == ([EX_OK] * 2, "[0, 1]\n")
  for stranger in strangers:
    stranger.close()


def relay_to(port):
  """Lets one connection through from another port, as a firewall would."""
  listener = socket.create_server(("localhost", free_port()))

  def forward(source, sink):
    with contextlib.suppress(OSError):
      while data := source.recv(4096):
        sink.sendall(data)
      sink.shutdown(socket.SHUT_WR)

  def serve():
    outside, inside = listener.accept()[0], connect(port)
    threading.Thread(target=forward, args=(inside, outside)).start()
    forward(outside, inside)

  threading.Thread(target=serve, daemon=True).start()
  return listener.getsockname()[1]


def test_a_second_port_that_is_closed_is_seen_by_all(run):
  run.start("pass", 3, index=0, say_every=0.5)
  assert "(2)" in run.start("pass", 3, index=1).stderr.readline()
  run.start("pass", 3, index=2, port=relay_to(run.port))

  codes, _, errors = run.end()

  assert codes == [EX_USAGE] * 3
  for error in errors:
    assert "Host 2 reaches localhost" in error
    assert "open both ports" in error


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_host_ends_the_others(lost, run):
  run.start("print('here', flush=True); time.sleep(600)", 3)
  assert run.lines() == ["here\n"] * 3
  run.processes[lost].kill()

  codes, _, errors = run.end()

  said = (
    f"Host {lost} was lost: its process ended. Start the same command again on "
    "all hosts: the run goes on from its newest checkpoint.\n"
  )
  expected = [(EX_TEMPFAIL, said)] * 3
  expected[lost] = (-signal.SIGKILL, "")
  assert list(zip(codes, errors, strict=True)) == expected


def test_a_killed_host_ends_those_that_wait_for_its_value(run):
  run.start("print('here', flush=True); hosts.gather(1)", 3, index=0)
  run.start("print('here', flush=True); hosts.gather(1)", 3, index=1)
  run.start("print('here', flush=True); time.sleep(600)", 3, index=2)
  assert run.lines() == ["here\n"] * 3
  run.processes[2].kill()

  codes, *_ = run.end()

  assert codes == [EX_TEMPFAIL, EX_TEMPFAIL, -signal.SIGKILL]


def test_a_host_that_shows_no_sign_of_life_ends_the_others(run):
  run.start("print('here', flush=True); time.sleep(600)", 2, silence=2.0)
  assert run.lines() == ["here\n"] * 2
  run.processes[1].send_signal(signal.SIGSTOP)
  run.processes[0].wait(timeout=60)
  run.processes[1].kill()

  codes, _, errors = run.end()

  assert codes == [EX_TEMPFAIL, -signal.SIGKILL]
  assert "Host 1 was lost: no sign of life for 2 s." in errors[0]


def test_quiet_hosts_are_not_lost(run):
  run.start("time.sleep(2.5)", 2, silence=2.0)

  codes, _, errors = run.end()

  assert (codes, errors) == ([EX_OK] * 2, ("", ""))


@pytest.mark.parametrize("wrong", [0, 1])
def test_an_error_on_one_host_ends_all_with_it(wrong, run):
  body = f"""
    hosts.gather(1)
    if hosts.index == {wrong}:
      raise UserError("Mend it.")
    time.sleep(600)
  """
  run.start(body, 3)

  codes, _, errors = run.end()

  assert codes == [EX_USAGE] * 3
  for host, error in enumerate(errors):
    said = "error:" if host == wrong else f"Host {wrong} stopped:"
    assert error == f"{said} Mend it.\n"


def test_a_crash_of_one_host_ends_all_as_crashes(run):
  body = """
    hosts.gather(1)
    if hosts.index == 1:
      1 / 0
    time.sleep(600)
  """
  run.start(body, 2)

  codes, _, [other, own] = run.end()

  assert codes == [CRASH] * 2
  assert other.startswith("Host 1 stopped: ZeroDivisionError")
  assert own.startswith("Traceback")


def test_what_all_complain_of_is_said_once_and_the_rest_with_its_host(run):
  body = """
    with hosts.together():
      pass
    try:
      with hosts.together():
        raise UserError("Mend it.")
    except UserError as error:
      print(error)
    with hosts.together():
      if hosts.index == 1:
        raise UserError("No data.\\n  See there.\\nNo room.")
      if hosts.index in (2, 3):
        raise UserError("No data.")
  """
  run.start(body, 4)

  codes, outputs, errors = run.end()

  assert codes == [EX_USAGE] * 4
  assert outputs == ("Mend it.\n",) * 4
  assert set(errors) == {
    "error: host 1: No data.\n  See there.\nhost 1: No room.\n"
    "hosts 2, 3: No data.\n"
  }


def test_hosts_that_do_different_things_end(run):
  run.start("hosts.gather(1)", 2, index=0)
  run.start("pass", 2, index=1)

  codes, _, [_, other] = run.end()

  assert codes == [CRASH] * 2
  assert "host 0 gather, host 1 close" in other


TWO_DEVICES = {
  "JAX_PLATFORMS": "cpu",
  "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
}


def test_the_devices_of_all_hosts_compute_together(run):
  body = """
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
    with hosts.together():
      hosts.initialize()
    import jax
    import numpy as np
    total = jax.pmap(lambda x: jax.lax.psum(x, "batch"), axis_name="batch")
    x = np.arange(2) + 10 * hosts.index
    print(total(x).tolist(), len(jax.devices()))
    os.kill(os.getpid(), signal.SIGTERM)
    print(heard)
  """
  # Where a proxy is set, gRPC would ask it for the other host.
  proxy = {"http_proxy": "http://localhost:9", "no_grpc_proxy": ""}
  run.start(body, 2, env=TWO_DEVICES | proxy)

  codes, outputs, errors = run.end()

  assert codes == [EX_OK] * 2, errors
  for output in outputs:
    assert f"{[0 + 1 + 10 + 11] * 2} 4\n['SIGTERM']\n" in output


COMPUTES = """
  hosts.initialize()
  import jax
  import numpy as np
  total = jax.pmap(lambda x: jax.lax.psum(x, "batch"), axis_name="batch")
  total(np.arange(2)).block_until_ready()
  print("here", flush=True)
  {then}
  while True:
    total(np.arange(2)).block_until_ready()
"""


def wait_until_here(run):
  for process in run.processes:
    while process.stdout.readline() != "here\n":
      assert process.poll() is None


def test_a_first_host_killed_amid_a_collective_ends_the_other(run):
  run.start(COMPUTES.format(then=""), 2, env=TWO_DEVICES)
  wait_until_here(run)
  run.processes[0].kill()

  codes, _, [_, error] = run.end()

  assert codes == [-signal.SIGKILL, EX_TEMPFAIL], error
  assert "Host 0 was lost" in error
  assert "Traceback" not in error


@pytest.mark.parametrize("wrong", [0, 1])
def test_an_error_amid_collectives_ends_all(wrong, run):
  then = f"if hosts.index == {wrong}: raise UserError('Mend it.')"
  run.start(COMPUTES.format(then=then), 2, env=TWO_DEVICES)

  codes, _, errors = run.end()

  assert codes == [EX_USAGE] * 2, errors
  assert "error: Mend it." in errors[wrong]
  assert f"Host {wrong} stopped: Mend it." in errors[1 - wrong]
