# SPDX-License-Identifier: Apache-2.0
"""The goodput ledger: a killed run seen from outside, and ledgers by hand."""

import json
import re
import subprocess
import time

import pytest
from etils import epath
from runs import ROOT, STEPS, command, has_logged, slowed_down, wait_until

from mixer.tools import goodput as tool
from mixer.training.goodput import read_goodput
from mixer.training.metrics import read_rows

PAUSE = 0.03  # seconds after each update, so that their time is known


def test_a_killed_run_spent_what_is_seen_from_outside(
  digits_dir, environment, tmp_path
):
  arguments = command(digits_dir, tmp_path, **{"checkpoint.every_steps": 45})
  began, logged = time.time(), []
  for last in 55, None:
    process = subprocess.Popen(
      slowed_down(arguments, PAUSE), cwd=ROOT, env=environment
    )
    if last:
      wait_until(lambda last=last: has_logged(tmp_path, last), process)
      process.kill()
    process.wait()
    logged += [read_rows(tmp_path)[-1]["step"]]
    time.sleep(1.0 if last else 0.0)
  wall = time.time() - began

  line, seconds, lost_updates = read_goodput(epath.Path(tmp_path))

  starts = json.loads((tmp_path / "provenance.json").read_text())["starts"]
  again = sum(logged[:-1]) - sum(start["from_step"] for start in starts)
  assert again <= lost_updates <= again + 2  # dispatched, and not logged yet
  assert "2 starts" in line and "not done" not in line
  # A kill hides what was not written by then.
  assert seconds["lost"] > 0.8 * PAUSE * again
  assert seconds["update"] > 0.9 * PAUSE * STEPS
  assert seconds["idle"] >= 1.0
  assert 0 < seconds["compile"] < sum(seconds.values()) < wall


def start(at, *rows, **fields):
  """A start; rows are steps and the seconds of kinds."""
  rows = [{"step": step, "seconds": seconds} for step, seconds in rows]
  return {"start": at, "logged": 0, "rows": rows} | fields


FIRST = start(
  100.0,
  (5, {"set-up": 2.0, "compile": 1.0, "update": 5.0, "save": 0.5}),
  (9, {"set-up": 2.0, "compile": 1.0, "update": 9.0, "save": 1.5}),
  from_step=0,
)  # for 13.5 s
SECOND = start(
  114.0, (9, {"set-up": 3.0, "update": 4.0}), from_step=5, logged=11
)
DONE = FIRST | {"done": True}


@pytest.mark.parametrize(
  ("starts", "expected", "text"),
  [
    # Two updates were logged after the last write.
    (
      [FIRST, SECOND],
      {"update": 9, "lost": 5, "idle": 0.5, "set-up": 5, "save": 0.5},
      "6 updates done again, not done",
    ),
    # Killed before it had restored, and before it trained: nothing was lost.
    (
      [FIRST, start(120.0, (0, {"set-up": 3.0}), logged=9)],
      {"update": 9, "idle": 6.5, "set-up": 5, "save": 1.5},
      "2 starts",
    ),
    (
      [FIRST, start(114.0, (5, {}), from_step=5, logged=9), SECOND],
      {"update": 9, "lost": 5},
      "4 updates done again",
    ),
    # A later start goes further back than the one before it.
    (
      [FIRST, SECOND, start(122.0, (9, {"update": 9.0}), from_step=0)],
      {"update": 9, "lost": 14.5, "idle": 1.5, "set-up": 5},
      "15 updates done again",
    ),
    # A finished run, and the same run made longer.
    ([DONE, start(120.0, (9, {"set-up": 3.0}))], {"idle": 0}, "1 start:"),
    ([DONE, start(120.0, (12, {"update": 3.0}))], {"update": 12}, "2 starts"),
    # Its last checkpoint was damaged.
    ([DONE, SECOND], {"update": 9, "lost": 5}, "6 updates done again"),
    # Older versions trained it to step 40, or all of it.
    ([DONE | {"from_step": 40}], {"update": 9}, "from step 40 on"),
    ([], {}, "not recorded"),
  ],
)
def test_what_a_later_start_went_back_behind_is_lost(
  tmp_path, starts, expected, text
):
  lines = "".join(f"{json.dumps(start)}\n" for start in starts)
  (tmp_path / "goodput.jsonl").write_text(lines)

  line, seconds, _ = read_goodput(epath.Path(tmp_path))

  assert text in line
  assert {kind: seconds[kind] for kind in expected} == expected


def test_the_tool_shows_shares_and_says_what_is_missing(tmp_path, capsys):
  for content in "", "no JSON\n":
    (tmp_path / "goodput.jsonl").write_text(content)
    assert tool.main([str(tmp_path)]) == 2
    assert "goodput.jsonl" in capsys.readouterr().err
  (tmp_path / "goodput.jsonl").write_text(f"{json.dumps(FIRST)}\n")

  assert re.search(r"updates +\| 0:09 \| +66.7%", tool.show(str(tmp_path)))
