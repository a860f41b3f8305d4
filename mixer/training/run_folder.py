# SPDX-License-Identifier: Apache-2.0
"""What a run's folder says about the run: its config and where it came from."""

import contextlib
import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import jax
from absl import logging
from ml_collections import ConfigDict

from mixer.atomic_write import atomic_write
from mixer.config import default
from mixer.config_check import differences, to_dict
from mixer.errors import UserError

EVALUATION = "evaluation.json"  # the last one of eval.py
# Keys, of older runs.
RENAMED = {"shard_optimizer_state": "shard_state", "token_mixing": "kernels"}
_LOCK_SECONDS = 1.0  # between two tries

PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "tensorflow-datasets",
  "ml_collections",
  "clu",
  "numpy",
  "opencv-python-headless",
)


def make_folder(workdir: str | None) -> Path:
  """Makes the run's folder.

  Raises:
    UserError: none is given, or it cannot be written to.
  """
  if not workdir:
    raise UserError("Name the run's folder: --workdir=DIR.")
  if "://" in workdir:
    raise UserError(
      f"--workdir={workdir} is not a folder of this machine: mount the bucket, "
      "or name a folder."
    )
  path = Path(workdir).expanduser().absolute()
  try:
    path.mkdir(parents=True, exist_ok=True)
    # A name of its own: other hosts may be trying at the same time.
    with tempfile.NamedTemporaryFile(dir=path, prefix=".writable_"):
      pass
  except OSError as error:
    raise UserError(
      f"Cannot write to --workdir={workdir} ({error.strerror}): choose another "
      "folder, or change its permissions."
    ) from error
  return path


@contextlib.contextmanager
def locked(path: Path, *, wait: float = 0.0) -> Iterator[None]:
  """Keeps other processes from training in the folder; a kill unlocks it.

  Args:
    path: the run's folder.
    wait: seconds to try; a file server may take minutes to see that the host
      that held the lock is gone.

  Raises:
    UserError: another process does so now.
  """
  deadline = time.monotonic() + wait
  taken = (
    f"Another process trains in {path}: wait for it to end, or choose another "
    "--workdir."
  )
  with (path / ".lock").open("w") as file:
    said = False
    while not _lock(file, path):
      if time.monotonic() >= deadline:
        raise UserError(taken)
      if not said:
        logging.warning("%s Trying for %g s.", taken, wait)
        said = True
      time.sleep(_LOCK_SECONDS)
    yield


def _lock(file: IO, path: Path) -> bool:
  """Whether it could be locked."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
      raise UserError(
        f"The file system of {path} has no locks ({error.strerror}): mount "
        "it with them, or choose another --workdir."
      ) from error
    return False
  return True


def take_over(path: Path, config: ConfigDict):
  """Fills in what the weights settled that the folder's run began from."""
  file = path / "config.json"
  if config.model.get("gelu") is None and file.exists():
    config.model.gelu = _recorded(file)["model"].get("gelu")


def other_training(path: Path, config: ConfigDict) -> str:
  """Warns where the folder's run was trained on another part of the data."""
  file = path / "config.json"
  if not file.is_file():
    return ""
  data = _recorded(file).get("data", {})
  trained = [data.get("name"), data.get("split")]
  if trained[0] != config.data.name or trained[1] == config.data.split:
    return ""
  return (
    f"{path} was trained on {trained[1]!r} of {trained[0]}, and not on "
    f"{config.data.split!r} as in this config: evaluators may judge it by "
    "images that it has learned from."
  )


def check_config(path: Path, config: ConfigDict, *, accept_changes: bool):
  """Compares with the config that the folder's run was started with.

  Raises:
    UserError: a key that changes the result has another value.
  """
  file = path / "config.json"
  if not file.exists() or accept_changes:
    return
  before = filled_in(_recorded(file), to_dict(default()))
  changes = list(differences(before, to_dict(config)))
  if changes:
    listed = "\n  ".join(changes)
    raise UserError(
      f"{path} holds a run with another config: choose another --workdir, go "
      f"back to its values, or go on with these (--accept_changes).\n  {listed}"
    )


def _recorded(file: Path) -> dict:
  try:
    config = dict(json.loads(file.read_text()))
    return config | {"model": dict(config["model"])}
  except (KeyError, ValueError, TypeError) as error:
    raise UserError(
      f"{file} is damaged: move it away if you know that the run's config is "
      "the one you give."
    ) from error


def filled_in(config: dict, defaults: dict) -> dict:
  """Adds the keys that there were not yet when the config was written."""
  return defaults | {
    RENAMED.get(key, key): filled_in(value, defaults[key])
    if isinstance(value, dict) and isinstance(defaults.get(key), dict)
    else value
    for key, value in config.items()
  }


def describe_run(path: Path, config: ConfigDict, *, from_step: int):
  """Writes config.json and adds this start to provenance.json."""
  _write_json(path / "config.json", to_dict(config))
  file = path / "provenance.json"
  try:
    starts = list(json.loads(file.read_text())["starts"])
  except (OSError, ValueError, KeyError, TypeError):
    starts = []  # the first one, or a file that somebody has edited
  starts.append(provenance() | {"from_step": from_step})
  _write_json(file, {"starts": starts})


def describe_evaluation(
  path: Path, config: ConfigDict, origin: str, results: dict[str, float]
):
  """Writes what eval.py has found to evaluation.json.

  Args:
    path: the folder; made if missing.
    config: resolved.
    origin: what was evaluated, such as a step or the name of weights; of a
      file, what is in it is told by its sha256.
    results: of all evaluators.
  """
  path.mkdir(parents=True, exist_ok=True)
  sha256, weights = None, Path(origin).expanduser()
  if weights.is_file():
    with weights.open("rb") as file:
      sha256 = hashlib.file_digest(file, "sha256").hexdigest()
  content = {"evaluated": origin, "sha256": sha256, "results": results}
  content |= provenance()
  _write_json(path / EVALUATION, content | {"config": to_dict(config)})


def provenance() -> dict:
  """Git commit, package versions and devices of this process."""
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
  """Output of git in this code's folder, or None outside a repository."""
  here = Path(__file__).parent
  try:
    done = subprocess.run(
      ("git", *arguments), cwd=here, capture_output=True, text=True
    )
  except FileNotFoundError:
    return None
  return done.stdout.strip() if done.returncode == 0 else None


def _write_json(file: Path, content: dict):
  with atomic_write(file) as aside:
    aside.write_text(json.dumps(content, indent=2) + "\n")
