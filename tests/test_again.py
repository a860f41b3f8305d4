# SPDX-License-Identifier: Apache-2.0
"""launch/again.sh starts a command again, up to its limits."""

import contextlib
import os
import re
import signal
import subprocess
import sys

import pytest
from launchers import AGAIN, LAUNCH, exits_with, run


def again(*command, **options) -> list[str]:
  options = {"pause": 0} | options
  flags = [f"--{name}={value}" for name, value in options.items()]
  return [str(LAUNCH / "again.sh"), *flags, *map(str, command)]


@pytest.mark.parametrize("code", AGAIN)
def test_a_command_that_asks_for_it_is_started_again(tmp_path, code):
  script = f"echo >> starts; (($(wc -l < starts) == 3)) || {exits_with(code)}"

  done = run(*again("bash", "-c", script), folder=tmp_path)

  assert done.returncode == 0
  assert (tmp_path / "starts").read_text() == 3 * "\n"
  assert re.search(
    rf"exited with {code} after \d+ s; starts again \(2 of", done.stderr
  )


@pytest.mark.parametrize("code", [0, 1, 2, 127, 139])
def test_any_other_exit_code_is_passed_on_at_once(tmp_path, code):
  script = f"echo >> starts; {exits_with(code)}"

  done = run(*again("bash", "-c", script), folder=tmp_path)

  assert done.returncode == code
  assert (tmp_path / "starts").read_text() == "\n"


def test_starting_again_has_a_limit(tmp_path):
  command = again("bash", "-c", "echo >> starts; exit 75", limit=7, quick=0)

  done = run(*command, folder=tmp_path)

  assert done.returncode == 75
  assert (tmp_path / "starts").read_text() == 8 * "\n"
  assert "started again 7 times, no more" in done.stderr


def test_quick_failures_in_a_row_have_a_smaller_limit(tmp_path):
  # The third takes longer, so the count starts again.
  script = "echo >> starts; (($(wc -l < starts) == 3)) && sleep 5; exit 75"

  done = run(*again("bash", "-c", script, quick=5), folder=tmp_path)

  assert done.returncode == 75
  assert (tmp_path / "starts").read_text() == 8 * "\n"
  assert "within 5 s 5 times in a row" in done.stderr


SAVES_SLOWLY = """
import signal, sys, time
received = []
for number in signal.SIGTERM, signal.SIGINT:
  signal.signal(number, lambda number, _: received.append(number))
print("started", flush=True)
while not received:
  time.sleep(0.01)
time.sleep(0.5)
print("saved after", *map(int, received), flush=True)
sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_and_nothing_starts_again(number):
  command = again(sys.executable, "-c", SAVES_SLOWLY)
  with started(command) as process:
    assert process.stdout.readline() == "started\n"

    os.killpg(process.pid, number)  # as Ctrl-C does, to all in the foreground

    assert process.communicate(timeout=600) == (f"saved after {number}\n", "")
  assert process.returncode == 75


def test_a_signal_ends_the_pause_before_the_next_start():
  command = again("bash", "-c", "exit 75", pause=3000)
  with started(command) as process:
    assert "starts again" in process.stderr.readline()

    process.terminate()

    assert process.communicate(timeout=600)[0] == ""
  assert process.returncode == 75


@contextlib.contextmanager
def started(command):
  process = subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  with process:
    try:
      yield process
    finally:
      process.kill()
