# SPDX-License-Identifier: Apache-2.0
"""Every published checkpoint by name, and what looks like one and is not.

Names and sizes of Google's files are those of the listings and tables that the
authors' repositories show (google-research/vision_transformer,
google-research/big_transfer); where these say no size, none is checked. The
paper's own ViT and BiT of tables 2 and 3 are nearest to augreg/ViT-*-i21k-i1k
and -i1k, and to bit/BiT-M-R152x4-ILSVRC2012; those trained on JFT are nowhere.
"""

import dataclasses
import difflib
import re

from mixer.errors import UserError, format_list
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

  url: its ending tells the layout.
  size: as a listing shows it, to the last digit shown; None if not known.
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

  name: as `config.init` takes it.
  model: name for `mixer.models.create`.
  classes: of the head, "imagenet2012" or "imagenet21k".
  recipe: data and training, in words.
  mirrors: the same weights, in the order in which they are tried.
  top1: accuracy on ImageNet's 50,000 validation images as the file is, in
    percent; None if nobody says, or the head is of other classes.
  measured: who measured it, or what stands in for it.
  image_size: height and width that it was trained for last, or measured at.
  short_side: of images before the central crop of that size, when measured.
  patch: side of a patch, where it is not the one that `model` stands for.
  representation: of a ViT, units of the hidden layer under the head.
  authors, licence: as far as their repository says; it names no licence for
    the weights alone.
  gelu: the form that it was trained with, in whichever layout it comes.
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
  authors: str = "Google Research"
  licence: str = "Apache-2.0, of the authors' repository"
  gelu: str = "tanh"

  @property
  def num_classes(self) -> int:
    return HEADS[self.classes]

  @property
  def fields(self) -> dict[str, int]:
    """For `create`, beside `model`."""
    others = {"patch": self.patch, "representation": self.representation}
    given = {key: value for key, value in others.items() if value is not None}
    return {"num_classes": self.num_classes, **given}

  @property
  def preprocessing(self) -> str:
    """Pixel range, resize and crop behind the published result, in words."""
    return (
      f"pixels in [-1, 1], short side {self.short_side}, central "
      f"{self.image_size[0]}"
    )


def google(path: str, size: str | None = None) -> Mirror:
  return Mirror(f"{_GOOGLE}{path}.npz".replace("+", "%2B"), size)


def timm(tag: str, release: str) -> tuple[Mirror, Mirror]:
  """The hub's file of a tag, and an older one that is named by its sha256."""
  sha256 = release.rpartition("-")[2].removesuffix(".pth")
  return (
    Mirror(f"{_HUB}{tag}/resolve/main/model.safetensors"),
    Mirror(f"{_RELEASES}v0.1-vitjx/{release}", sha256=sha256),
  )


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

REGISTRY = {each.name: each for each in (*MIXERS, *VITS, *BITS)}


@dataclasses.dataclass(frozen=True)
class Unpublished:
  """Weights that people look for, and that nobody has published.

  pattern: of the names under which they look.
  what: they are.
  instead: the alternative.
  """

  pattern: str
  what: str
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
    "ImageNet-21k has Mixer-B_16 and -L_16 alone; smaller ones are in gsam/.",
  ),
  Unpublished(
    r"sam/Mixer-L|(^|[^g])sam/Mixer-S|Mixer-._8",
    "Mixer-L with SAM or GSAM, Mixer-S with SAM, Mixer-B/8",
    "gsam/ has Mixer-S_8, -S_16, -S_32, -B_16 and -B_32.",
  ),
  Unpublished(
    r"BiT.*(R200x3|R152x1|R50x2)",
    "BiT of these sizes, on whatever data",
    "bit/ has R50x1, R50x3, R101x1, R101x3, R152x2 and R152x4.",
  ),
  Unpublished(
    r"^imagenet(1k|2012)/ViT",
    "ViT of the ViT paper trained on ImageNet-1k alone",
    "augreg/ViT-B_16-i1k and augreg/ViT-L_16-i1k are later, better ones.",
  ),
)

WARNINGS = (
  "timm's tag goog_in21k_ft_in1k of Mixer-B/16 and -L/16 is wrong: these are "
  "imagenet1k/Mixer-B_16 and -L_16, trained on ImageNet-1k alone.",
  "timm's miil_in21k and miil_in21k_ft_in1k are other people's weights: exact "
  "GELU, 11,221 classes for miil_in21k, and pixels in [0, 1], which are mended "
  "here while the file's name has miil in it.",
  "timm computes the exact GELU also for Google's weights, which were trained "
  "with the tanh form; fetched or named here, they are computed as trained.",
)


def find(name: str) -> Published:
  """Returns the published weights of a name.

  Raises:
    UserError: nothing was; with the nearest names, or why there is none.
  """
  if name in REGISTRY:
    return REGISTRY[name]
  for never in UNPUBLISHED:
    if re.search(never.pattern, name, re.IGNORECASE):
      raise UserError(
        f"{name} was never published, as none of these were: {never.what}. "
        f"{never.instead}"
      )
  near = difflib.get_close_matches(name, REGISTRY, n=4, cutoff=0.4)
  raise UserError(
    f"There are no weights at {name}: give a file, the folder of a run that is "
    "done, or a published name (python -m mixer.weights list)."
    f"{f' Nearest: {format_list(near)}.' if near else ''}"
  )
