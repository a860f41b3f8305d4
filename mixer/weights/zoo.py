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
from collections.abc import Iterator

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


# Sources of accuracies.
_TABLE_3 = "paper, table 3; timm measures "
_TUNED = " once fine-tuned (table 3)"
_BY_SAM = "GSAM paper, quoting the SAM paper"
_BY_GSAM = "GSAM paper, table 1"
_BY_VIT = "ViT paper; timm measures 84.21"
_PATIENT = "its paper, arXiv 2106.05237"

_PAPER = "300 epochs, RandAugment, mixup, stochastic depth 0.1 (table 4)"
_CROP = "300 epochs, inception crop and flip only"
_STEINER = "300 epochs, 'How to train your ViT'"  # arXiv 2106.10270
_HIDDEN_LAYER = (
  "ImageNet-21k, ViT paper; a hidden layer, pre_logits, under the head"
)

# Data and training in words -> the classes, and for each file its name, the
# side of its images in pixels, its size at Google, and top-1 with its source.
_FILES = {
  f"ImageNet-1k from scratch: {_PAPER}": (
    "imagenet2012",
    ("imagenet1k/Mixer-B_16", 224, "228.47 MiB", 76.44, _TABLE_3 + "76.62"),
    ("imagenet1k/Mixer-L_16", 224, "794.29 MiB", 71.76, _TABLE_3 + "72.08"),
  ),
  f"ImageNet-21k: {_PAPER}": (
    "imagenet21k",
    ("imagenet21k/Mixer-B_16", 224, "289.61 MiB", None, "80.64" + _TUNED),
    ("imagenet21k/Mixer-L_16", 224, "875.78 MiB", None, "82.89" + _TUNED),
  ),
  f"ImageNet-1k from scratch with SAM: {_CROP}": (
    "imagenet2012",
    ("sam/Mixer-B_16", 224, "228.47 MiB", 77.4, _BY_SAM),
    ("sam/Mixer-B_32", 224, "230.04 MiB", 72.4, _BY_SAM),
  ),
  f"ImageNet-1k from scratch with GSAM: {_CROP}": (
    "imagenet2012",
    ("gsam/Mixer-B_16", 224, "228.47 MiB", 77.8, _BY_GSAM),
    ("gsam/Mixer-B_32", 224, "230.04 MiB", 73.6, _BY_GSAM),
    ("gsam/Mixer-S_16", 224, "70.71 MiB", 75.0, _BY_GSAM),
    ("gsam/Mixer-S_32", 224, "72.91 MiB", 68.6, _BY_GSAM),
    ("gsam/Mixer-S_8", 224, "78.79 MiB", 76.8, _BY_GSAM),
  ),
  _HIDDEN_LAYER: (
    "imagenet21k",
    ("imagenet21k/ViT-B_32", 224, "400.01 MiB", None, ""),
    ("imagenet21k/ViT-B_16", 224, "393.69 MiB", None, ""),
    ("imagenet21k/ViT-B_8", 224, "393.72 MiB", None, ""),
    ("imagenet21k/ViT-L_32", 224, "1.23 GiB", None, ""),
    ("imagenet21k/ViT-L_16", 224, "1.22 GiB", None, ""),
    ("imagenet21k/ViT-H_14", 224, "2.46 GiB", None, ""),
  ),
  "ImageNet-21k, then ImageNet-1k, ViT paper": (
    "imagenet2012",
    ("imagenet21k+imagenet2012/ViT-B_16-224", 224, "330.29 MiB", 81.78, "timm"),
    ("imagenet21k+imagenet2012/ViT-B_32", 384, "336.89 MiB", None, ""),
    ("imagenet21k+imagenet2012/ViT-B_16", 384, "331.40 MiB", 83.97, _BY_VIT),
    ("imagenet21k+imagenet2012/ViT-B_8", 384, "334.78 MiB", None, ""),
    ("imagenet21k+imagenet2012/ViT-L_16-224", 224, "1.13 GiB", None, ""),
    ("imagenet21k+imagenet2012/ViT-L_32", 384, "1.14 GiB", 81.51, "timm"),
    ("imagenet21k+imagenet2012/ViT-L_16", 384, "1.14 GiB", 85.15, "ViT paper"),
  ),
  f"ImageNet-21k, {_STEINER}": (
    "imagenet21k",
    ("augreg/ViT-B_32-i21k", 224, "398 MiB", None, ""),
    ("augreg/ViT-B_16-i21k", 224, "391 MiB", None, ""),
    ("augreg/ViT-L_16-i21k", 224, "1243 MiB", None, ""),
  ),
  f"ImageNet-21k, {_STEINER}; then ImageNet-1k": (
    "imagenet2012",
    ("augreg/ViT-B_16-i21k-i1k", 224, None, 84.53, "timm"),
    ("augreg/ViT-L_16-i21k-i1k", 224, None, 85.86, "timm"),
  ),
  f"ImageNet-1k only, {_STEINER}": (
    "imagenet2012",
    ("augreg/ViT-B_16-i1k", 224, None, 79.15, "timm"),
    ("augreg/ViT-L_16-i1k", 224, None, None, ""),
  ),
  "ImageNet-21k, BiT paper": (
    "imagenet21k",
    ("bit/BiT-M-R50x1", 224, None, None, ""),
    ("bit/BiT-M-R50x3", 224, None, None, ""),
    ("bit/BiT-M-R101x1", 224, None, None, ""),
    ("bit/BiT-M-R101x3", 224, None, None, ""),
    ("bit/BiT-M-R152x2", 224, None, None, ""),
    ("bit/BiT-M-R152x4", 224, None, None, ""),
  ),
  "ImageNet-21k, then ImageNet-1k, BiT paper": (
    "imagenet2012",
    ("bit/BiT-M-R50x1-ILSVRC2012", 448, None, 80.39, "timm"),
    ("bit/BiT-M-R50x3-ILSVRC2012", 448, None, 83.98, "timm"),
    ("bit/BiT-M-R101x1-ILSVRC2012", 448, None, 82.33, "timm"),
    ("bit/BiT-M-R101x3-ILSVRC2012", 448, None, 84.43, "timm"),
    ("bit/BiT-M-R152x2-ILSVRC2012", 448, None, 84.47, "timm"),
    ("bit/BiT-M-R152x4-ILSVRC2012", 480, None, 84.94, "timm"),
  ),
  "ImageNet-1k only, BiT paper": (
    "imagenet2012",
    ("bit/BiT-S-R50x1", 224, None, None, ""),
    ("bit/BiT-S-R50x3", 224, None, None, ""),
    ("bit/BiT-S-R101x1", 224, None, None, ""),
    ("bit/BiT-S-R101x3", 224, None, None, ""),
    ("bit/BiT-S-R152x4", 224, None, None, ""),
  ),
  "ImageNet-1k, distilled from BiT-M-R152x2": (
    "imagenet2012",
    ("bit/BiT-R50x1-224", 224, None, 82.8, _PATIENT),
    ("bit/BiT-R50x1-160", 160, None, 80.5, _PATIENT),
  ),
}
# Regularisation, by which Google names the files of "How to train your ViT".
_AUGREG = {
  "augreg/ViT-B_32-i21k": "aug_light1-wd_0.1-do_0.0-sd_0.0",
  "augreg/ViT-B_16-i21k": "aug_medium1-wd_0.1-do_0.0-sd_0.0",
  "augreg/ViT-L_16-i21k": "aug_strong1-wd_0.1-do_0.0-sd_0.0",
  "augreg/ViT-B_16-i21k-i1k": "aug_medium1-wd_0.1-do_0.0-sd_0.0",
  "augreg/ViT-L_16-i21k-i1k": "aug_medium1-wd_0.1-do_0.1-sd_0.1",
  "augreg/ViT-B_16-i1k": "aug_strong2-wd_0.1-do_0.1-sd_0.1",
  "augreg/ViT-L_16-i1k": "aug_medium1-wd_0.1-do_0.1-sd_0.1",
}
# Names on timm's hub and in its releases, which end in the file's sha256.
_TIMM = {
  "imagenet1k/Mixer-B_16": ("b16_224.goog_in21k_ft_in1k", "b16_224-76587d61"),
  "imagenet1k/Mixer-L_16": ("l16_224.goog_in21k_ft_in1k", "l16_224-92f9adc4"),
  "imagenet21k/Mixer-B_16": ("b16_224.goog_in21k", "b16_224_in21k-617b3de2"),
  "imagenet21k/Mixer-L_16": ("l16_224.goog_in21k", "l16_224_in21k-846aa33c"),
}


