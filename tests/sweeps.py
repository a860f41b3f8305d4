# SPDX-License-Identifier: Apache-2.0
"""Small sweeps on the digits, and readers of their results."""

import json
from pathlib import Path

import recipes
import runs

from mixer.config import evaluator
from mixer.recipe import parse_arg

STEPS = 24
METRIC, REPORT = "eval/minival/accuracy", "eval/test/accuracy"
# Smaller than other runs, less random, and with a held-out part.
SMALL = runs.SMALL | {
  "total_steps": STEPS,
  "model.blocks": 1,
  "model.stoch_depth": 0.0,
  "model.dropout": 0.0,
  "mixup": 0.0,
  "ema_decay": 0.0,
  "schedule.warmup_steps": 2,
  "checkpoint.every_steps": 8,
  "checkpoint.best": METRIC,
  "evals.test.every_steps": None,
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


def get_config():
  """The same as a recipe; the command line gives the folder of data sets."""
  return small("")


# A recipe for several data sets.
RECIPE = """
import sys
sys.path.append({tests!r})
import sweeps

DATA_SETS = {data_sets!r}
AVERAGE = "Avg {number}"
GROUPS = {groups!r}

def get_config(arg=None):
  return sweeps.transfer({digits_dir!r}, DATA_SETS, {init_head!r}, arg)
"""


def write_recipe(folder, digits_dir, data_sets, groups=None, init_head="auto"):
  """Writes a recipe of pre-training on 0 to 4, and of fine-tuning.

  data_sets: names of data sets by values of dataset=.
  groups: name of a mean -> values of dataset=.
  """
  file = folder / f"recipe_of_{'_'.join(data_sets)}.py"
  text = RECIPE.format(
    tests=str(Path(__file__).parent),
    digits_dir=digits_dir,
    data_sets=data_sets,
    number=len(data_sets),
    groups=groups or {},
    init_head=init_head,
  )
  file.write_text(text)
  return file


def transfer(digits_dir, data_sets, init_head, arg):
  """Returns the config of such a recipe: without dataset=, of pre-training."""
  arg = parse_arg(arg, dataset="", steps=12, rates=1, full=False, extra=False)
  config = small(digits_dir, total_steps=arg.steps, checkpoint__every_steps=12)
  config.model.num_classes = 5
  config.data.name = data_sets.get(arg.dataset, "digits/0to4")
  config.data.examples = config.sweep.full_examples = None
  config.evals.test.examples = None
  config.sweep.learning_rates = (0.01, 0.02)[: arg.rates]
  if arg.dataset:
    config.init_head = init_head
  if arg.full or not arg.dataset:
    config.data.split = "train"
    del config.evals["minival"]
    config.checkpoint.best = ""
  if not arg.dataset:
    config.evals.val = config.evals.test
    del config.evals["test"]
  if arg.extra:
    config.evals.real = evaluator(split="test", ops="central_crop(8)")
  return config


def read_report(folder):
  return json.loads((folder / "sweep.json").read_text())


def results(found):
  """Returns the results of a report, without date and provenance."""
  keys = "learning_rate", "means", "grid", "final"
  return {key: found[key] for key in keys}


def never(*arguments, **options):
  raise AssertionError("It trains.")
