# SPDX-License-Identifier: Apache-2.0
"""Several processes on loopback connect, agree, and end together."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap

import pytest
from runs import ROOT, TIMEOUT, free_port

from mixer.cli import EX_OK, EX_TEMPFAIL, EX_USAGE
from mixer.cluster import ONE_HOST
from mixer.distributed import initialize
from mixer.errors import UserError

CRASH = 1
LOST = (EX_TEMPFAIL, -signal.SIGABRT)  # the second by jax itself

PROGRAM = """
import os, re, signal, sys, time
from mixer import cli, distributed
from mixer.cluster import Cluster
from mixer.errors import UserError
from mixer.training import preemption

def main():
  cluster = Cluster("localhost:{port}", {count}, {index}, **{options})
  with distributed.initialize(cluster) as hosts:
{body}

if __name__ == "__main__":
  sys.exit(cli.run_cli(main))
"""


class Run:
  """Processes that are hosts of one run."""

  def __init__(self, folder):
    self.port = free_port()
    self.folder = folder
    self.processes = []

  def start(self, body, count=2, *, index=None, root=ROOT, **options):
    """Starts one host, or all of them without an index."""
    options = {"wait": TIMEOUT, "heartbeat": TIMEOUT} | options
    for i in range(count) if index is None else [index]:
      text = PROGRAM.format(
        port=self.port,
        count=count,
        index=i,
        options=options,
        body=textwrap.indent(textwrap.dedent(body), "    "),
      )
      script = self.folder / f"host{len(self.processes)}.py"
      script.write_text(text)
      self.processes.append(
        subprocess.Popen(
          [sys.executable, script],
          cwd=ROOT,
          env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
        )
      )

  def end(self):
    """Waits for all; returns their exit codes, outputs and errors."""
    try:
      ended = [each.communicate(timeout=TIMEOUT) for each in self.processes]
    finally:
      for process in self.processes:
        process.kill()
    outputs, errors = zip(*ended, strict=True)
    return [p.returncode for p in self.processes], outputs, errors


@pytest.fixture
def run(tmp_path):
  return Run(tmp_path)


def test_a_single_host_opens_nothing_and_agrees_with_itself():
  with initialize(ONE_HOST) as hosts:
    assert (hosts.index, hosts.count, hosts.is_first) == (0, 1, True)
    assert hosts.gather({"a": [1]}) == [{"a": [1]}]
    hosts.check_same({"a": 1}, "differs")
    with pytest.raises(UserError, match="wrong"), hosts.raise_on_all():
      raise UserError("wrong")


# (error of each host, what all hosts raise)
ERRORS = [
  ("None, UserError('a'), None", "UserError('host 1: a')"),
  ("3 * [UserError('a')]", "UserError('a')"),
  ("UserError('a'), None, UserError('a')", "UserError('hosts 0, 2: a')"),
  (
    "RetryableError('a'), UserError('b'), None",
    "UserError('host 0: a\\nhost 1: b')",
  ),
  # Started again, if all errors are transient.
  ("RetryableError('a'), None, None", "RetryableError('host 0: a')"),
]


def test_hosts_gather_values_and_errors_in_their_order(run):
  run.start(
    f"""
    from mixer.errors import RetryableError
    for i in range(3):
      time.sleep(0.3 * (hosts.index == i))
      print(hosts.gather([hosts.index, i]))
    for errors in {[errors for errors, _ in ERRORS]}:
      try:
        with hosts.raise_on_all():
          if error := eval(errors)[hosts.index]:
            raise error
      except UserError as error:
        print(repr(error))
        last = error
    raise last
    """,
    count=3,
  )

  codes, outputs, errors = run.end()

  assert codes == [EX_TEMPFAIL] * 3, errors
  values = [f"{[[host, i] for host in range(3)]}" for i in range(3)]
  for output, error in zip(outputs, errors, strict=True):
    assert output.splitlines() == [*values, *(raised for _, raised in ERRORS)]
    assert error.endswith("error: host 0: a\n")


@pytest.mark.parametrize("index", [0, 1])
def test_a_host_that_never_comes_is_reported_by_the_others(index, run):
  run.start("pass", index=index, wait=3)

  [code], _, [error] = run.end()

  assert code == EX_TEMPFAIL
  assert f"Not all of 2 hosts connected to localhost:{run.port}" in error
  assert f"within 3 s; this is host {index} of 2" in error
  assert "Traceback" not in error


def test_a_port_that_another_program_uses_is_named(run):
  with socket.create_server(("localhost", run.port)):
    run.start("pass", index=0)
    [code], _, [error] = run.end()

  assert code == EX_USAGE
  assert f"Host 0 cannot listen on port {run.port}" in error


@pytest.mark.skipif(
  not os.path.exists("/proc/net/tcp"), reason="reads Linux's sockets"
)
def test_host_0_listens_on_the_given_address_only(run):
  run.start(
    f"""
    text = open("/proc/net/tcp").read() + open("/proc/net/tcp6").read()
    # 0A: listens.
    print(*re.findall(r"(\\w+):{run.port:04X} \\S+ 0A", text), flush=True)
    """
  )

  codes, outputs, _ = run.end()

  assert codes == [EX_OK, EX_OK]
  [address] = outputs[0].split()
  # 127.0.0.1, the same in IPv6, or ::1; with all addresses it would be zeros.
  assert address.endswith(("0100007F", "00000000000000000000000001000000"))


def test_another_version_of_the_code_on_a_host_ends_all(run, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(ROOT / "mixer", copy / "mixer")
  with (copy / "mixer" / "errors.py").open("a") as file:
    file.write("# changed\n")
  run.start("pass", index=0)
  run.start("pass", index=1, root=copy)

  codes, _, errors = run.end()

  assert codes == [EX_USAGE] * 2, errors
  for error in errors:
    assert "Host 1 runs other software than host 0" in error
    assert "code in mixer/: " in error


def test_a_crash_of_one_host_ends_all_with_its_text_and_code(run):
  """The other waits for it, in a gather."""
  run.start("if hosts.is_first: raise KeyError('bug')\nhosts.gather(None)")

  codes, _, errors = run.end()

  assert codes == [CRASH] * 2, errors
  assert "Host 0 stopped: KeyError: 'bug'" in errors[1]
  assert "KeyError: 'bug'" in errors[0]


def test_a_killed_host_ends_the_others(run):
  run.start(
    """
    hosts.gather(None)
    if hosts.index == 1:
      os.kill(os.getpid(), signal.SIGKILL)
    hosts.gather(None)
    """,
    heartbeat=15,
  )

  codes, _, errors = run.end()

  assert codes[1] == -signal.SIGKILL
  assert codes[0] in LOST, errors


def test_a_signal_to_one_host_stops_all_in_the_same_call(run):
  run.start(
    """
    with preemption.catch_signals(hosts) as should_stop:
      calls = 0
      while not should_stop():
        calls += 1
        if hosts.is_first and calls == 20:
          os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01 * (1 + hosts.index))
      assert should_stop()
    print(calls)
    """
  )

  codes, outputs, errors = run.end()

  assert codes == [EX_OK] * 2, errors
  assert outputs[0] == outputs[1]
  assert int(outputs[0]) >= 20
  assert "Stopping: saves first" in errors[0]


def test_a_second_signal_to_a_host_of_several_ends_all_at_once(run):
  run.start(
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with preemption.catch_signals(hosts) as should_stop:
      if hosts.index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGTERM)
      hosts.gather(None)
    """
  )

  codes, _, errors = run.end()

  assert codes[1] in (130, EX_TEMPFAIL), errors
  assert codes[0] == EX_TEMPFAIL
  assert "Host 1 stopped: interrupted." in errors[0]


def test_a_host_whose_process_is_stuck_as_a_whole_is_named_by_the_others(run):
  """It holds Python's lock, so that its own watchdog is stuck, too."""
  run.start(
    f"""
    import ctypes
    from etils import epath
    from mixer.training import watchdog
    watchdog.deadline = lambda name, *_: 4.0 if name in "wait save" else 1e9
    folder = epath.Path({str(run.folder)!r})
    with watchdog.Watchdog(1.0, folder, hosts) as dog:
      dog.phase("update", 7)
      while hosts.published().get(1, [0, ""])[1] != "update":
        time.sleep(0.1)
      if hosts.index == 1:
        ctypes.PyDLL(None).pause()
      dog.phase("wait")
      hosts.gather(None)
    """
  )

  codes, _, errors = run.end()

  assert codes == [EX_TEMPFAIL, -signal.SIGABRT], errors
  assert "host 1 in update at step 7 since" in errors[0]
  assert "waiting for that: 0." in errors[0]