def _mirrors(name: str, size: str | None) -> Iterator[Mirror]:
  """Yields Google's file and those of timm, the older one by its sha256."""
  path = name.removeprefix("bit/")
  if name in _AUGREG:
    start = name.replace("ViT-", "").replace("i21k-i1k", "i21k")
    path = f"{start}-300ep-lr_0.001-{_AUGREG[name]}"
    if name.endswith("i1k"):
      path += "--imagenet2012-steps_20k-lr_0.01-res_224"
  elif name.startswith("bit/BiT-R50x1"):
    path = f"distill/R50x1_{name.rpartition('-')[2]}"
  family = re.search("Mixer|ViT|BiT", name)[0].lower()
  path = f"{family}_models/{path}.npz".replace("+", "%2B")
  yield Mirror(f"{_GOOGLE}{path}", size)
  if name in _TIMM:
    tag, release = _TIMM[name]
    yield Mirror(f"{_HUB}mixer_{tag}/resolve/main/model.safetensors")
    yield Mirror(
      f"{_RELEASES}v0.1-vitjx/jx_mixer_{release}.pth",
      sha256=release.rpartition("-")[2],
    )


def _entry(recipe, classes, name, px, size, top1, measured) -> Published:
  """Makes an entry from a row of `_FILES`.

  The name tells the model: ViT-B/16 for augreg/ViT-B_16-i1k, BiT-R50x1 for
  bit/BiT-M-R50x1. The papers' tables have no variant with patches of 8 px.
  """
  pattern = r"(Mixer|ViT|BiT)\S*?-([A-Z]_?\d+(?:x\d)?)"
  family, variant = re.search(pattern, name).groups()
  model = f"{family}-{variant.replace('_8', '_16').replace('_', '/')}"
  short_side = 248 if family == "ViT" else 256
  return Published(
    name=name,
    model=model,
    classes=classes,
    recipe=recipe,
    mirrors=tuple(_mirrors(name, size)),
    top1=top1,
    measured=measured,
    image_size=(px, px),
    short_side=short_side if px == 224 else px,
    patch=8 if variant.endswith("_8") else None,
    # As wide as the tokens.
    representation=sizes(model)["hidden"] if recipe == _HIDDEN_LAYER else None,
  )


