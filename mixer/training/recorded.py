# SPDX-License-Identifier: Apache-2.0
"""What a run has left in its folder, read back: each file is checked here.

Files of an older version of this project may lack keys, or have others.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mixer.config import EVALUATORS, default, evaluator
from mixer.config_check import check_values, complete, to_dict
from mixer.errors import UserError
from mixer.training.log import Number, read_rows
from mixer.training.run_folder import filled_in
from mixer.weights import RUN_FILE

# Without these nobody knows what was trained.
_NEEDED = "batch", "model", "data", "evals"
# What provenance.json says of a start.
_START = {
  "date": str,
  "command": list,
  "git_commit": str | None,
  "git_changes": bool,
  "python": str,
  "packages": dict,
  "device_kind": str,
  "devices": int,
  "hosts": int,
  "from_step": int,
}
_LEAST = {"devices": 1, "hosts": 1, "from_step": 0}


@contextlib.contextmanager
def damaged(file: Path) -> Iterator[None]:
  """Makes one message of what a file raises that is not what was written.

  Raises:
    UserError: names the file, and what is wrong with it.
  """
  try:
    yield
  except UserError:
    raise
  except FileNotFoundError as error:
    raise UserError(f"{file} is missing: bring it back.") from error
  except (AttributeError, LookupError, TypeError, ValueError) as error:
    reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    raise UserError(
      f"{file} is damaged ({reason}): bring it back from where it is whole."
    ) from error


def read_json(file: Path) -> dict:
  """The JSON object that a file holds.

  Raises:
    UserError: it does not.
  """
  with damaged(file):
    content = json.loads(file.read_text())
    if not isinstance(content, dict):
      raise ValueError("it is not a JSON object")
    return content


def read_config(file: Path) -> dict:
  """The config of config.json; see `check_config`."""
  return check_config(read_json(file), file)


def check_config(config: dict, file: Path) -> dict:
  """A config that was written to a file, with the keys that it lacks.

  Raises:
    UserError: it lacks what no config does, or has values that none has.
  """
  with damaged(file):
    if lacking := [key for key in _NEEDED if key not in config]:
      raise ValueError(f"its config lacks {', '.join(lacking)}")
    for part in _NEEDED[1:]:
      if not isinstance(config[part], dict):
        raise ValueError(f"{part} = {config[part]!r}")
    usual = to_dict(default())
    filled = filled_in(config, usual)
    known = _known(filled, usual) | {"evals": _known_evaluators(config)}
    try:
      problems = list(check_values(complete(ConfigDict(known))))
    except UserError as error:
      problems = str(error).splitlines()
    if problems:
      raise ValueError(problems[0].removesuffix("."))
    return filled


def _known(config: dict, schema: dict) -> dict:
  """What a config has of the schema's keys."""
  return {
    key: _known(value, schema[key])
    if isinstance(value, dict) and isinstance(schema[key], dict)
    else value
    for key, value in config.items()
    if key in schema
  }


def _known_evaluators(config: dict) -> dict:
  """Those of the types that there are, with the keys that there are."""
  found = {}
  for name, options in config["evals"].items():
    if not isinstance(options, dict):
      raise ValueError(f"evals.{name} = {options!r}")
    kind = options.get("type", EVALUATORS[0])
    if kind in EVALUATORS:
      found[name] = _known(options, to_dict(evaluator(kind)))
  return found


def read_starts(file: Path, needed: Sequence[str] = ()) -> list[dict]:
  """The starts of provenance.json, the first one first.

  Args:
    file: perhaps not there: there are none then.
    needed: keys that each must have.

  Raises:
    UserError: it is damaged.
  """
  if not file.is_file():
    return []
  starts = read_json(file).get("starts")
  with damaged(file):
    if not isinstance(starts, list):
      raise ValueError("its starts are no list")
    for start in starts:
      check_start(start, needed)
  return starts


def check_start(start: dict, needed: Sequence[str] = ()):
  """Raises what `damaged` takes for what no start says."""
  if not isinstance(start, dict):
    raise ValueError(f"a start is {start!r}")
  for key, kind in _START.items():
    if key not in start and key not in needed:
      continue
    value, least = start[key], _LEAST.get(key)
    is_wrong = not isinstance(value, kind) or value == ""
    if is_wrong or (least is not None and value < least):
      raise ValueError(f"{key} = {value!r}")


def read_log(folder: Path) -> list[dict[str, Number]]:
  """The rows of metrics.jsonl.

  Raises:
    UserError: it is damaged, or gone although the run is done.
  """
  rows = read_rows(folder)
  if not rows and (folder / RUN_FILE).is_file():
    raise UserError(f"{folder / 'metrics.jsonl'} is missing: bring it back.")
  return rows
