# SPDX-License-Identifier: Apache-2.0
"""A run's folder, local or in a bucket: its files written and read.

config.json holds the resolved config, provenance.json every start's commit,
versions, devices and changes of the config, metrics.jsonl the log, checkpoints/
the state, weights.npz and classes.txt the result. Files of older versions may
lack keys.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath
from ml_collections import ConfigDict

from mixer import weights
from mixer.config import EVALUATORS, RENAMED, default, evaluator
from mixer.config_check import diff_configs, explain_order, resolve, to_dict
from mixer.errors import UserError
from mixer.plan import Plan
from mixer.storage import is_in_bucket, write_text
from mixer.training.plots import draw_learning_curve

CHECKPOINTS = "checkpoints"
EVALUATION = "evaluation.json"  # the latest result of eval.py

PACKAGES = (
  "jax jaxlib flax optax orbax-checkpoint grain tensorflow-datasets "
  "ml_collections clu numpy opencv-python-headless"
).split()


# The config of the run that a folder holds.


def inherit_gelu(path: epath.Path, config: ConfigDict):
  """Takes over the form of GELU that the run's initial weights decided."""
  file = path / "config.json"
  if config.model.get("gelu") is None and file.exists():
    config.model.gelu = read_config(file)["model"]["gelu"]


def warn_other_split(path: epath.Path, config: ConfigDict) -> str:
  """Returns a warning if the run was trained on another split of the data."""
  file = path / "config.json"
  if not file.is_file():
    return ""
  data = read_config(file)["data"]
  name, split = data["name"], data["split"]
  if name != config.data.name or split == config.data.split:
    return ""
  return (
    f"{path} was trained on {split!r} of {name}, and not on "
    f"{config.data.split!r} as in this config: evaluators may judge it by "
    "images that it has learned from."
  )


def check_config(
  path: epath.Path,
  config: ConfigDict,
  *,
  accept_changes: bool,
  start: int = 0,
  total_steps: int = 0,
):
  """Compares a config with the one that the folder's run was started with.

  Args:
    path: the run's folder.
    config: resolved.
    accept_changes: print the changes instead.
    start: step that the run goes on from.
    total_steps: its last step.

  Raises:
    UserError: a key that changes the result has another value.
  """
  file = path / "config.json"
  if not file.exists():
    return
  old, new = read_config(file), to_dict(config)
  listed = "\n  ".join(diff_configs(old, new))
  if listed and not accept_changes:
    raise UserError(
      f"{path} holds a run with another config: choose another --workdir, go "
      f"back to its values, or go on with these (--accept_changes).\n  {listed}"
    )
  if listed and jax.process_index() == 0:
    print(f"Goes on with another config than before:\n  {listed}")
    if start and (text := explain_order(old, new, start, total_steps)):
      print(text)


def has_gone_back(
  path: epath.Path, config: ConfigDict, step: int | None
) -> bool:
  """Returns whether the newest start went back to this step in the same way.

  A command that a launcher repeats goes on, and does not go back each time.
  """
  starts = read_starts(path)
  if step is None or not starts or starts[-1].get("went_back_to") != step:
    return False
  return not [*diff_configs(read_config(path / "config.json"), to_dict(config))]


# Writing.


def write_start(
  path: epath.Path,
  config: ConfigDict,
  *,
  from_step: int,
  went_back_to: int | None,
  data_checksum: int,
):
  """Writes config.json and adds this start to provenance.json.

  Args:
    path: the run's folder.
    config: resolved.
    from_step: step that the run goes on from.
    went_back_to: value of --from_step.
    data_checksum: of the training split, `Source.checksum`.
  """
  file, new = path / "config.json", to_dict(config)
  old = read_config(file) if file.exists() else new
  start = provenance() | {
    "from_step": from_step,
    "went_back_to": went_back_to,
    "data_checksum": data_checksum,
    "changes": list(diff_configs(old, new)),
  }
  _write_json(file, new)
  starts = [*read_starts(path), start]
  _write_json(path / "provenance.json", {"starts": starts})


def write_end(
  plan: Plan,
  folder: epath.Path,
  params: dict,
  best_step: int | None,
  streak: int,
):
  """Writes weights and learning curve, and prints where everything is."""
  steps, best = plan.schedule.total_steps, plan.config.checkpoint.best
  if streak:
    print(
      f"The last {streak} updates had no effect (skipped.jsonl): the weights "
      f"are those of step {steps - streak:,}."
    )
  if best and best_step is None:
    print(f"No checkpoint is the best: no evaluation gave a number {best}.")
  weights.save(
    folder / weights.RUN_FILE,
    params,
    gelu=getattr(plan.model.module, "gelu", "tanh"),  # BiT has none
    config=to_dict(plan.config),
    class_names=plan.data.source.class_names,
  )
  curve = draw_learning_curve(folder)
  print(
    f"Done: {steps:,} steps.\n"
    f"weights        {folder / weights.RUN_FILE}\n"
    f"checkpoints    {folder / CHECKPOINTS}\n"
    f"numbers        {folder / 'metrics.jsonl'}, and for TensorBoard: "
    f"tensorboard --logdir={folder}\n"
    f"learning curve {curve}"
  )


