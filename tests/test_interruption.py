# SPDX-License-Identifier: Apache-2.0
"""Signals as a question, and when they are more than that."""

import signal
import time

import pytest

from mixer.cli import run_cli
from mixer.training import interruption


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_a_signal_is_a_question_and_its_echo_the_same_one(number, capfd):
  with interruption.guard() as interrupted:
    assert not interrupted()
    signal.raise_signal(number)
    signal.raise_signal(number)
    assert interrupted()

  assert capfd.readouterr().err.count("Stopping") == 1


def test_a_later_one_acts_at_once(monkeypatch):
  monkeypatch.setattr(interruption, "SAME_REQUEST", 0.01)

  with pytest.raises(KeyboardInterrupt), interruption.guard():
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.02)
    signal.raise_signal(signal.SIGINT)

  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_ends_a_small_program_as_ctrl_c_does(capsys):
  before = signal.getsignal(signal.SIGTERM)

  code = run_cli(lambda: signal.raise_signal(signal.SIGTERM))

  assert code == 130
  assert capsys.readouterr().err == "Stopped. Give the same command again.\n"
  assert signal.getsignal(signal.SIGTERM) == before
