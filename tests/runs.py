# SPDX-License-Identifier: Apache-2.0
"""Small whole runs on the digits, in processes of their own, and their rows."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import recipes

from mixer import weights

ROOT = Path(__file__).parent.parent
STEPS = 120
# The digits recipe, small. Every kind of randomness is on.
SMALL = {
  "total_epochs": 0.0,
  "total_steps": STEPS,
  "batch": 32,
  "model.hidden": 16,
  "model.blocks": 2,
  "model.tokens_mlp": 8,
  "model.channels_mlp": 32,
  "model.stoch_depth": 0.2,
  "model.dropout": 0.1,
  "schedule.warmup_epochs": 0.0,
  "schedule.warmup_steps": 5,
  "checkpoint.every_epochs": 0.0,
  "checkpoint.every_steps": 10,
  "evals.test.every_epochs": 0.0,
  "evals.test.every_steps": 40,
  "log.every_steps": 1,
}


def small(digits_dir, **changes):
  config = recipes.load("digits")
  config.data.data_dir = digits_dir
  config.update_from_flattened_dict(
    SMALL | {key.replace("__", "."): value for key, value in changes.items()}
  )
  return config


def command(digits_dir, workdir, *flags, **changes):
  """The command line of the same run, on one device."""
  values = SMALL | {"data.data_dir": digits_dir} | changes
  return [
    sys.executable,
    "train.py",
    "--config=configs/digits.py",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in values.items()),
    *flags,
  ]


def run(arguments, environment):
  return subprocess.run(
    arguments,
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


def read_rows(workdir):
  lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def results(rows):
  """Rows without what depends on the time of day."""
  return [
    {k: v for k, v in row.items() if k.startswith(("step", "train", "eval"))}
    for row in rows
  ]


def assert_same_weights(one, other):
  jax.tree.map(
    np.testing.assert_array_equal,
    weights.load(one),
    weights.load(other),
  )
