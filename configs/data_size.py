# SPDX-License-Identifier: Apache-2.0
r"""Accuracy against training-set size (paper, section 3.3, figure 2, right).

  python -m mixer data prepare photographs/even
  python train.py --config=configs/data_size.py:mixer-large,share=30 \
    --workdir=DIR

model is mixer-small, mixer-large, vit or resnet; share is the percentage of the
training images, 3, 10, 30 or 100 in the paper. Every share is a random sample,
contains the smaller samples of the same seed, and trains for the same number of
steps. `seed` draws the sample and everything else that is random, so that seeds
also differ in their images. `python -m benchmarks.data_size` trains all models
on all four shares, with three seeds each, in about 22 minutes on 2 CPU cores,
and

  python -m mixer paper figure 2

draws them, at the step with the best accuracy on `val`: the paper stopped early
by its upstream validation accuracy. Its findings: on the smallest share all
Mixers overfit strongly; with more images they gain more than the baselines.

scale=photographs trains on tiles of 15 photographs: 100 % are 1,160, 3 % are
35, from all photographs. Few-shot accuracy uses five tiles per class that were
not trained on.

scale=paper trains on shares of ImageNet-21k and measures the 5-shot accuracy on
ImageNet; model is then one of configs/pretrain_large.py, such as Mixer-B/32,
Mixer-L/16, ViT-L/16 or BiT-R152x2. As in the paper, section 3's set-up is that
of all models: Adam, linear decay, only crops and flips, and for every share as
many steps as 7 epochs of JFT-300M, of which the paper took its shares and which
is not public. Learning rates of ViT and ResNet, which the paper does not give,
are the ViT paper's. Here the whole is 150 epochs, 3 % are 5,000; the paper's
were 7 and 233. The order of ImageNet-21k's records is random. Not measured by
this project.
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
  """Returns the recipe of figure 4, on a sample of the images."""
  config = permutations.on_photographs(MODELS[model])
  config.data.name = "photographs/even"  # small samples cover all photographs
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
  """Returns section 3's recipe for a model of figure 2, on a sample."""
  config = permutations.at_papers_scale(model)
  config.data.split, config.data.examples = sample(
    "full", pretrain_i21k.HELD_OUT, config.data.examples, share, seed
  )
  config.checkpoint.best = "eval/heldout/accuracy"
  return config


def sample(split, begin, examples, share, seed):
  """Returns a share of a split in random order, and its number of examples.

  The samples of different seeds start a golden section apart, so that they
  overlap little; a sample wraps around at the end.

  Args:
    split: name of the split.
    begin, examples: first training image, and number of training images.
    share: fraction of them, 0 to 1.
    seed: a whole number from 0 on.
  """
  size = round(share * examples)
  first = round(GOLDEN * seed * examples) % examples
  if size == examples:
    return f"{split}[{begin}:{begin + examples}]", size
  if first + size <= examples:
    return f"{split}[{begin + first}:{begin + first + size}]", size
  end = f"{split}[{begin + first}:{begin + examples}]"
  return f"{end}+{split}[{begin}:{begin + first + size - examples}]", size
