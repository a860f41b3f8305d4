# SPDX-License-Identifier: Apache-2.0
"""A row of the paper's tables in small: recipes on digits, and their runs."""

from pathlib import Path

from mixer import train
from mixer.tools.paper.numbers import Row
from mixer.tools.paper.protocols import Protocol, load_recipe
from mixer.tools.sweep import multi_dataset

# Pre-training on the digits 0 to 4, fine-tuning on two data sets.
RECIPE = """
import sys
sys.path.append({tests!r})
import sweeps
from mixer.config import evaluator
from mixer.recipe import parse_arg

DATA_SETS = {data_sets!r}
AVERAGE = "Avg 2"

def get_config(arg=None):
  arg = parse_arg(
    arg, dataset="", hidden=16, steps=12, full=False, extra=False
  )
  config = sweeps.small(
    {data!r}, total_steps=arg.steps, checkpoint__every_steps=12
  )
  config.model.num_classes = 5
  config.model.hidden = arg.hidden
  config.data.examples = config.sweep.full_examples = None
  config.evals.test.examples = None
  config.data.name = DATA_SETS.get(arg.dataset, "digits/0to4")
  config.init_head = "zeros" if arg.dataset else "auto"
  if not arg.dataset:
    config.data.split = "train"
    config.evals.val = config.evals.test
    del config.evals["test"], config.evals["minival"]
    config.checkpoint.best = ""
  elif arg.full:
    config.data.split = "train"
    del config.evals["minival"]
    config.checkpoint.best = ""
  else:
    config.sweep.learning_rates = (0.01,)
  if arg.extra:
    config.evals.real = evaluator(split="test", ops="central_crop(8)")
  return config
"""
DATA_SETS = {"imagenet2012": "digits/0to4", "others": "digits/5to9"}
ROW = Row(
  name="i1k/Mixer-tiny",
  table=3,
  model="Mixer-tiny",
  data="i1k",
  epochs=1,
  resolution=8,
  imagenet=99.0,
  real=99.0,
  average5=98.0,
  vtab=97.0,
  images_per_second=1_000,
  thousand_core_days=0.01,
)


def write_recipe(folder: Path, digits_dir: str, data_sets=DATA_SETS) -> Path:
  file = folder / f"recipe_of_{len(data_sets)}.py"
  tests = str(Path(__file__).parent)
  file.write_text(
    RECIPE.format(tests=tests, data=digits_dir, data_sets=data_sets)
  )
  return file


def protocol(recipe: Path, vtab: Path | None = None, **changes) -> Protocol:
  given = {
    "pretrain": str(recipe),
    "published": "imagenet1k/Mixer-B_16",
    "finetune": str(recipe),
    "vtab": vtab and str(vtab),
    "is_pretrained_on_imagenet": True,
  }
  return Protocol(**given | changes)


def pretrain(recipe: Path, workdir: Path) -> Path:
  assert train.train(load_recipe(f"{recipe}:extra=True"), str(workdir)) == 0
  return workdir


def sweep(recipe: Path, init: Path, workdir: Path) -> Path:
  """On both data sets, with two seeds."""
  configs = {
    name: load_recipe(f"{recipe}:dataset={name}") for name in DATA_SETS
  }
  for config in configs.values():
    config.init = str(init)
  several = multi_dataset.MultiDatasetSweep(
    workdir, configs, "Avg 2", {"Avg 2": tuple(DATA_SETS)}
  )
  done = multi_dataset.sweep(
    several,
    skip_missing=False,
    accept_changes=False,
    should_stop=lambda: False,
  )
  assert done == 0
  return workdir
