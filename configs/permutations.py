# SPDX-License-Identifier: Apache-2.0
r"""Training on permuted pixels (paper, section 3.4 and figure 4).

  python -m mixer data prepare photographs
  python train.py --config=configs/permutations.py:mixer,input=patches \
    --workdir=DIR

model is mixer or resnet, input one of

- original: unchanged images.
- patches: the patches of an image are permuted, and the pixels within each
  patch, in the same way for every patch.
- pixels: all pixels of an image are permuted.

The permutation is the same for all images, in training and in evaluation;
`seed` draws it and everything else that is random. The measure is the few-shot
accuracy during training. `python -m benchmarks.permutations` trains all of
them, with three seeds each, in about 12 minutes on 2 CPU cores, and

  python -m mixer paper figure 4

draws the curves. In the paper, which shows them only as a picture, the Mixer's
curves for patches and original coincide and pixels end about 45 % lower; the
ResNet loses much with either, about 75 % with pixels.

scale=photographs trains on tiles of 15 photographs: 32 x 32 px enlarged to
48 x 48, because a ResNet first divides each side by four. The Mixer has 16
patches, the ResNet two units. Few-shot accuracy uses five tiles per class that
were not trained on.

scale=paper trains Mixer-B/16 and ResNet-50x1 on ImageNet-21k and measures the
5-shot accuracy on ImageNet. As in the paper, section 3's set-up is that of both
(configs/pretrain_large.py): Adam, linear decay, only crops and flips, and as
many steps as 7 epochs of JFT-300M, which is not public. Here they are 150
epochs, and the Mixer will overfit more. Learning rate and weight decay of the
ResNet, which the paper does not give, are the ViT paper's. Not measured by this
project; a run of either model takes 80 TPUv3 core-days (table 3).
"""

from configs import pretrain_large
from mixer.config import default, evaluator
from mixer.recipe import parse_arg

# Permuting op, the last of all ops; `patch` is the side of a patch.
INPUTS = {
  "original": "",
  "patches": " | permute_patches({patch}, seed={seed})",
  "pixels": " | permute_pixels(seed={seed})",
}
# On photographs.
CROP, SIZE, PATCH = 32, 48, 12  # px: 16 patches
MODELS = {
  "mixer": {
    "name": "Mixer",
    "patch": PATCH,
    "hidden": 64,
    "blocks": 4,
    "tokens_mlp": 32,
    "channels_mlp": 256,
  },
  "resnet": {"name": "BiT", "width": 0.5, "units": (1, 1)},
}
RATES = {"Mixer": 3e-3, "ViT": 3e-3, "BiT": 1e-2}
SCALES = ("photographs", "paper")
JFT_STEPS = 7 * 303_021_387 // 4096  # 7 epochs of JFT-300M


def get_config(arg=None):
  """Returns the config for an argument such as "resnet,input=pixels"."""
  arg = parse_arg(
    arg,
    model="mixer",
    input="original",
    scale="photographs",
    seed=0,
    choices={"model": MODELS, "input": INPUTS, "scale": SCALES},
  )
  if arg.scale == "paper":
    name = "Mixer-B/16" if arg.model == "mixer" else "BiT-R50x1"
    config, patch = at_papers_scale(name), 16
  else:
    config, patch = on_photographs(MODELS[arg.model]), PATCH
  config.seed = arg.seed
  permute = INPUTS[arg.input].format(patch=patch, seed=arg.seed)
  for part in (config.data, *config.evals.values()):
    part.ops += permute
  return config


def on_photographs(fields):
  """Returns the recipe of a model that trains in minutes on two cores."""
  config = default()
  config.total_steps = 400
  config.batch = 64
  config.model.num_classes = 15
  config.model.update(fields)
  config.data.name = "photographs"
  config.data.examples = 1_160
  config.data.ops = f"random_crop({CROP}) | flip | resize({SIZE})"

  config.optimizer.learning_rate = RATES[fields["name"]]
  config.optimizer.weight_decay = 3e-4  # decoupled, x schedule
  config.optimizer.clip_norm = 1.0
  config.schedule.kind = "linear"
  config.schedule.warmup_steps = 40
  config.schedule.end = 1e-5

  every, ops = 40, f"central_crop({CROP}) | resize({SIZE})"
  config.evals.test = evaluator(split="test", ops=ops, every_steps=every)
  config.evals.few = evaluator(
    "fewshot",
    split="test",
    pool_split="validation",
    ops=ops,
    shots=(5,),
    draws=10,
    every_steps=every,
  )
  return config


def at_papers_scale(name):
  """Returns section 3's recipe for JFT-300M, on ImageNet-21k, for a model."""
  config = pretrain_large.get_config(name)
  config.total_epochs, config.total_steps = None, JFT_STEPS
  config.checkpoint.milestone_epochs = None
  config.checkpoint.milestone_steps = 50_000
  config.evals.few = imagenet_5shot()
  return config


def imagenet_5shot():
  """Returns the evaluator of figures 2 and 4."""
  return evaluator(
    "fewshot",
    name="imagenet2012",
    split="validation",
    examples=50_000,
    pool_split="train[:65000]",  # at least 30 of each class
    ops="resize(256) | central_crop(224)",
    shots=(5,),
    every_steps=10_000,
  )
