# SPDX-License-Identifier: Apache-2.0
r"""Pre-trains Mixer on ImageNet-21k (paper, section 3 and table 4).

  python train.py --config=configs/pretrain_i21k.py:B/16 --workdir=DIR

Variants: S/32 S/16 B/32 B/16 L/32 L/16 H/14. 1.04 M steps of 4,096 images.

Hardware and hours: the paper gives 150 TPUv3 core-days for B/16 and 410 for
L/16 (table 3, extrapolated): 28 h and 77 h on 128 cores.

Expected, after fine-tuning on ImageNet at 224 px with configs/finetune.py
(table 3): B/16 80.64 %, L/16 82.89 % top-1. Not measured by this project.

Published and not published:
- Settings of B and L are table 4's, for every patch size. S and H/14 were
  trained on JFT-300M alone: S takes B's settings here, H takes L's.
- Weight decay, schedule and loss are those of the authors' ImageNet-1k code
  (google-research/big_vision, mlp_mixer_i1k.py); paper: "weight decay 0.1".
- The head's bias is that of their ImageNet-21k recipe for ViT (vit_i21k.py),
  as is the training split; of the rest they make two parts, this recipe one.
- They computed in float32 on TPUs, which round the factors of matrix products
  to bfloat16; dtype = "bfloat16" does the same on every device.
- 14,197,122 images is the count of the fall 2011 release, 21,843 the width of
  the published heads.
"""

from mixer.config import default, evaluator, parse_arg

#         RandAugment's magnitude, mixup's p, images a device takes at once
SETTINGS = {
  "S": (10, 0.2, 1024),
  "B": (10, 0.2, 512),
  "L": (20, 0.5, 256),
  "H": (20, 0.5, 128),
}
HELD_OUT = 51_200


def get_config(arg=None):
  """Returns the config for an argument such as "B/16" or "variant=L/16"."""
  arg = parse_arg(arg, variant="B/16", epochs=300.0)
  magnitude, mixup, at_once = SETTINGS.get(arg.variant[:1], SETTINGS["B"])

  config = default()
  config.total_epochs = arg.epochs
  config.batch = 4096
  config.max_per_device = at_once

  config.model.name = f"Mixer-{arg.variant}"
  config.model.num_classes = 21_843
  config.model.dtype = "bfloat16"
  config.model.stoch_depth = 0.1
  config.model.head_bias = -10.0
  config.loss = "sigmoid"
  config.mixup = mixup

  config.data.name = "imagenet21k"
  config.data.split = f"full[{HELD_OUT}:]"
  config.data.examples = 14_197_122 - HELD_OUT
  config.data.ops = f"inception_crop(224) | flip | randaug(2, {magnitude})"

  config.optimizer.name = "adam"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 1e-4  # decoupled, x schedule: paper's 0.1
  config.optimizer.clip_norm = 1.0
  config.schedule.kind = "linear"
  config.schedule.warmup_steps = 10_000
  config.schedule.end = 1e-5

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
  config.checkpoint.milestone_epochs = 30.0
  return config
