# SPDX-License-Identifier: Apache-2.0
"""Figures that stand in the text alone, or follow from a table's."""

import dataclasses

# Footnote 2: (model, data, px) -> ImageNet in per cent, img/s/core. The first
# is not what table 3 says of the same model, 82.89 and 419.
FOOTNOTE_2 = {
  ("Mixer-L/16", "i21k", 224): (82.84, 420),
  ("ViT-L/16", "i21k", 384): (85.15, 80),
  ("HaloNet", "i21k", 384): (85.5, 258),
}

# The data sets of "Avg 5", by the names that configs/finetune.py takes. The
# text has 36 classes for Pets, which has 37, and says "ILSVRC2021".
AVERAGE_5 = (
  "imagenet2012",
  "cifar10",
  "cifar100",
  "oxford_iiit_pet",
  "oxford_flowers102",
)


@dataclasses.dataclass(frozen=True)
class SpeedRatio:
  """How many times as many images a Mixer takes in a second as a ViT.

  ratio: of the throughputs in table 3, both at this resolution. Of H/14 the
    text says 2.2 at 224 px, and 2.5 of table 2's two.
  """

  mixer: str
  vit: str
  resolution: int
  ratio: float


SPEED_RATIOS = (
  SpeedRatio("Mixer-B/16", "ViT-B/16", 224, 1.61),
  SpeedRatio("Mixer-L/16", "ViT-L/16", 224, 1.50),
  SpeedRatio("Mixer-H/14", "ViT-H/14", 224, 2.23),
)
