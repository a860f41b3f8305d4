# SPDX-License-Identifier: Apache-2.0
r"""Pre-trains on the digits 0 to 4 and transfers to the digits 5 to 9.

  make transfer

runs all of it on two CPU cores. The parts are

  python -m mixer data prepare digits/0to4
  python -m mixer data prepare digits/5to9
  python train.py --config=configs/transfer.py:pretrain --workdir=DIR/pretrain
  python -m mixer sweep --config=configs/transfer.py:finetune \
    --config.init=DIR/pretrain --workdir=DIR/finetune
  python -m mixer sweep --config=configs/transfer.py:scratch \
    --workdir=DIR/scratch

A small version of the paper's transfer from ImageNet-21k to a downstream task:
pre-training on images of 8 x 8 px, fine-tuning on about 20 images per class at
twice the resolution. res=16 grows the token mixing by tiles, as in the paper's
appendix C; other resolutions, or growth=interpolate, go beyond the paper.
`scratch` is the same recipe from random weights.

The test set of fine-tuning is all digits 5 to 9 that it was not trained on: the
official test images and the other training images, which pre-training has not
seen either.
"""

from mixer.config import default, evaluator
from mixer.errors import UserError
from mixer.recipe import parse_arg

# Learning rates that the sweep tries.
RATES = (0.03, 0.1, 0.3, 0.6)
PATCH = 2  # px
TRAINED_AT = 8  # px
TRAIN, HELD_OUT = "train[:50]", "train[50:100]"
TEST = "train[100:]+test"


def get_config(arg=None):
  """Returns the config for an argument such as "finetune,res=12"."""
  arg = parse_arg(
    arg,
    stage="pretrain",
    res=2 * TRAINED_AT,
    growth="",
    steps=20,
    choices={"stage": ("pretrain", "finetune", "scratch")},
  )
  if arg.stage == "pretrain" and (arg.res, arg.growth, arg.steps) != (
    2 * TRAINED_AT,
    "",
    20,
  ):
    raise UserError(
      "res, growth and steps are of the stages finetune and scratch, and change"
      " nothing in pretrain: leave them out."
    )
  whole = arg.res % TRAINED_AT == 0 and arg.res > TRAINED_AT
  growth = arg.growth or ("tiles" if whole else "interpolate")
  if growth not in ("tiles", "interpolate"):
    raise UserError(f"growth={growth} is none of tiles and interpolate.")
  if growth == "tiles" and not whole:
    raise UserError(
      f"growth=tiles is for multiples of {TRAINED_AT} px, and res={arg.res} is "
      "none: leave it out to interpolate, which is beyond the paper."
    )
  config = default()
  config.batch = 64
  config.model.name = "Mixer"
  config.model.num_classes = 5
  config.model.patch = PATCH
  config.model.hidden = 64
  config.model.blocks = 4
  config.model.tokens_mlp = 64
  config.model.channels_mlp = 256
  config.optimizer.clip_norm = 1.0
  config.schedule.kind = "cosine"
  if arg.stage == "pretrain":
    pretrain(config)
  else:
    transfer(config, arg, growth)
  return config


def pretrain(config):
  """Sets the recipe of configs/digits.py, on half of the digits."""
  config.total_epochs = 200.0
  config.data.name = "digits/0to4"
  config.data.examples = 719
  # Shifts, and changes of size and shape by up to a quarter.
  config.data.ops = f"pad(1) | inception_crop({TRAINED_AT}, area_min=60)"
  config.mixup = 0.2
  config.optimizer.learning_rate = 3e-3
  config.optimizer.weight_decay = 1e-3  # decoupled, x schedule: AdamW's 1/3
  config.schedule.warmup_epochs = 5.0
  ops = f"central_crop({TRAINED_AT})"
  config.evals.test = evaluator(split="test", ops=ops, every_epochs=50.0)
  config.evals.others = probe(ops)


def transfer(config, arg, growth):
  """Sets a small version of the paper's fine-tuning."""
  config.total_steps = arg.steps
  config.data.name = "digits/5to9"
  config.data.split = TRAIN
  larger = arg.res * 9 // 8
  config.data.ops = f"resize({larger}) | random_crop({arg.res})"
  config.optimizer.name = "momentum"
  config.optimizer.accumulator_dtype = "bfloat16"
  config.optimizer.learning_rate = 0.1
  config.schedule.warmup_steps = 3

  if growth == "tiles":
    factor = arg.res // TRAINED_AT
    config.model.tokens_mlp = factor**2 * config.model.tokens_mlp
  if arg.stage == "finetune":
    config.init_head = "zeros"
    if arg.res != TRAINED_AT:
      config.init_growth = growth

  ops = f"resize({larger}) | central_crop({arg.res})"
  config.evals.test = evaluator(split=TEST, ops=ops)
  config.evals.minival = evaluator(split=HELD_OUT, ops=ops)
  config.evals.others = probe(ops, every_steps=arg.steps)
  config.sweep.learning_rates = RATES
  config.sweep.metric = "eval/minival/accuracy"
  config.sweep.full_split = f"{TRAIN}+{HELD_OUT}"


def probe(ops, **keys):
  """Returns an evaluator of few-shot accuracy on the digits 5 to 9."""
  return evaluator(
    "fewshot",
    name="digits/5to9",
    split="test",
    pool_split="train",
    ops=ops,
    **keys,
  )
