# SPDX-License-Identifier: Apache-2.0
"""python -m mixer lists the tools and runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

from mixer.__main__ import TOOLS

ROOT = Path(__file__).parent.parent


def mixer(*arguments):
  command = [sys.executable, "-m", "mixer", *arguments]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_without_a_name_every_tool_is_listed_with_an_example():
  done = mixer()

  assert done.returncode == 0
  _, *lines, rest = done.stdout.splitlines()
  assert "train.py" in rest
  assert [line.split()[0] for line in lines] == list(TOOLS)
  for name, line in zip(TOOLS, lines, strict=True):
    assert f" {name} " in line[3 + len(name) :], "no example"


def test_every_command_among_the_tools_is_listed():
  tools = ROOT / "mixer" / "tools"
  commands = {
    path.stem if path.parent == tools else path.parent.name
    for path in tools.rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
  }

  assert commands == {*TOOLS}


@pytest.mark.parametrize("name", TOOLS)
def test_help_of_a_tool_names_its_command_and_is_no_error(name):
  done = mixer(name, "--help")

  assert done.returncode == 0, done.stderr
  assert f"python -m mixer {name}" in done.stdout


def test_help_of_train_says_where_recipes_and_keys_are():
  done = subprocess.run(
    [sys.executable, "train.py", "--help"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )

  assert done.returncode == 0
  assert "configs/" in done.stdout and "mixer/config.py" in done.stdout


def test_an_unknown_tool_gets_the_nearest_one():
  done = mixer("swep")

  assert done.returncode == 2
  assert "did you mean sweep?" in done.stderr
