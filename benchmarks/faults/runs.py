# SPDX-License-Identifier: Apache-2.0
"""Digits runs that things happen to, in processes of their own."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from mixer import weights
from mixer.training.metrics import read_rows

STEPS = 2_245  # as many as the recipe has
RECIPE = (
  "--config=configs/digits.py",
  "--config.checkpoint.every_epochs=0.",
  "--config.checkpoint.every_steps=20",
  "--config.log.every_steps=1",
)
TRAIN = (sys.executable, "train.py", *RECIPE)


@dataclasses.dataclass
class Run:
  """A run's folder, the command that trains in it, and its environment."""

  folder: Path
  command: tuple[str, ...] = TRAIN
  environment: dict[str, str] = dataclasses.field(default_factory=dict)

  def start(self, *flags: str) -> subprocess.Popen:
    """Starts the command, with these flags as well."""
    log = self.folder.with_suffix(".log")
    with log.open("a") as file:
      return subprocess.Popen(
        [*self.command, f"--workdir={self.folder}", *flags],
        env=os.environ | self.environment,
        stdout=file,
        stderr=subprocess.STDOUT,
      )

  def go_on(self) -> int:
    """Starts the command and waits for its end; returns the exit code."""
    return self.start().wait()

  @property
  def modified(self) -> int:
    """When metrics.jsonl was last written to, in ns; 0 if there is none."""
    path = self.folder / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else 0

  @property
  def said(self) -> str:
    """All that its processes have printed."""
    return self.folder.with_suffix(".log").read_text()

  @property
  def checkpoints(self) -> list[Path]:
    """Those of it, oldest first."""
    folders = (self.folder / "checkpoints").glob("*")
    return sorted((x for x in folders if x.name.isdecimal()), key=_number)


def differences(one: Run, other: Run) -> list[str]:
  """What is not the same, bit for bit, at the end of two runs."""
  found = []
  ours, theirs = (
    flatten_dict(weights.load(run.folder), sep="/") for run in (one, other)
  )
  if ours.keys() != theirs.keys():
    found.append("names of parameters")
  found += [
    name for name in ours if not np.array_equal(ours[name], theirs[name])
  ]
  if _numbers(one) != _numbers(other):
    found.append("metrics.jsonl")
  return found


def _numbers(run: Run) -> str:
  """The rows, as text, because nan is not equal to itself."""
  kept = [
    {k: v for k, v in row.items() if k.startswith(("step", "train", "eval"))}
    for row in read_rows(run.folder)
  ]
  return json.dumps(kept)


def _number(path: Path) -> int:
  return int(path.name)
