# SPDX-License-Identifier: Apache-2.0
"""The budget of the compiled training step."""

import json
import sys

import pytest
from runs import run

from benchmarks import budget

FIGURES = {
  "flops": 1000,
  "bytes_moved": 1000,
  "peak_memory": 1000,
  "collectives": {"all-reduce": [1, 1000]},
  "operations": {"products": 900, "tanh": 100},
}


@pytest.mark.parametrize("target", budget.TARGETS)
def test_the_step_of_s32_keeps_its_budget(target, environment):
  key = budget.budget_key(target)
  if key not in json.loads(budget.FILE.read_text()):
    pytest.skip(f"no budget for {key}")

  command = "-m", "benchmarks.budget", f"--targets={target}"
  done = run([sys.executable, *command], environment)

  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(key)


@pytest.mark.parametrize(
  ("changes", "sentences"),
  [
    ({}, []),
    ({"flops": 1030, "peak_memory": 500}, []),
    ({"bytes_moved": 1031}, ["x: bytes moved 1,031, before 1,000."]),
    ({"peak_memory": 2000}, ["x: bytes of peak memory 2,000, before 1,000."]),
    (
      {"flops": 1200, "operations": {"products": 901, "tanh": 299}},
      ["x: FLOPs 1,200, before 1,000; the most by tanh, 299, before 100."],
    ),
    (
      {"collectives": {"all-reduce": [2, 1000], "all-gather": [1, 8]}},
      [
        "x: number of all-reduces 2, before 1.",
        "x: number of all-gathers 1, before 0.",
        "x: bytes of all-gathers 8, before 0.",
      ],
    ),
  ],
)
def test_what_grew_by_more_than_three_percent_is_named(changes, sentences):
  assert budget.compare("x", FIGURES | changes, FIGURES) == sentences
