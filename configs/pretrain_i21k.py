# SPDX-License-Identifier: Apache-2.0
r"""Pre-trains Mixer on ImageNet-21k (paper, section 3 and table 4).

  python train.py --config=configs/pretrain_i21k.py:B/16 --workdir=DIR
  python train.py --config=configs/pretrain_i21k.py:ViT-B/16 --workdir=DIR

Variants: S/32 S/16 B/32 B/16 L/32 L/16 H/14, which are Mixers, and the paper's
baselines by their full names: ViT-B/32 ViT-B/16 ViT-L/32 ViT-L/16 ViT-H/14,
BiT-R50x1 BiT-R101x1 BiT-R152x2 and so on. 1.04 M steps of 4,096 images; BiT
311 k.

Hardware and hours: the paper gives 150 TPUv3 core-days for B/16 and 410 for
L/16, 180 for ViT-B/16 and 550 for ViT-L/16 (table 3, extrapolated): 28 h, 77 h,
34 h and 103 h on 128 cores.

Expected, after fine-tuning on ImageNet at 224 px with configs/finetune.py
(table 3): B/16 80.64 %, L/16 82.89 %, ViT-B/16 84.59 %, ViT-L/16 84.46 % top-1.
Not measured by this project.

With semantic=folder:DIR or a name of TFDS it trains on ImageNet-21k-P, the
classes with 500 images or more (arXiv 2104.10972), with a softmax for each
level of WordNet's hierarchy:

  python train.py --workdir=DIR --config.init=imagenet1k/Mixer-B_16 \
    --config=configs/pretrain_i21k.py:B/16,semantic=folder:IMAGES \
    --config.data.hierarchy=wordnet.is_a.txt

IMAGES has the folders imagenet21k_train and imagenet21k_val of their script (or
of image-net.org's archive for winter 2021), renamed to train and validation:
50 images a class for validation, 11,221 classes (winter 2021: 10,450).
wordnet.is_a.txt was published by ImageNet: a line for each pair of a synset and
one below it in WordNet 3.0. Expected of B/16: 76.3 % on validation, over all
levels (eval/heldout/accuracy is over the level of an image's class);
fine-tuned 82.31 % (timm's mixer_b16_224.miil_in21k_ft_in1k).

Published and not published:
- Settings of B and L are table 4's, for every patch size. S and H/14 were
  trained only on JFT-300M: S takes B's settings here, H takes L's.
- Weight decay, schedule and loss are those of the authors' ImageNet-1k code
  (google-research/big_vision, mlp_mixer_i1k.py); paper: "weight decay 0.1".
- The head's bias and the training split are those of their ImageNet-21k recipe
  for ViT (vit_i21k.py), which divides the rest into two parts; this recipe
  keeps it as one.
- The authors computed in float32 on TPUs, which round the factors of matrix
  products to bfloat16. dtype = "bfloat16" does so on every device, and also
  rounds the tokens between branches, and their cotangents, for less traffic
  (benchmarks/NOTES.md).
- 14,197,122 images is the count of the fall 2011 release, 21,843 the width of
  the published heads.
- ViT: the ViT authors trained table 3's models, also with the "extra
  regularization", with settings that were not published. Settings here are
  those of vit_i21k.py (arXiv 2106.10270); L/32 and H/14, for which it has none,
  take L/16's. It pools by the mean (--config.model.pool=mean); table 3's ViT
  has a class token, as here.
- semantic: 80 epochs from ImageNet-1k weights, Adam, learning rate 3e-4, decay
  1e-4, one cycle with a tenth of warm-up (here linear from 0, then cosine),
  label smoothing 0.2 and squeezed images are of the authors' code
  (Alibaba-MIIL/ImageNet21K). It decays by a penalty in Adam's gradient; here
  the decay is decoupled. Its Cutout of half a side is a box within the image
  here. Batch and RandAugment's magnitude were not found: 1,024 and 10 here. Of
  several parents the first one in the file counts; theirs is in a file of their
  own.
- BiT: the paper trains it only on JFT-300M, and takes the R152x4 of table 2
  from the BiT paper. Settings here are those of big_vision's bit_i21k.py: 90
  epochs with only crops and flips.
"""

import math

from configs import finetune
from mixer.config import default, evaluator
from mixer.data.sources import image_folder, open_source
from mixer.errors import UserError
from mixer.recipe import default_microbatch, parse_arg

# Beginning of a model's name -> RandAugment's magnitude, mixup's p.
SETTINGS = {
  "Mixer-S": (10, 0.2),
  "Mixer-B": (10, 0.2),
  "Mixer-L": (20, 0.5),
  "Mixer-H": (20, 0.5),
  "ViT-B": (10, 0.2),
  "ViT-L": (15, 0.5),
  "ViT-H": (15, 0.5),
}
HELD_OUT = 51_200


