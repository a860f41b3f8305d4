# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints by name, and those that were never published."""

import re
from typing import NamedTuple

from mixer.errors import UserError, format_list, nearest
from mixer.weights.published import BITS, MIXERS, VITS, Published

REGISTRY = {each.name: each for each in (*MIXERS, *VITS, *BITS)}


class Unpublished(NamedTuple):
  """Weights that people look for, and that nobody has published.

  pattern: matches the names under which people look for them.
  description: of the weights.
  instead: the alternative, a sentence.
  """

  pattern: str
  description: str
  instead: str


UNPUBLISHED = (
  Unpublished(
    r"jft|Mixer-H|BiT-L",
    "anything trained on JFT-300M or JFT-3B: every Mixer-H/14, the Mixers of "
    "86.78 and 87.94 % in tables 2 and 3, BiT-L, ViT on JFT",
    "The best Mixer there is to fine-tune is imagenet21k/Mixer-L_16.",
  ),
  Unpublished(
    r"imagenet21k\+.*/Mixer|Mixer.*(ft|21k.*1k|2012|448|384)",
    "Mixers of ImageNet-21k fine-tuned on ImageNet-1k, at 224 px (80.64 and "
    "82.89 %) or 448 px (84.15 %)",
    "Fine-tune imagenet21k/Mixer-B_16 or -L_16 yourself: "
    "configs/finetune.py:dataset=imagenet2012.",
  ),
  Unpublished(
    r"imagenet1k/Mixer-(S|._32)",
    "Mixer-S and Mixer-*/32 trained on ImageNet-1k by the paper's recipe",
    "gsam/ has Mixer-S_8, -S_16, -S_32 and -B_32, trained on ImageNet-1k.",
  ),
  Unpublished(
    r"imagenet21k/Mixer-(S|._32)",
    "Mixer-S and Mixer-*/32 trained on ImageNet-21k",
    "ImageNet-21k has only Mixer-B_16 and -L_16; smaller ones are in gsam/.",
  ),
  Unpublished(
    r"sam/Mixer-L|(^|[^g])sam/Mixer-S|Mixer-._8",
    "Mixer-L with SAM or GSAM, Mixer-S with SAM, Mixer-B/8",
    "gsam/ has Mixer-S_8, -S_16, -S_32, -B_16 and -B_32.",
  ),
  Unpublished(
    r"BiT.*(R200x3|R152x1|R50x2)",
    "BiT-R200x3, BiT-R152x1 and BiT-R50x2, on any data",
    "bit/ has R50x1, R50x3, R101x1, R101x3, R152x2 and R152x4.",
  ),
  Unpublished(
    r"^imagenet(1k|2012)/ViT",
    "ViT of the ViT paper trained on ImageNet-1k only",
    "augreg/ViT-B_16-i1k and augreg/ViT-L_16-i1k are later, better ones.",
  ),
)

WARNINGS = (
  "timm's tag goog_in21k_ft_in1k of Mixer-B/16 and -L/16 is wrong: these are "
  "imagenet1k/Mixer-B_16 and -L_16, trained on ImageNet-1k only.",
  "timm's miil_in21k and miil_in21k_ft_in1k are other people's weights: exact "
  "GELU, 11,221 classes for miil_in21k, and pixels in [0, 1]. The stem is "
  "converted to [-1, 1] here if the file's path has miil in it.",
  "timm computes the exact GELU also for Google's weights, which were trained "
  "with the tanh form; this project computes them as trained.",
)


def find(name: str) -> Published:
  """Returns the published weights of a name.

  Raises:
    UserError: there are none; gives the reason, or the nearest names.
  """
  if name in REGISTRY:
    return REGISTRY[name]
  for never in UNPUBLISHED:
    if re.search(never.pattern, name, re.IGNORECASE):
      raise UserError(
        f"{name} was never published; neither were these: {never.description}. "
        f"{never.instead}"
      )
  near = [known for known in REGISTRY if known.endswith(f"/{name}")]
  near = near or nearest(name, REGISTRY, most=4, cutoff=0.4)
  raise UserError(
    f"There are no weights at {name}: give a file, the folder of a finished "
    "run, or a published name (python -m mixer weights list)."
    f"{f' Nearest: {format_list(near)}.' if near else ''}"
  )
