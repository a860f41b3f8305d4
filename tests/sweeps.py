# SPDX-License-Identifier: Apache-2.0
"""Small sweeps on the digits, and readers of their results."""

import json

import recipes

from mixer.config import evaluator

STEPS = 24
METRIC, REPORT = "eval/minival/accuracy", "eval/test/accuracy"
# The digits recipe, small, with a held-out part.
SMALL = {
  "total_epochs": 0.0,
  "total_steps": STEPS,
  "batch": 32,
  "model.hidden": 16,
  "model.blocks": 1,
  "model.tokens_mlp": 8,
  "model.channels_mlp": 32,
  "mixup": 0.0,
  "ema_decay": 0.0,
  "schedule.warmup_epochs": 0.0,
  "schedule.warmup_steps": 2,
  "checkpoint.every_epochs": 0.0,
  "checkpoint.every_steps": 8,
  "checkpoint.best": METRIC,
  "evals.test.every_epochs": 0.0,
  "log.every_steps": 1,
  "data.split": "train[:90%]",
  "data.examples": 1_293,
  "sweep.learning_rates": (0.001, 0.01),
  "sweep.metric": METRIC,
  "sweep.full_split": "train",
  "sweep.full_examples": 1_437,
  "sweep.seeds": 2,
}


def small(digits_dir, **changes):
  config = recipes.load("digits")
  config.data.data_dir = digits_dir
  config.evals.minival = evaluator(split="train[90%:]", ops="central_crop(8)")
  config.update_from_flattened_dict(
    SMALL | {key.replace("__", "."): value for key, value in changes.items()}
  )
  return config


def read_report(folder):
  return json.loads((folder / "sweep.json").read_text())


def results(found):
  """Returns the results of a report, without date and provenance."""
  keys = "learning_rate", "means", "grid", "final"
  return {key: found[key] for key in keys}


def never(*arguments, **options):
  raise AssertionError("It trains.")
