# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints by name: their models, recipes, results and mirrors.

Names and sizes of Google's files are from the listings and tables in the
authors' repositories (google-research/vision_transformer,
google-research/big_transfer); without a listed size, none is checked. The
paper's own ViT and BiT of tables 2 and 3 are nearest to augreg/ViT-*-i21k-i1k
and -i1k, and to bit/BiT-M-R152x4-ILSVRC2012; those trained on JFT are not
published.
"""

import dataclasses
import re
from typing import NamedTuple

from mixer.errors import UserError, format_list, nearest
from mixer.models import sizes

_GOOGLE = "https://storage.googleapis.com/"
_HUB = "https://huggingface.co/timm/"
_RELEASES = (
  "https://github.com/huggingface/pytorch-image-models/releases/download/"
)

HEADS = {"imagenet2012": 1000, "imagenet21k": 21_843}


@dataclasses.dataclass(frozen=True)
class Mirror:
  """A place to fetch a file from.

  url: its suffix is that of the layout.
  size: as listed, such as "228.47 MiB"; None if not known.
  sha256: its first digits; None if not known.
  """

  url: str
  size: str | None = None
  sha256: str | None = None

  @property
  def suffix(self) -> str:
    return "." + self.url.rpartition(".")[2]


@dataclasses.dataclass(frozen=True)
class Published:
  """A published checkpoint.

  name: for `config.init`.
  model: name for `mixer.models.create`.
  classes: of the head, "imagenet2012" or "imagenet21k".
  recipe: data and training, in words.
  mirrors: sources of the same weights, in the order in which they are tried.
  top1: accuracy on ImageNet's 50,000 validation images, in percent, without
    fine-tuning; None if not reported, or if the head has other classes.
  measured: source of top1, or a result after fine-tuning.
  image_size: height and width in pixels of the last training, or of top1.
  short_side: in pixels, of images before their central crop, for top1.
  patch: side of a patch, if it is not that of `model`.
  representation: of a ViT, units of the hidden layer under the head.
  """

  name: str
  model: str
  classes: str
  recipe: str
  mirrors: tuple[Mirror, ...]
  top1: float | None = None
  measured: str = ""
  image_size: tuple[int, int] = (224, 224)
  short_side: int = 256
  patch: int | None = None
  representation: int | None = None

  @property
  def num_classes(self) -> int:
    return HEADS[self.classes]

  @property
  def fields(self) -> dict[str, int]:
    """Fields for `create`, besides the model's name."""
    fields = {
      "num_classes": self.num_classes,
      "patch": self.patch,
      "representation": self.representation,
    }
    return {key: value for key, value in fields.items() if value is not None}


_I1K, _I21K = "imagenet2012", "imagenet21k"

# Recipes: the data set of the classes, and data and training in words.
_PAPER = "300 epochs, RandAugment, mixup, stochastic depth 0.1 (table 4)"
_MIXER_21K = _I21K, f"ImageNet-21k: {_PAPER}"
_MIXER_1K = _I1K, f"ImageNet-1k from scratch: {_PAPER}"
_CROP = "300 epochs, inception crop and flip only"
_SAM = _I1K, f"ImageNet-1k from scratch with SAM: {_CROP}"
_GSAM = _I1K, f"ImageNet-1k from scratch with GSAM: {_CROP}"
_VIT = (
  _I21K,
  "ImageNet-21k, ViT paper; a hidden layer, pre_logits, under the head",
)
_VIT_1K = _I1K, "ImageNet-21k, then ImageNet-1k, ViT paper"
_STEINER = "300 epochs, 'How to train your ViT'"  # arXiv 2106.10270
_AUGREG = _I21K, f"ImageNet-21k, {_STEINER}"
_AUGREG_21K_1K = _I1K, f"ImageNet-21k, {_STEINER}; then ImageNet-1k"
_AUGREG_1K = _I1K, f"ImageNet-1k only, {_STEINER}"
_BIT_M = _I21K, "ImageNet-21k, BiT paper"
_BIT_M_1K = _I1K, "ImageNet-21k, then ImageNet-1k, BiT paper"
_BIT_S = _I1K, "ImageNet-1k only, BiT paper"
_DISTILLED = _I1K, "ImageNet-1k, distilled from BiT-M-R152x2"

