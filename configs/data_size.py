# SPDX-License-Identifier: Apache-2.0
r"""What more training images are worth (paper, section 3.3, figure 2, right).

  python -m mixer data prepare photographs/even
  python train.py --config=configs/data_size.py:mixer-large,share=30 \
    --workdir=DIR

model is mixer-small, mixer-large, vit or resnet; share is the percentage of the
training images, 3, 10, 30 or 100 in the paper. Every share is a random sample,
which the smaller ones of its seed are part of, and trains for as many steps.
`seed` draws the sample and all else that is random, so that what differs
between seeds is what other images would have done, too.
`python -m benchmarks.data_size` trains all models on all four shares, with
three seeds each, in about 22 minutes on 2 CPU cores, and

  python -m mixer paper figure 2

draws them, judged where the accuracy on `val` was best: the paper stopped early
by its upstream validation accuracy. The paper's: on the smallest share all
Mixers overfit strongly; with more images they gain more than the baselines.

scale=photographs trains on tiles of 15 photographs: 100 % are 1,160, 3 % are
35, of all photographs. Few-shot accuracy is that of five tiles a class that
were not trained on.

scale=paper takes configs/pretrain_i21k.py, of which it differs in the share and
in the epochs alone, and 5-shot accuracy on ImageNet; model is then one of that
recipe's, such as Mixer-B/32, Mixer-L/16, ViT-L/16 or BiT-R152x2. The paper
trained on JFT-300M for 233, 70, 23 and 7 epochs, which is not public. The order
of ImageNet-21k's records is random. Not measured by this project.
"""

from configs import permutations, pretrain_i21k
from mixer.config import evaluator
from mixer.errors import UserError
from mixer.recipe import parse_arg

GOLDEN = (5**0.5 - 1) / 2
MODELS = {
  "mixer-small": {
    "name": "Mixer",
    "patch": permutations.PATCH,
    "hidden": 32,
    "blocks": 2,
    "tokens_mlp": 16,
    "channels_mlp": 128,
  },
  "mixer-large": permutations.MODELS["mixer"],
  "vit": {
    "name": "ViT",
    "patch": permutations.PATCH,
    "hidden": 64,
    "blocks": 4,
    "mlp": 256,
    "heads": 4,
  },
  "resnet": permutations.MODELS["resnet"],
}


def get_config(arg=None):
  """Returns the config for an argument such as "vit,share=10"."""
  arg = parse_arg(
    arg,
    model="mixer-large",
    share=100.0,
    scale="photographs",
    seed=0,
    choices={"scale": permutations.SCALES},
  )
  if not 0 < arg.share <= 100:
    raise UserError(f"share={arg.share:g} must be a percentage above 0.")
  if arg.scale == "paper":
    config = at_papers_scale(arg.model, arg.share / 100, arg.seed)
  elif arg.model in MODELS:
    config = on_photographs(arg.model, arg.share / 100, arg.seed)
  else:
    known = ", ".join(MODELS)
    raise UserError(f"model={arg.model} is none of {known}.")
  config.seed = arg.seed
  return config


def on_photographs(model, share, seed):
  """As figure 4's, on some of the images, whose order is random."""
  config = permutations.on_photographs(MODELS[model])
  config.data.name = "photographs/even"  # few are of all photographs, too
  config.data.split, config.data.examples = sample(
    "train", 0, config.data.examples, share, seed
  )
  config.evals.val = evaluator(
    split="validation",
    ops=config.evals.test.ops,
    every_steps=config.evals.test.every_steps,
  )
  return config


def at_papers_scale(model, share, seed):
  """A model of figure 2, by the recipe of ImageNet-21k."""
  config = pretrain_i21k.get_config(model)
  config.total_epochs /= share  # as many steps
  config.checkpoint.milestone_epochs /= share
  config.data.split, config.data.examples = sample(
    "full", pretrain_i21k.HELD_OUT, config.data.examples, share, seed
  )
  config.evals.few = permutations.imagenet_5shot()
  config.checkpoint.best = "eval/heldout/accuracy"
  return config


def sample(split, begin, examples, share, seed):
  """A share of a split in random order, and how many examples it has.

  Seeds begin at places a golden section apart, so that samples of any number
  of them have little in common; at the end they go on at the beginning.

  Args:
    split: name of the whole.
    begin, examples: where in it the images begin, and how many there are.
    share: of them, 0 to 1.
    seed: a whole number from 0 on.
  """
  wanted = round(share * examples)
  first = round(GOLDEN * seed * examples) % examples
  if wanted == examples:
    return f"{split}[{begin}:{begin + examples}]", wanted
  if first + wanted <= examples:
    return f"{split}[{begin + first}:{begin + first + wanted}]", wanted
  end = f"{split}[{begin + first}:{begin + examples}]"
  return f"{end}+{split}[{begin}:{begin + first + wanted - examples}]", wanted
