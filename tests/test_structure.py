# SPDX-License-Identifier: Apache-2.0
"""Imports run from a higher floor to a lower one."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mixer"
FLOORS = {
  "ground": "errors chips storage jax_setup models training/sharding"
  " training/step training/optimizer training/mixup training/__init__"
  " __init__",
  "config": "schema config config_check recipe cli cluster distributed",
  "data": "data datasets",
  "weights": "weights",
  "evaluators": "evaluators",
  "plan": "plan data_plan model_plan",
  "run": "training evaluators/runner",
  "core": "train evaluate",
  "tools": "tools __main__",
}
LEVELS = {
  room: level
  for level, rooms in enumerate(FLOORS.values())
  for room in rooms.split()
}
FILES = sorted(PACKAGE.rglob("*.py"))


def level_of(path):
  """Returns the floor of a file, by its own entry or by its room's."""
  name = path.relative_to(PACKAGE).with_suffix("").as_posix()
  return LEVELS.get(name, LEVELS.get(name.partition("/")[0]))


def imported_files(path):
  """Returns the package's files that a file imports, anywhere in it."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
      names.add(node.module)
  for name in names:
    parts = name.split(".")
    if parts[0] == "mixer":
      base = PACKAGE.joinpath(*parts[1:])
      for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file in FILES:
          yield file


@pytest.mark.parametrize("path", FILES, ids=lambda x: x.stem)
def test_no_import_runs_to_a_higher_floor(path):
  assert level_of(path) is not None, f"{path} has no floor"
  higher = [
    str(file.relative_to(PACKAGE))
    for file in imported_files(path)
    if level_of(file) > level_of(path)
  ]
  assert not higher


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_only_front_doors_and_tools_start_runs(name):
  file = PACKAGE / f"{name}.py"

  importers = [path for path in FILES if file in imported_files(path)]

  assert all(level_of(path) == LEVELS["tools"] for path in importers)
