# SPDX-License-Identifier: Apache-2.0
"""Runs that are stuck end, name the host and its phase, and start again."""

import pytest
import runs
from runs import ROOT, read_rows
from test_several_hosts import ATTEMPTS, end, is_gloo_timeout, start_hosts

from mixer.cli import EX_OK, EX_TEMPFAIL
from mixer.plan import make_plan
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
  if path.name == "30":
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


def test_a_run_that_is_stuck_ends_and_goes_on_when_started_again(
  digits_dir, environment, tmp_path
):
  workdir = tmp_path / "run"
  arguments = runs.command(digits_dir, workdir, **CHANGES)
  for patch, where, frame in (
    ("train.open_batches = open_batches", "batch at step 25", "open_batches"),
    ("checkpoint_io.write = write", "save at step 40", "write"),
    ("Classification.run = run", "evaluation at step 40", "run"),
  ):
    done = runs.run(blocked(arguments, tmp_path, patch), environment)

    assert done.returncode == EX_TEMPFAIL, done.stderr
    [file] = (workdir / "stacks").glob("*_host_0.txt")
    for text in file.read_text(), done.stderr:
      assert f"No progress for 5 s: host 0 in {where} since" in text
      assert 'blocked.py", line' in text and f"in {frame}\n" in text
    file.unlink()

  again = runs.run(arguments, environment)
  assert again.returncode == EX_OK, again.stderr
  assert "Goes on from the checkpoint of step" in again.stdout
  steps = [row["step"] for row in read_rows(workdir)]
  assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
  ("host", "patch", "where"),
  [
    (0, "checkpoint_io.write = write", "save at step 40"),
    (1, "train.create_update = create_update", "update at step 25"),
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


def test_a_negative_limit_is_refused(digits_dir):
  plan = make_plan(runs.small(digits_dir, log__watchdog_minutes=-1.0))

  [problem] = plan.complaints.problems
  assert "config.log.watchdog_minutes = -1.0 must be 0 or more" in problem
