# SPDX-License-Identifier: Apache-2.0
"""Small runs on the digits, in separate processes, and their results."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import recipes
from recipes import ROOT

from mixer import weights

# Seconds until a test that hangs fails. It never bounds the speed of a machine.
TIMEOUT = 900
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
  """Returns the command line of the same run, on one device."""
  values = SMALL | {"data.data_dir": digits_dir} | changes
  return [
    sys.executable,
    "train.py",
    "--config=configs/digits.py",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in values.items()),
    *flags,
  ]


def run(arguments, environment, folder=ROOT):
  return subprocess.run(
    arguments,
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
    timeout=TIMEOUT,
  )


def slowed_down(arguments, seconds):
  """Returns a command with a pause after each step: time for a test to act."""
  script = arguments.index("train.py")
  slow = ["tests/slow_train.py", str(seconds)]
  return [*arguments[:script], *slow, *arguments[script + 1 :]]


def wait_until(condition, *processes):
  """Polls the condition; fails if one of the processes exits before."""
  deadline = time.monotonic() + TIMEOUT
  while not condition():
    assert time.monotonic() < deadline, "waited in vain"
    for process in processes:
      assert process.poll() is None, process.communicate()
    time.sleep(0.02)


def has_logged(workdir, step):
  """Returns whether the run has logged this step."""
  try:
    last = (workdir / "metrics.jsonl").read_bytes().splitlines()[-1]
    return json.loads(last)["step"] >= step
  except (OSError, ValueError, IndexError):
    return False


def free_port():
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


def read_rows(workdir, kind="metrics"):
  lines = (Path(workdir) / f"{kind}.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def results(rows):
  """Returns the rows without times and rates."""
  return [
    {k: v for k, v in row.items() if k.startswith(("step", "train", "eval"))}
    for row in rows
  ]


def tensorboard(workdir):
  """Returns the curves that TensorBoard shows: {name: [(step, value), ...]}."""
  from tensorboard.backend.event_processing import plugin_event_accumulator
  from tensorboard.util import tensor_util

  accumulator = plugin_event_accumulator.EventAccumulator(
    str(workdir), size_guidance={plugin_event_accumulator.TENSORS: 0}
  )
  accumulator.Reload()
  return {
    tag: [
      (event.step, tensor_util.make_ndarray(event.tensor_proto).item())
      for event in accumulator.Tensors(tag)
    ]
    for tag in accumulator.Tags()["tensors"]
  }


def assert_same_weights(one, other):
  jax.tree.map(
    np.testing.assert_array_equal, weights.load(one), weights.load(other)
  )
