# SPDX-License-Identifier: Apache-2.0
"""Signals to stop, on one host; test_several_hosts has several."""

import signal
import time

import pytest
from runs import TIMEOUT

from mixer.cli import run_cli
from mixer.cluster import ONE_HOST
from mixer.distributed import Hosts
from mixer.training import preemption


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_and_its_echo_are_one_request_to_stop(
  number, capfd, monkeypatch
):
  monkeypatch.setattr(preemption, "SAME_REQUEST", TIMEOUT)

  with preemption.catch_signals(Hosts(ONE_HOST)) as should_stop:
    assert not should_stop()
    signal.raise_signal(number)
    signal.raise_signal(number)
    assert should_stop()

  assert capfd.readouterr().err.count("Stopping") == 1


def test_a_second_signal_stops_at_once(monkeypatch):
  monkeypatch.setattr(preemption, "SAME_REQUEST", 0.01)

  with (
    pytest.raises(KeyboardInterrupt),
    preemption.catch_signals(Hosts(ONE_HOST)),
  ):
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.02)
    signal.raise_signal(signal.SIGINT)

  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nohup_keeps_its_effect():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with preemption.catch_signals(Hosts(ONE_HOST)) as should_stop:
      signal.raise_signal(signal.SIGHUP)
      assert not should_stop()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)


def test_sigterm_ends_a_small_program_as_ctrl_c_does(capsys):
  before = signal.getsignal(signal.SIGTERM)

  code = run_cli(lambda: signal.raise_signal(signal.SIGTERM))

  assert code == 130
  assert capsys.readouterr().err == "Stopped. Give the same command again.\n"
  assert signal.getsignal(signal.SIGTERM) == before
