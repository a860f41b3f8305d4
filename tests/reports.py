# SPDX-License-Identifier: Apache-2.0
"""Folders as runs leave them, without the training."""

import json

import jax
import numpy as np
import recipes

from mixer import weights
from mixer.config_check import resolve, to_dict
from mixer.models.infer import create_from_config

STEPS = 200


def rows(steps=STEPS, every=10):
  """Of a log: a loss that falls, and an evaluation every 50 steps."""
  found = []
  for step in range(every, steps + 1, every):
    row = {
      "step": step,
      "train/loss": 2.0 * 0.99**step,
      "train/learning_rate": 0.003 * (1 - step / STEPS),
      "train/skipped": 0,
      "images_per_second": 640.0,
      "images_per_second_per_device": 320.0,
      "data_wait": 0.25,
    }
    if step % 50 == 0:
      row["eval/test/loss"] = 1.0 / step
      row["eval/test/accuracy"] = 0.9 if step == 100 else 0.8
      row["eval/test/accuracy_top5"] = 0.975
      row["eval/test/f1"] = 100 / step
    found.append(row)
  return found


def config(**changes):
  """The digits recipe, of so many steps."""
  recipe = recipes.load("digits")
  recipe.total_epochs, recipe.total_steps = 0.0, STEPS
  recipe.update_from_flattened_dict(
    {key.replace("__", "."): value for key, value in changes.items()}
  )
  return to_dict(resolve(recipe))


def write(folder, *, config, rows, done=True, skipped=()):
  """Writes a run's folder; with weights if it is done."""
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(config))
  for name, content in ("metrics", rows), ("skipped", skipped):
    lines = "".join(json.dumps(row) + "\n" for row in content)
    if lines or name == "metrics":
      (folder / f"{name}.jsonl").write_text(lines)
  start = {
    "date": "2026-01-02T03:04:05+00:00",
    "command": ["train.py", "--config=configs/digits.py"],
    "git_commit": "0123456789abcdef",
    "git_changes": True,
    "python": "3.11.7",
    "packages": {"jax": "0.10.2"},
    "device_kind": "TPU v3",
    "devices": 2,
    "hosts": 1,
    "from_step": 0,
  }
  (folder / "provenance.json").write_text(json.dumps({"starts": [start]}))
  if done:
    weights.save(folder / weights.RUN_FILE, _params(config))
  return folder


def _params(config):
  model = create_from_config(config["model"])
  images = np.zeros((1, 8, 8, 3), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  random = np.random.RandomState(0)
  return jax.tree.map(
    lambda x: random.standard_normal(x.shape).astype(np.float32), shapes
  )