REGISTRY = {
  row[0]: _entry(recipe, classes, *row)
  for recipe, (classes, *rows) in _FILES.items()
  for row in rows
}


# Weights that people look for, and that nobody has published: a pattern of
# their names, their description, and a sentence about the alternative.
UNPUBLISHED = (
  (
    r"jft|Mixer-H|BiT-L",
    "anything trained on JFT-300M or JFT-3B: every Mixer-H/14, the Mixers of "
    "86.78 and 87.94 % in tables 2 and 3, BiT-L, ViT on JFT",
    "The best Mixer there is to fine-tune is imagenet21k/Mixer-L_16.",
  ),
  (
    r"imagenet21k\+.*/Mixer|Mixer.*(ft|21k.*1k|2012|448|384)",
    "Mixers of ImageNet-21k fine-tuned on ImageNet-1k, at 224 px (80.64 and "
    "82.89 %) or 448 px (84.15 %)",
    "Fine-tune imagenet21k/Mixer-B_16 or -L_16 yourself: "
    "configs/finetune.py:dataset=imagenet2012.",
  ),
  (
    r"imagenet1k/Mixer-(S|._32)",
    "Mixer-S and Mixer-*/32 trained on ImageNet-1k by the paper's recipe",
    "gsam/ has Mixer-S_8, -S_16, -S_32 and -B_32, trained on ImageNet-1k.",
  ),
  (
    r"imagenet21k/Mixer-(S|._32)",
    "Mixer-S and Mixer-*/32 trained on ImageNet-21k",
    "ImageNet-21k has only Mixer-B_16 and -L_16; smaller ones are in gsam/.",
  ),
  (
    r"sam/Mixer-L|(^|[^g])sam/Mixer-S|Mixer-._8",
    "Mixer-L with SAM or GSAM, Mixer-S with SAM, Mixer-B/8",
    "gsam/ has Mixer-S_8, -S_16, -S_32, -B_16 and -B_32.",
  ),
  (
    r"BiT.*(R200x3|R152x1|R50x2)",
    "BiT-R200x3, BiT-R152x1 and BiT-R50x2, on any data",
    "bit/ has R50x1, R50x3, R101x1, R101x3, R152x2 and R152x4.",
  ),
  (
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
  for pattern, description, instead in UNPUBLISHED:
    if re.search(pattern, name, re.IGNORECASE):
      raise UserError(
        f"{name} was never published; neither were these: {description}. "
        f"{instead}"
      )
  near = [known for known in REGISTRY if known.endswith(f"/{name}")]
  near = near or nearest(name, REGISTRY, most=4, cutoff=0.4)
  raise UserError(
    f"There are no weights at {name}: give a file, the folder of a finished "
    "run, or a published name (python -m mixer weights list)."
    f"{f' Nearest: {format_list(near)}.' if near else ''}"
  )