def read_starts(path: epath.Path) -> list[dict]:
  """Returns the starts in provenance.json, the first one first."""
  try:
    return list(json.loads((path / "provenance.json").read_text())["starts"])
  except (OSError, ValueError, KeyError, TypeError):
    return []  # the first start, or a file that somebody has edited


def write_evaluation(
  path: epath.Path, config: ConfigDict, origin: str, results: dict[str, float]
):
  """Writes evaluation.json, the results of eval.py.

  Args:
    path: the folder; made if missing.
    config: resolved.
    origin: the step or the weights that were evaluated; a file's sha256 is
      recorded as well.
    results: of all evaluators.
  """
  path.mkdir(parents=True, exist_ok=True)
  sha256 = None
  weights = epath.Path(origin) if is_in_bucket(origin) else Path(origin)
  if weights.expanduser().is_file():
    with weights.expanduser().open("rb") as file:
      sha256 = hashlib.file_digest(file, "sha256").hexdigest()
  content = {"evaluated": origin, "sha256": sha256, "results": results}
  content |= provenance()
  _write_json(path / EVALUATION, content | {"config": to_dict(config)})


def provenance() -> dict:
  """Returns git commit, package versions and devices of this process."""
  devices = jax.devices()
  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": sys.argv,
    "git_commit": _git("rev-parse", "HEAD"),
    "git_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    "python": platform.python_version(),
    "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    "platform": devices[0].platform,
    "device_kind": devices[0].device_kind,
    "devices": len(devices),
    "hosts": jax.process_count(),
  }


def _git(*arguments: str) -> str | None:
  """Returns git's output in this code's folder; None outside a repository."""
  try:
    done = subprocess.run(
      ("git", *arguments),
      cwd=Path(__file__).parent,
      # Without locks, a kill leaves none behind in the user's checkout.
      env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
      capture_output=True,
      text=True,
    )
  except FileNotFoundError:
    return None
  return done.stdout.strip() if done.returncode == 0 else None


def _write_json(file: epath.Path, content: dict):
  write_text(file, json.dumps(content, indent=2) + "\n")


# Reading.


@contextlib.contextmanager
def wrap_read_errors(file: epath.Path) -> Iterator[None]:
  """Turns the errors of reading a damaged file into one UserError."""
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


def read_json(file: epath.Path) -> dict:
  """Reads a JSON object.

  Raises:
    UserError: the file holds none.
  """
  with wrap_read_errors(file):
    return json.loads(file.read_text())


def read_config(file: epath.Path) -> dict:
  """Reads config.json; adds the keys that the schema did not have then."""
  return with_defaults(read_json(file), to_dict(default()))


def with_defaults(config: dict, defaults: dict) -> dict:
  """Adds keys that a config lacks, and renames former ones."""
  return defaults | {
    RENAMED.get(key, key): with_defaults(value, defaults[key])
    if isinstance(value, dict) and isinstance(defaults.get(key), dict)
    else value
    for key, value in config.items()
  }


def load_config(folder: epath.Path) -> ConfigDict:
  """Returns the config of the run in a folder, resolved.

  Raises:
    UserError: the folder holds no run, or its config.json is damaged.
  """
  file = folder / "config.json"
  if not file.is_file():
    raise UserError(
      f"There is no run in {folder}, since it holds no config.json: mend the "
      "name, or give eval.py the recipe with --config."
    )
  return resolve_known(read_json(file))


def resolve_known(config: dict) -> ConfigDict:
  """Resolves a config of an older version, without its unknown keys."""
  schema = to_dict(default())
  config = with_defaults(config, schema)
  evals = {}
  for name, options in config["evals"].items():
    kind = options.get("type", "classification")
    if kind in EVALUATORS:
      evals[name] = _filter_keys(options, to_dict(evaluator(kind)))
  return resolve(ConfigDict(_filter_keys(config, schema) | {"evals": evals}))


def _filter_keys(config: dict, schema: dict) -> dict:
  """Drops the keys that the schema does not have."""
  return {
    key: _filter_keys(value, schema[key])
    if isinstance(value, dict) and isinstance(schema[key], dict)
    else value
    for key, value in config.items()
    if key in schema
  }
