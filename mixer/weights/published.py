# SPDX-License-Identifier: Apache-2.0
"""Published checkpoint: its model, its results and its mirrors.

Names and sizes of Google's files are those of the listings and tables that the
authors' repositories show (google-research/vision_transformer,
google-research/big_transfer); where these say no size, none is checked.
"""

import dataclasses

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
