# SPDX-License-Identifier: Apache-2.0
"""Runs that are stuck end, name the host and its phase, and start again."""

import signal

import pytest
import runs
from runs import ROOT, read_rows
from test_distributed import Run
from test_several_hosts import (
  ATTEMPTS,
  end,
  finish,
  is_gloo_timeout,
  start_hosts,
)

from mixer.cli import EX_OK, EX_TEMPFAIL, EX_USAGE
from mixer.training.watchdog import deadline

STEPS = 40
CHANGES = {
  "total_steps": STEPS,
  "evals.test.every_steps": 20,
  "log.watchdog_minutes": 10.0,
}
# train.py, in which one host's main thread is stuck in a system call. Only then
# its deadline in that phase becomes short: no machine is too busy for the rest.
BLOCKED = """
import os, runpy, sys
import jax
sys.path[0] = {root!r}
from mixer import train
from mixer.evaluators.classification import Classification
from mixer.training import checkpoint_io, watchdog

def block(phase):
  usual = watchdog.deadline
  watchdog.deadline = lambda name, *rest: (
    5.0 if name == phase else usual(name, *rest)
  )
  os.read(os.pipe()[0], 1)

def is_here():
  return jax.process_index() == {host}

def open_batches(plan, hosts, start, usual=train.open_batches):
  for step, batch in enumerate(usual(plan, hosts, start), start):
    if step == 25 and is_here():
      block("batch")
    yield batch

def create_update(*args, usual=train.create_update, **kwargs):
  update = usual(*args, **kwargs)
  def blocked(state, batch):
    if int(state.step.ravel()[0]) == 25 and is_here():
      block("update")
    return update(state, batch)
  return blocked

def run(self, params, usual=Classification.run):
  if is_here():
    block("evaluation")
  return usual(self, params)

def write(path, arrays, usual=checkpoint_io.write):
  if path.name == "20":
    block("save")
  usual(path, arrays)

{patch}
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def blocked(arguments, tmp_path, patch, host=0):
  """Returns the command of a run that gets stuck on one host."""
  script = tmp_path / "blocked.py"
  script.write_text(BLOCKED.format(root=str(ROOT), host=host, patch=patch))
  return [arguments[0], str(script), *arguments[2:]]


@pytest.mark.parametrize(
  ("patch", "where", "frame"),
  [
    ("train.open_batches = open_batches", "batch at step 25", "open_batches"),
    ("Classification.run = run", "evaluation at step 20", "run"),
    ("checkpoint_io.write = write", "save at step 30", "write"),
  ],
)
def test_a_run_that_is_stuck_ends_and_goes_on_when_started_again(
  patch, where, frame, digits_dir, environment, tmp_path
):
  workdir = tmp_path / "run"
  arguments = runs.command(digits_dir, workdir, **CHANGES)

  done = runs.run(blocked(arguments, tmp_path, patch), environment)
  assert done.returncode == EX_TEMPFAIL, done.stderr
  [file] = (workdir / "stacks").glob("*_host_0.txt")
  for text in file.read_text(), done.stderr:
    assert f"No progress for 5 s: host 0 in {where} since" in text
    assert 'blocked.py", line' in text and f"in {frame}\n" in text

  again = runs.run(arguments, environment)
  assert again.returncode == EX_OK, again.stderr
  assert "Goes on from the checkpoint of step" in again.stdout
  steps = [row["step"] for row in read_rows(workdir)]
  assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
  ("host", "patch", "where"),
  [
    (0, "train.open_batches = open_batches", "batch at step 25"),
    (1, "train.create_update = create_update", "update at step 25"),
    (1, "Classification.run = run", "evaluation at step 20"),
    (0, "checkpoint_io.write = write", "save at step 20"),
  ],
)
def test_hosts_that_wait_for_one_that_is_stuck_name_that_one(
  host, patch, where, digits_dir, environment, tmp_path
):
  workdir = tmp_path / "run"
  arguments = runs.command(digits_dir, workdir, **CHANGES)
  patched = blocked(arguments, tmp_path, patch, host)

  for _ in range(ATTEMPTS):
    ended = end(start_hosts(patched, environment))
    if not is_gloo_timeout(ended):
      break
  assert [code for code, *_ in ended] == [EX_TEMPFAIL] * 2, ended
  for index, (_, _, errors) in enumerate(ended):
    assert f"host {host} in {where} since" in errors
    assert f"waiting for that: {1 - host}." in errors
    assert f"Threads of host {index} in " in errors
    [file] = (workdir / "stacks").glob(f"*_host_{index}.txt")
    assert f"host {host} in {where} since" in file.read_text()

  finish(arguments, environment)
  assert read_rows(workdir)[-1]["step"] == STEPS


@pytest.fixture
def run(tmp_path):
  run = Run(tmp_path)
  yield run
  for process in run.processes:
    process.kill()
    process.communicate()


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


@pytest.mark.parametrize(
  ("phase", "minutes", "steps", "seconds"),
  [
    # A step, of a fast and of a slow model.
    ("update", 2.0, [0.1] * 5, 120),
    ("batch", 2.0, [9.0] * 5, 180),
    # The median: neither one slow step nor one fast step changes it.
    ("batch", 2.0, [9.0] * 4 + [1e4], 180),
    # Phases that take long, and the first steps.
    ("evaluation", 2.0, [0.1] * 5, 480),
    ("evaluation", 2.0, [9.0] * 5, 720),
    ("update", 2.0, [], 480),
    ("update", 2.0, [1e4] * 4, 480),
  ],
)
def test_a_deadline_is_a_number_of_minutes_or_of_steps(
  phase, minutes, steps, seconds
):
  assert deadline(phase, minutes, steps) == seconds


def test_a_negative_limit_is_refused(digits_dir, environment, tmp_path):
  changes = {"log.watchdog_minutes": -1.0}
  done = runs.run(runs.command(digits_dir, tmp_path, **changes), environment)

  assert done.returncode == EX_USAGE
  assert "config.log.watchdog_minutes = -1.0 must be 0 or more" in done.stderr
  assert "Traceback" not in done.stderr
