# SPDX-License-Identifier: Apache-2.0
r"""Pre-trains on a large data set of one's own (paper, table 4: JFT-300M).

  python train.py --config=configs/pretrain_large.py:B/16,data=folder:DIR \
    --workdir=DIR
  python train.py --config=configs/pretrain_large.py:L/16,data=NAME,epochs=14 \
    --workdir=DIR

data is folder:DIR, with DIR/train/CLASS/IMAGE, or the name of a data set of
TFDS that is prepared in $TFDS_DATA_DIR and has a split train. A folder's split
test, validation, valid, val, dev or eval is evaluated; without one, and in
TFDS, the last hundredth of train is held out. Variants: those of
configs/pretrain_i21k.py.

Hardware and hours, for the 303 million images of JFT-300M (table 3): S/32 10,
B/32 50, B/16 80, L/16 230 TPUv3 core-days; with epochs=14 L/16 450, H/14 1,010.

Expected: JFT-300M is not public, so there is nothing to compare with. From it
the paper reports on ImageNet at 224 px S/32 68.70 %, B/16 80.00 %, L/16
84.05 % and H/14 86.32 %.

Published and not published:
- Mixer: epochs, learning rate and weight decay are table 4's, which has 7 and
  14 epochs for L (here 7). Section 3 has the rest: Adam, linear decay, warm-up
  of 10,000 steps, only crops and flips. They are meant for 303 million images;
  a million or so needs the regularisation of configs/pretrain_i1k.py.
- ViT and BiT: learning rate and weight decay are those that the ViT paper's
  table 3 has for JFT-300M (arXiv 2010.11929), to which the Mixer paper compares
  its own; BiT-R200x3, which it does not list, takes R152's.
- The loss is not in the paper. The sigmoid and the head's bias, about -log of
  the number of classes, are those of Google's code for JFT-300M
  (google/uncertainty-baselines, baselines/jft: -10 for 18,291 classes).
- Computation in bfloat16: see configs/pretrain_i21k.py.
"""

from configs import pretrain_i21k
from mixer import models
from mixer.recipe import parse_arg

# Beginning of a model's name -> epochs, learning rate, weight decay in the
# papers' terms, which the learning rate multiplies.
SETTINGS = {
  "Mixer-S": (5, 3e-3, 0.03),
  "Mixer-B": (7, 3e-3, 0.03),
  "Mixer-L": (7, 1e-3, 0.03),
  "Mixer-H": (14, 1e-3, 0.03),
  "ViT-B": (7, 8e-4, 0.1),
  "ViT-L/32": (7, 6e-4, 0.1),
  "ViT-L/16": (7, 4e-4, 0.1),
  "ViT-H": (14, 3e-4, 0.1),
  "BiT-R50": (7, 1e-3, 0.1),
  "BiT-R101": (7, 8e-4, 0.1),
  "BiT-R": (7, 6e-4, 0.1),
}


def get_config(arg=None):
  """Returns the config for an argument such as "L/16,data=folder:DIR"."""
  arg = parse_arg(arg, variant="B/16", data="imagenet21k", epochs=0.0)
  config = pretrain_i21k.on_imagenet21k(arg.variant)
  if arg.data != config.data.name:
    pretrain_i21k.take_data(config, arg.data)
  name = config.model.name
  # An unknown model is reported by the plan.
  known = next(filter(name.startswith, SETTINGS), "Mixer-B")
  epochs, rate, decay = SETTINGS[known]
  config.total_epochs = arg.epochs or float(epochs)
  config.checkpoint.milestone_epochs = config.total_epochs / 10
  config.data.ops = "inception_crop(224) | flip"
  if name.startswith("ViT"):
    config.model.representation = models.sizes(name).get("hidden")

  config.optimizer.name = "adam"
  config.optimizer.learning_rate = rate
  config.optimizer.weight_decay = rate * decay  # decoupled, x schedule
  config.schedule.kind = "linear"
  config.schedule.warmup_steps = 10_000
  config.schedule.end = 1e-5
  return config
