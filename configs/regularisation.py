# SPDX-License-Identifier: Apache-2.0
r"""Recipes beyond the paper, on data that fit two CPU cores.

  python -m mixer data prepare photographs
  python train.py --config=configs/regularisation.py:gsam --workdir=DIR

A small Mixer overfits 1,160 tiles of photographs (data=photographs, as in
configs/permutations.py) or 287 handwritten digits (data=digits, a fifth of
those of configs/digits.py). `plain` is that recipe without mixup and EMA, and
each other one adds one thing:

- sam, gsam: sharpness-aware minimization in micro-batches of 16 images, a
  quarter of the batch, with a tenth of the radii of S/32 (configs/sam_i1k.py),
  which are too large here.
- early, late: stochastic depth, which in the first sixth of the run falls to 0,
  or begins after it, with the rates of S and B (configs/modern_i1k.py).
- distilled: learns from `teacher`, the folder of a run of `larger`, at
  temperature 2 and without labels.

`larger` is a Mixer of twice the width and one and a half times the depth.
Nothing but SAM's radius was tuned, by runs with three other seeds. `python -m
benchmarks.recipes` trains all of them with five seeds.
"""

from configs import digits, permutations
from mixer.recipe import parse_arg

# Config keys of each recipe.
RECIPES = {
  "plain": {},
  "sam": {"sam.rho": 0.01, "sam.images": 16},
  "gsam": {
    "sam.rho": 0.05,
    "sam.rho_min": 0.0,
    "sam.alpha": 0.2,
    "sam.images": 16,
  },
  "early": {
    "model.stoch_depth": 0.5,
    "model.stoch_depth_rescale": True,
    "drop.when": "early",
    "drop.shape": "linear",
  },
  "late": {
    "model.stoch_depth": 0.4,
    "model.stoch_depth_rescale": True,
    "drop.when": "late",
  },
  "distilled": {"teacher.temperature": 2.0},
  "larger": {
    "model.hidden": 128,
    "model.blocks": 6,
    "model.tokens_mlp": 64,
    "model.channels_mlp": 512,
  },
}
DATA = ("photographs", "digits")


def get_config(arg=None):
  """Returns the config for an argument such as "gsam,data=digits,seed=1"."""
  arg = parse_arg(
    arg,
    recipe="plain",
    data="photographs",
    teacher="",
    seed=0,
    choices={"recipe": RECIPES, "data": DATA},
  )
  config = on_digits() if arg.data == "digits" else on_photographs()
  config.seed = arg.seed
  config.update_from_flattened_dict(RECIPES[arg.recipe])
  if config.drop.when != "always":
    config.drop.cutoff_steps = config.total_steps // 6
  if arg.recipe == "distilled":
    config.teacher.init = arg.teacher
  return config


def on_photographs():
  """Returns the recipe of figure 4 for the Mixer, at its original pixels."""
  config = permutations.get_config("mixer")
  del config.evals["few"]
  config.evals.test.every_steps = None  # at the end
  return config


def on_digits():
  """Returns configs/digits.py on a fifth of the images, without mixup and EMA.

  As many steps as on photographs.
  """
  config = digits.get_config()
  config.data.split, config.data.examples = "train[:287]", 287
  config.total_epochs, config.total_steps = None, 400
  config.schedule.warmup_epochs, config.schedule.warmup_steps = None, 40
  config.mixup = config.ema_decay = 0.0
  config.evals.test.every_epochs = None
  config.checkpoint.every_epochs, config.checkpoint.best = None, ""
  return config
