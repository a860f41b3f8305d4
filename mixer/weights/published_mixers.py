# SPDX-License-Identifier: Apache-2.0
"""The published Mixers: the paper's own, and those of SAM and GSAM."""

from mixer.weights.published import Published, google, timm

_PAPER = "300 epochs, RandAugment, mixup, stochastic depth 0.1 (table 4)"
_SAM = "300 epochs with SAM, inception crop and flip alone"
_GSAM = "300 epochs with GSAM, inception crop and flip alone"
_BY_SAM = "GSAM paper, of the SAM paper"
_BY_GSAM = "GSAM paper, table 1"

MIXERS = (
  Published(
    name="imagenet1k/Mixer-B_16",
    model="Mixer-B/16",
    classes="imagenet2012",
    recipe=f"ImageNet-1k from scratch: {_PAPER}",
    top1=76.44,
    measured="paper, table 3; timm measures 76.62",
    mirrors=(
      google("mixer_models/imagenet1k/Mixer-B_16", "228.47 MiB"),
      *timm(
        "mixer_b16_224.goog_in21k_ft_in1k", "jx_mixer_b16_224-76587d61.pth"
      ),
    ),
  ),
  Published(
    name="imagenet1k/Mixer-L_16",
    model="Mixer-L/16",
    classes="imagenet2012",
    recipe=f"ImageNet-1k from scratch: {_PAPER}",
    top1=71.76,
    measured="paper, table 3; timm measures 72.08",
    mirrors=(
      google("mixer_models/imagenet1k/Mixer-L_16", "794.29 MiB"),
      *timm(
        "mixer_l16_224.goog_in21k_ft_in1k", "jx_mixer_l16_224-92f9adc4.pth"
      ),
    ),
  ),
  Published(
    name="imagenet21k/Mixer-B_16",
    model="Mixer-B/16",
    classes="imagenet21k",
    recipe=f"ImageNet-21k: {_PAPER}",
    measured="80.64 once fine-tuned (table 3)",
    mirrors=(
      google("mixer_models/imagenet21k/Mixer-B_16", "289.61 MiB"),
      *timm("mixer_b16_224.goog_in21k", "jx_mixer_b16_224_in21k-617b3de2.pth"),
    ),
  ),
  Published(
    name="imagenet21k/Mixer-L_16",
    model="Mixer-L/16",
    classes="imagenet21k",
    recipe=f"ImageNet-21k: {_PAPER}",
    measured="82.89 once fine-tuned (table 3)",
    mirrors=(
      google("mixer_models/imagenet21k/Mixer-L_16", "875.78 MiB"),
      *timm("mixer_l16_224.goog_in21k", "jx_mixer_l16_224_in21k-846aa33c.pth"),
    ),
  ),
  Published(
    name="sam/Mixer-B_16",
    model="Mixer-B/16",
    classes="imagenet2012",
    recipe=f"ImageNet-1k from scratch: {_SAM}",
    top1=77.4,
    measured=_BY_SAM,
    mirrors=(google("mixer_models/sam/Mixer-B_16", "228.47 MiB"),),
  ),
  Published(
    name="sam/Mixer-B_32",
    model="Mixer-B/32",
    classes="imagenet2012",
    recipe=f"ImageNet-1k from scratch: {_SAM}",
    top1=72.4,
    measured=_BY_SAM,
    mirrors=(google("mixer_models/sam/Mixer-B_32", "230.04 MiB"),),
  ),
  Published(
    name="gsam/Mixer-B_16",
    model="Mixer-B/16",
    classes="imagenet2012",
    recipe=f"ImageNet-1k from scratch: {_GSAM}",
    top1=77.8,
    measured=_BY_GSAM,
    mirrors=(google("mixer_models/gsam/Mixer-B_16", "228.47 MiB"),),
  ),
  Published(
    name="gsam/Mixer-B_32",
    model="Mixer-B/32",
    classes="imagenet2012",
    recipe=f"ImageNet-1k from scratch: {_GSAM}",
    top1=73.6,
    measured=_BY_GSAM,
    mirrors=(google("mixer_models/gsam/Mixer-B_32", "230.04 MiB"),),
  ),
  Published(
    name="gsam/Mixer-S_16",
    model="Mixer-S/16",
    classes="imagenet2012",
    recipe=f"ImageNet-1k from scratch: {_GSAM}",
    top1=75.0,
    measured=_BY_GSAM,
    mirrors=(google("mixer_models/gsam/Mixer-S_16", "70.71 MiB"),),
  ),
  Published(
    name="gsam/Mixer-S_32",
    model="Mixer-S/32",
    classes="imagenet2012",
    recipe=f"ImageNet-1k from scratch: {_GSAM}",
    top1=68.6,
    measured=_BY_GSAM,
    mirrors=(google("mixer_models/gsam/Mixer-S_32", "72.91 MiB"),),
  ),
  Published(
    name="gsam/Mixer-S_8",
    model="Mixer-S/16",
    patch=8,
    classes="imagenet2012",
    recipe=f"ImageNet-1k from scratch: {_GSAM}",
    top1=76.8,
    measured=_BY_GSAM,
    mirrors=(google("mixer_models/gsam/Mixer-S_8", "78.79 MiB"),),
  ),
)
