# SPDX-License-Identifier: Apache-2.0
"""Published ViT and BiT checkpoints, which the paper compares Mixer with.

Its own ViT and BiT of tables 2 and 3 are nearest to augreg/ViT-*-i21k-i1k and
-i1k, and to bit/BiT-M-R152x4-ILSVRC2012; those trained on JFT are nowhere.
"""

import re

from mixer.models import sizes
from mixer.weights.published import Published, google

_I1K, _I21K = "imagenet2012", "imagenet21k"

_VIT = "ImageNet-21k, ViT paper; a hidden layer, pre_logits, is under the head"
_VIT_1K = "ImageNet-21k, then ImageNet-1k, ViT paper"
_AUGREG = "ImageNet-21k, 300 epochs, 'How to train your ViT'"
_AUGREG_21K_1K = f"{_AUGREG}; then ImageNet-1k"
_AUGREG_1K = "ImageNet-1k alone, 300 epochs, 'How to train your ViT'"

_BIT_M = "ImageNet-21k, BiT paper"
_BIT_M_1K = "ImageNet-21k, then ImageNet-1k, BiT paper"
_BIT_S = "ImageNet-1k alone, BiT paper"
_DISTILLED = "ImageNet-1k, distilled from BiT-M-R152x2"
_PATIENT = "its paper, arXiv 2106.05237"


def _model(name: str) -> str:
  """ViT-B/16 from augreg/ViT-B_16-i1k, BiT-R50x1 from bit/BiT-M-R50x1."""
  family, size = re.search(r"(ViT|BiT)\S*?-([A-Z]_?\d+(?:x\d)?)", name).groups()
  return f"{family}-{size.replace('_', '/')}"


def _vit(name, classes, recipe, px, size, top1=None, measured="", file=None):
  model = _model(name)
  # No table has a ViT with patches of 8 px.
  patch = 8 if model.endswith("/8") else None
  model = model.replace("/8", "/16")
  return Published(
    name=name,
    model=model,
    patch=patch,
    classes=classes,
    recipe=recipe,
    mirrors=(google(f"vit_models/{file or name}", size),),
    top1=top1,
    measured=measured,
    image_size=(px, px),
    short_side=248 if px == 224 else px,
    # As wide as the tokens.
    representation=sizes(model)["hidden"] if recipe == _VIT else None,
  )


def _augreg(name: str, how: str) -> str:
  return f"augreg/{name.removeprefix('ViT-')}-300ep-lr_0.001-{how}"


def _bit(name, classes, recipe, top1=None, measured="", px=224, file=None):
  return Published(
    name=f"bit/{name}",
    model=_model(name),
    classes=classes,
    recipe=recipe,
    mirrors=(google(f"bit_models/{file or name}"),),
    top1=top1,
    measured=measured,
    image_size=(px, px),
    short_side=256 if px == 224 else px,
  )


VITS = (
  *(
    _vit(f"imagenet21k/{model}", _I21K, _VIT, 224, size)
    for model, size in (
      ("ViT-B_32", "400.01 MiB"),
      ("ViT-B_16", "393.69 MiB"),
      ("ViT-B_8", "393.72 MiB"),
      ("ViT-L_32", "1.23 GiB"),
      ("ViT-L_16", "1.22 GiB"),
      ("ViT-H_14", "2.46 GiB"),
    )
  ),
  *(
    _vit(f"imagenet21k+imagenet2012/{model}", _I1K, _VIT_1K, *facts)
    for model, *facts in (
      ("ViT-B_16-224", 224, "330.29 MiB", 81.78, "timm"),
      ("ViT-B_32", 384, "336.89 MiB"),
      ("ViT-B_16", 384, "331.40 MiB", 83.97, "ViT paper; timm measures 84.21"),
      ("ViT-B_8", 384, "334.78 MiB"),
      ("ViT-L_16-224", 224, "1.13 GiB"),
      ("ViT-L_32", 384, "1.14 GiB", 81.51, "timm"),
      ("ViT-L_16", 384, "1.14 GiB", 85.15, "ViT paper"),
    )
  ),
  # These files are named by how they were trained.
  *(
    _vit(f"augreg/{name}", _I21K, _AUGREG, 224, size, file=_augreg(name, how))
    for name, size, how in (
      ("ViT-B_32-i21k", "398 MiB", "aug_light1-wd_0.1-do_0.0-sd_0.0"),
      ("ViT-B_16-i21k", "391 MiB", "aug_medium1-wd_0.1-do_0.0-sd_0.0"),
      ("ViT-L_16-i21k", "1243 MiB", "aug_strong1-wd_0.1-do_0.0-sd_0.0"),
    )
  ),
  *(
    _vit(
      f"augreg/{name}",
      _I1K,
      _AUGREG_21K_1K if "i21k" in name else _AUGREG_1K,
      224,
      None,
      top1,
      "timm" if top1 else "",
      _augreg(name.removesuffix("-i1k") if "i21k" in name else name, how)
      + "--imagenet2012-steps_20k-lr_0.01-res_224",
    )
    for name, top1, how in (
      ("ViT-B_16-i21k-i1k", 84.53, "aug_medium1-wd_0.1-do_0.0-sd_0.0"),
      ("ViT-L_16-i21k-i1k", 85.86, "aug_medium1-wd_0.1-do_0.1-sd_0.1"),
      ("ViT-B_16-i1k", 79.15, "aug_strong2-wd_0.1-do_0.1-sd_0.1"),
      ("ViT-L_16-i1k", None, "aug_medium1-wd_0.1-do_0.1-sd_0.1"),
    )
  ),
)

BITS = (
  *(
    _bit(f"BiT-M-{size}", _I21K, _BIT_M)
    for size in ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")
  ),
  *(
    _bit(f"BiT-M-{size}-ILSVRC2012", _I1K, _BIT_M_1K, top1, "timm", px)
    for size, top1, px in (
      ("R50x1", 80.39, 448),
      ("R50x3", 83.98, 448),
      ("R101x1", 82.33, 448),
      ("R101x3", 84.43, 448),
      ("R152x2", 84.47, 448),
      ("R152x4", 84.94, 480),
    )
  ),
  *(
    _bit(f"BiT-S-{size}", _I1K, _BIT_S)
    for size in ("R50x1", "R50x3", "R101x1", "R101x3", "R152x4")
  ),
  *(
    _bit(
      f"BiT-R50x1-{px}",
      _I1K,
      _DISTILLED,
      top1,
      _PATIENT,
      px,
      f"distill/R50x1_{px}",
    )
    for px, top1 in ((224, 82.8), (160, 80.5))
  ),
)