def get_config(arg=None):
  """Returns the config for an argument such as "B/16" or "variant=L/16"."""
  arg = parse_arg(arg, variant="B/16", epochs=0.0, semantic="")
  config = on_imagenet21k(arg.variant)
  if arg.semantic:
    take_data(config, arg.semantic)
    train_semantic(config)
  elif config.model.name.startswith("BiT"):
    train_bit(config)
  else:
    train_mixer_or_vit(config)
  if arg.epochs:
    config.total_epochs = arg.epochs
  config.checkpoint.milestone_epochs = 30.0
  return config


def on_imagenet21k(variant):
  """Returns a config without length, augmentation and optimizer."""
  name = variant if "-" in variant else f"Mixer-{variant}"
  config = default()
  config.batch = 4096
  config.max_per_device = default_microbatch(name)

  config.model.name = name
  config.model.num_classes = 21_843
  config.model.dtype = "bfloat16"
  config.model.head_bias = -10.0
  config.loss = "sigmoid"

  config.data.name = "imagenet21k"
  config.data.split = f"full[{HELD_OUT}:]"
  config.data.examples = 14_197_122 - HELD_OUT
  config.optimizer.clip_norm = 1.0

  ops = "resize_small(256) | central_crop(224)"
  config.evals.heldout = evaluator(
    split=f"full[:{HELD_OUT}]", examples=HELD_OUT, ops=ops, every_steps=10_000
  )
  config.evals.train = evaluator(
    split=f"full[{HELD_OUT}:{2 * HELD_OUT}]",
    examples=HELD_OUT,
    ops=ops,
    every_steps=10_000,
  )
  config.checkpoint.every_steps = 1_000
  return config


def take_data(config, name):
  """Sets the data set, its classes, and the parts to train on and to hold out.

  Raises:
    UserError: it is not on disk, or has no split train.
  """
  if name.startswith(image_folder.PREFIX):
    (classes, _, _, test, _), (train, _), *_ = finetune.folder_data_set(name)
  else:
    train, test = "train", None
    try:
      classes = open_source(name, train).num_classes
    except UserError as error:
      raise UserError(str(error)) from None  # or its subclass
  config.model.num_classes = classes
  config.model.head_bias = -round(math.log(classes), 1)
  config.data.name = name
  config.data.split = train if test else f"{train}[:99%]"
  config.evals.heldout.split = test or f"{train}[99%:]"
  config.evals.train.split = f"{train}[:1%]"
  for part in (config.data, *config.evals.values()):
    part.examples = None


def train_mixer_or_vit(config):
  """Sets the paper's settings, or those of vit_i21k.py."""
  name = config.model.name
  magnitude, mixup = SETTINGS.get(name.partition("/")[0], SETTINGS["Mixer-B"])
  config.total_epochs = 300.0
  config.mixup = mixup
  config.data.ops = f"inception_crop(224) | flip | randaug(2, {magnitude})"

  config.optimizer.name = "adam"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 1e-4  # decoupled, x schedule: paper's 0.1
  config.schedule.warmup_steps = 10_000
  if name.startswith("ViT"):
    config.optimizer.accumulator_dtype = "bfloat16"
    config.schedule.kind = "cosine"
  else:
    config.model.stoch_depth = 0.1
    config.schedule.kind = "linear"
    config.schedule.end = 1e-5


def train_bit(config):
  """Sets the settings of big_vision's bit_i21k.py."""
  config.total_epochs = 90.0
  config.data.ops = "inception_crop(224) | flip"

  config.optimizer.name = "momentum"
  config.optimizer.accumulator_dtype = "bfloat16"
  config.optimizer.learning_rate = 0.48  # 0.03 for each 256 images
  config.optimizer.weight_decay = 4.8e-4  # decoupled, x schedule; likewise
  config.schedule.kind = "cosine"
  config.schedule.warmup_steps = 5_000


def train_semantic(config):
  """Sets the settings for ImageNet-21k-P (arXiv 2104.10972)."""
  config.total_epochs = 80.0
  config.batch = 1024
  config.loss = "semantic_softmax"
  config.label_smoothing = 0.2
  config.model.head_bias = 0.0
  cutout = "random_erasing(1, 25, 25, 1)"
  config.data.ops = f"resize(224) | {cutout} | randaug(2, 10)"
  for options in config.evals.values():
    options.ops = "resize(224)"

  config.optimizer.name = "adam"
  config.optimizer.learning_rate = 3e-4
  config.optimizer.weight_decay = 3e-8  # decoupled, x schedule: their 1e-4
  config.optimizer.clip_norm = 0.0
  config.schedule.kind = "cosine"
  config.schedule.warmup_epochs = 8.0
