# SPDX-License-Identifier: Apache-2.0
"""Watchdog: ends a run that is stuck, and says where, so that it starts again.

The main thread sets its phase; a daemon thread watches that it goes on. Hosts
publish their phases: the one that has come least far is stuck, and the others
wait for it.
"""

import faulthandler
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

from etils import epath

from mixer.distributed import Hosts
from mixer.errors import format_list

POLL_SECONDS = 2.0
WRITE_SECONDS = 10.0  # for a log and a folder that may be stuck, too
# The phases of a step. Others may take LONG times its deadline, and so may the
# first steps.
STEP_PHASES, FIRST_STEPS, LONG = ("batch", "update"), 5, 4
# A step may take this many times the median of the newest ones.
SLOW, NEWEST = 20, 50


def deadline(phase: str, minutes: float, steps: Sequence[float]) -> float:
  """Returns for how many seconds the main thread may stay in a phase.

  Args:
    phase: its name.
    minutes: config.log.watchdog_minutes.
    steps: seconds of the newest steps.
  """
  is_first = len(steps) < FIRST_STEPS
  seconds = 60 * minutes
  if not is_first:
    seconds = max(seconds, SLOW * statistics.median(steps))
  return seconds if phase in STEP_PHASES and not is_first else LONG * seconds


class Watchdog:
  """Watches this host's main thread while the context is open.

  At the deadline, all hosts write the stacks of their threads to standard error
  and to WORKDIR/stacks/TIME_host_I.txt, and exit with EX_TEMPFAIL. They make
  the same calls in the same order, so that a count of calls is a position.
  """

  def __init__(
    self,
    minutes: float,
    folder: epath.Path,
    hosts: Hosts,
    on_phase: Callable[[str, int | None], None] = lambda name, step: None,
  ):
    """Sets the limit, config.log.watchdog_minutes, and a listener of `phase`.

    A limit of 0 watches nothing.
    """
    self._minutes, self._folder, self._hosts = minutes, folder, hosts
    self._on_phase = on_phase
    self._calls = 0
    self._phase = "set-up", None, time.time()
    self._steps, self._step_start = [], 0.0
    self._closed, self._writing = threading.Event(), threading.Lock()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self) -> "Watchdog":
    if self._minutes:
      self._hosts.on_stall = self._write_stacks
      self._thread.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._closed.set()
    if self._minutes:
      # A thread that is in C++ while Python exits would abort the process.
      self._thread.join()
      self.phase("exit")  # further than all hosts that are still watched
      self._hosts.publish(self._state())

  def phase(self, name: str, step: int | None = None) -> None:
    """Sets the phase that the main thread begins, after `step` updates."""
    now = time.monotonic()
    if self._phase[0] == "update":
      self._steps = [*self._steps[1 - NEWEST :], now - self._step_start]
    if name == "batch":
      self._step_start = now
    self._phase = name, step, time.time()
    self._calls += 1
    self._on_phase(name, step)

  def progress(self) -> None:
    """Counts progress of the main thread within its phase."""
    self._calls += 1

  def _state(self) -> list:
    """Returns a position, which grows, and the phase, its step and its time."""
    return [self._calls + self._hosts.rounds, *self._phase]

  def _watch(self) -> None:
    position, stalled, before = -1, 0.0, time.monotonic()
    while not self._closed.wait(POLL_SECONDS):
      state, now = self._state(), time.monotonic()
      seconds = deadline(state[1], self._minutes, self._steps)
      # Less than has passed, if this process was stopped or had no processor.
      stalled += min(now - before, 2 * POLL_SECONDS)
      before = now
      if state[0] != position:
        position, stalled, suspect = state[0], 0.0, None
        self._hosts.publish(state)
      elif stalled > seconds:
        states = self._hosts.published() | {self._hosts.index: state}
        lowest = min(each[0] for each in states.values())
        if lowest in (position, suspect):
          self._end(states, lowest, seconds)
        # Either this host is the last, or it waits for another, which ends the
        # run at its own deadline. If that is the last the next time as well,
        # its process is stuck as a whole.
        suspect = lowest
        stalled = seconds - deadline("save", self._minutes, self._steps)

  def _end(self, states: dict[int, list], lowest: int, seconds: float) -> None:
    """Ends the run: hosts at the lowest position are stuck, others wait."""
    hosts = sorted(states)
    late = [_describe(i, states[i]) for i in hosts if states[i][0] == lowest]
    waiting = [str(i) for i in hosts if states[i][0] > lowest]
    text = (
      f"error: No progress for {seconds:.4g} s: {format_list(late)}"
      + f"; waiting for that: {format_list(waiting)}" * bool(waiting)
      + f". {self._folder / 'stacks'} and each host's log show the stacks of "
      "its threads. The same command goes on from the last checkpoint; "
      "--config.log.watchdog_minutes=N gives more time, 0 no limit."
    )
    self._write_stacks(text)
    self._hosts.end_stalled(text)

  def _write_stacks(self, text: str) -> None:
    """Writes text and stacks to the log and to the run's folder, once."""
    self._writing.acquire()  # and never releases it: the process ends
    now = time.strftime("%Y%m%d_%H%M%S", time.gmtime())
    path = self._folder / "stacks" / f"{now}_host_{self._hosts.index}.txt"
    here = _describe(self._hosts.index, self._state())

    def report() -> str:
      with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return f"{text}\nThreads of {here}:\n\n{file.read().decode()}"

    def write_log():
      os.write(2, f"\n{report()}".encode())

    def write_file():
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(report())

    end = time.monotonic() + WRITE_SECONDS
    threads = [
      threading.Thread(target=write, daemon=True)
      for write in (write_log, write_file)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(max(0.0, end - time.monotonic()))


def _describe(host: int, state: list) -> str:
  _, phase, step, since = state
  clock = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since))
  at = "" if step is None else f" at step {step:,}"
  return f"host {host} in {phase}{at} since {clock}"