# Sources of accuracies.
_TABLE_3, _TUNED = (
  "paper, table 3; timm measures ",
  " once fine-tuned (table 3)",
)
_BY_SAM = "GSAM paper, quoting the SAM paper"
_BY_GSAM = "GSAM paper, table 1"
_PATIENT = "its paper, arXiv 2106.05237"


def _entry(
  name, recipe, *, size=None, top1=None, measured="", px=224, file=None
) -> Published:
  """Makes an entry of one of the authors' repositories.

  The name tells the model: ViT-B/16 for augreg/ViT-B_16-i1k, BiT-R50x1 for
  bit/BiT-M-R50x1. `file` is the path in their bucket, if not the name.
  """
  classes, words = recipe
  pattern = r"(Mixer|ViT|BiT)\S*?-([A-Z]_?\d+(?:x\d)?)"
  family, variant = re.search(pattern, name).groups()
  # The papers' tables have no variant with patches of 8 px.
  patch = 8 if variant.endswith("_8") else None
  model = f"{family}-{variant.replace('_8', '_16').replace('_', '/')}"
  path = f"{family.lower()}_models/{file or name.removeprefix('bit/')}.npz"
  google = Mirror(f"{_GOOGLE}{path}".replace("+", "%2B"), size)
  short_side = 248 if family == "ViT" else 256
  return Published(
    name=name,
    model=model,
    classes=classes,
    recipe=words,
    mirrors=(google, *_timm(*_TIMM[name])) if name in _TIMM else (google,),
    top1=top1,
    measured=measured,
    image_size=(px, px),
    short_side=short_side if px == 224 else px,
    patch=patch,
    # As wide as the tokens.
    representation=sizes(model)["hidden"] if recipe == _VIT else None,
  )


def _timm(tag: str, release: str) -> tuple[Mirror, Mirror]:
  """Returns the hub's file, and an older one that is named by its sha256."""
  return (
    Mirror(f"{_HUB}mixer_{tag}/resolve/main/model.safetensors"),
    Mirror(
      f"{_RELEASES}v0.1-vitjx/jx_mixer_{release}.pth",
      sha256=release.rpartition("-")[2],
    ),
  )


_MIXER_SIZES = (
  # name                    recipe      size          top1   its source
  ("imagenet1k/Mixer-B_16", _MIXER_1K, "228.47 MiB", 76.44, _TABLE_3 + "76.62"),
  ("imagenet1k/Mixer-L_16", _MIXER_1K, "794.29 MiB", 71.76, _TABLE_3 + "72.08"),
  ("imagenet21k/Mixer-B_16", _MIXER_21K, "289.61 MiB", None, "80.64" + _TUNED),
  ("imagenet21k/Mixer-L_16", _MIXER_21K, "875.78 MiB", None, "82.89" + _TUNED),
  ("sam/Mixer-B_16", _SAM, "228.47 MiB", 77.4, _BY_SAM),
  ("sam/Mixer-B_32", _SAM, "230.04 MiB", 72.4, _BY_SAM),
  ("gsam/Mixer-B_16", _GSAM, "228.47 MiB", 77.8, _BY_GSAM),
  ("gsam/Mixer-B_32", _GSAM, "230.04 MiB", 73.6, _BY_GSAM),
  ("gsam/Mixer-S_16", _GSAM, "70.71 MiB", 75.0, _BY_GSAM),
  ("gsam/Mixer-S_32", _GSAM, "72.91 MiB", 68.6, _BY_GSAM),
  ("gsam/Mixer-S_8", _GSAM, "78.79 MiB", 76.8, _BY_GSAM),
)
# Names on timm's hub and in its releases, which end in the file's sha256.
_TIMM = {
  "imagenet1k/Mixer-B_16": ("b16_224.goog_in21k_ft_in1k", "b16_224-76587d61"),
  "imagenet1k/Mixer-L_16": ("l16_224.goog_in21k_ft_in1k", "l16_224-92f9adc4"),
  "imagenet21k/Mixer-B_16": ("b16_224.goog_in21k", "b16_224_in21k-617b3de2"),
  "imagenet21k/Mixer-L_16": ("l16_224.goog_in21k", "l16_224_in21k-846aa33c"),
}
MIXERS = tuple(
  _entry(name, recipe, size=size, top1=top1, measured=measured)
  for name, recipe, size, top1, measured in _MIXER_SIZES
)

VITS = (
  *(
    _entry(f"imagenet21k/{model}", _VIT, size=size)
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
    _entry(
      f"imagenet21k+imagenet2012/{model}",
      _VIT_1K,
      px=px,
      size=size,
      top1=top1,
      measured=measured,
    )
    for model, px, size, top1, measured in (
      ("ViT-B_16-224", 224, "330.29 MiB", 81.78, "timm"),
      ("ViT-B_32", 384, "336.89 MiB", None, ""),
      ("ViT-B_16", 384, "331.40 MiB", 83.97, "ViT paper; timm measures 84.21"),
      ("ViT-B_8", 384, "334.78 MiB", None, ""),
      ("ViT-L_16-224", 224, "1.13 GiB", None, ""),
      ("ViT-L_32", 384, "1.14 GiB", 81.51, "timm"),
      ("ViT-L_16", 384, "1.14 GiB", 85.15, "ViT paper"),
    )
  ),
  # These files are named by their recipe.
  *(
    _entry(
      f"augreg/ViT-{model}-i21k",
      _AUGREG,
      size=size,
      file=f"augreg/{model}-i21k-300ep-lr_0.001-{how}",
    )
    for model, size, how in (
      ("B_32", "398 MiB", "aug_light1-wd_0.1-do_0.0-sd_0.0"),
      ("B_16", "391 MiB", "aug_medium1-wd_0.1-do_0.0-sd_0.0"),
      ("L_16", "1243 MiB", "aug_strong1-wd_0.1-do_0.0-sd_0.0"),
    )
  ),
  *(
    _entry(
      f"augreg/ViT-{model.removesuffix('-i1k')}-i1k",
      _AUGREG_21K_1K if "i21k" in model else _AUGREG_1K,
      top1=top1,
      measured="timm" if top1 else "",
      file=f"augreg/{model}-300ep-lr_0.001-{how}--imagenet2012-steps_20k"
      "-lr_0.01-res_224",
    )
    for model, top1, how in (
      ("B_16-i21k", 84.53, "aug_medium1-wd_0.1-do_0.0-sd_0.0"),
      ("L_16-i21k", 85.86, "aug_medium1-wd_0.1-do_0.1-sd_0.1"),
      ("B_16-i1k", 79.15, "aug_strong2-wd_0.1-do_0.1-sd_0.1"),
      ("L_16-i1k", None, "aug_medium1-wd_0.1-do_0.1-sd_0.1"),
    )
  ),
)

BITS = (
  *(
    _entry(f"bit/BiT-M-{size}", _BIT_M)
    for size in ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")
  ),
  *(
    _entry(
      f"bit/BiT-M-{size}-ILSVRC2012",
      _BIT_M_1K,
      top1=top1,
      measured="timm",
      px=px,
    )
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
    _entry(f"bit/BiT-S-{size}", _BIT_S)
    for size in ("R50x1", "R50x3", "R101x1", "R101x3", "R152x4")
  ),
  *(
    _entry(
      f"bit/BiT-R50x1-{px}",
      _DISTILLED,
      top1=top1,
      measured=_PATIENT,
      px=px,
      file=f"distill/R50x1_{px}",
    )
    for px, top1 in ((224, 82.8), (160, 80.5))
  ),
)


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
