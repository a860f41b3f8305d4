# SPDX-License-Identifier: Apache-2.0
"""Sizes of a ViT or a BiT, inferred from their parameters."""

import dataclasses
import re

from flax.traverse_util import flatten_dict

from mixer.models import bit, vit
from mixer.weights.sizes import OfTokens


@dataclasses.dataclass(frozen=True)
class VitSizes(OfTokens):
  """A ViT's sizes, as `mixer.models.create` names them, and its tokens.

  tokens: without the class token.
  num_classes: None without a head.
  """

  patch: int
  hidden: int
  blocks: int
  mlp: int
  heads: int
  pool: str
  representation: int | None
  tokens: int
  image_channels: int
  num_classes: int | None

  family = "ViT"

  @property
  def variant(self) -> str | None:
    """Its name in the ViT paper; /P for a patch that is not there."""
    for name, (_, *of_variant) in vit.VARIANTS.items():
      if of_variant == [self.hidden, self.blocks, self.mlp, self.heads]:
        return f"{name.partition('/')[0]}/{self.patch}"
    return None

  @property
  def name(self) -> str:
    """ViT-B/16, or its sizes if the ViT paper has no such ViT."""
    return self.variant or (
      f"a ViT of {self.blocks} blocks, {self.hidden} channels, {self.heads} "
      f"heads and {self.mlp:,} hidden units"
    )

  @property
  def details(self) -> str:
    """Describes the sizes besides the name and the head."""
    layer = ""
    if self.representation:
      layer = f", {self.representation:,} hidden units under the head"
    token = "a class token" if self.pool == "token" else "no class token"
    return f"{self.counted}, {token}{layer}"


def vit_sizes_of(params: dict) -> VitSizes | None:
  """Reads the sizes off the shapes; None if they are not a ViT's.

  Args:
    params: nested dict of arrays, or of anything that has a shape.
  """
  shapes = {k: v.shape for k, v in flatten_dict(params, sep="/").items()}
  block = "Transformer/encoderblock_0"
  try:
    patch, _, image_channels, hidden = shapes["embedding/kernel"]
    _, places, _ = shapes["Transformer/posembed_input/pos_embedding"]
    _, mlp = shapes[f"{block}/MlpBlock_0/Dense_0/kernel"]
    _, heads, _ = shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"]
  except (KeyError, ValueError):
    return None
  has_token = "cls" in shapes
  return VitSizes(
    patch=patch,
    hidden=hidden,
    blocks=sum(
      name.startswith("encoderblock_") for name in params["Transformer"]
    ),
    mlp=mlp,
    heads=heads,
    pool="token" if has_token else "mean",
    representation=_width(shapes, "pre_logits"),
    tokens=places - has_token,
    image_channels=image_channels,
    num_classes=_width(shapes, "head"),
  )


@dataclasses.dataclass(frozen=True)
class BitSizes:
  """A BiT's sizes, as `mixer.models.create` names them.

  num_classes: None without a head.
  """

  width: float
  units: tuple[int, ...]
  image_channels: int
  num_classes: int | None

  family = "BiT"
  takes_any_size = True
  image_size = None

  @property
  def fields(self) -> dict[str, object]:
    """For `mixer.models.create`."""
    return dataclasses.asdict(self)

  @property
  def variant(self) -> str | None:
    """Its name in the BiT paper."""
    for name, sizes in bit.VARIANTS.items():
      if sizes == (self.width, self.units):
        return name
    return None

  @property
  def name(self) -> str:
    """BiT-R50x1, or its sizes if the BiT paper has no such ResNet."""
    return self.variant or (
      f"a BiT of width {self.width:g} with {self.units} units"
    )

  @property
  def details(self) -> str:
    """Describes the sizes besides the name and the head."""
    return "images of any size"


def bit_sizes_of(params: dict) -> BitSizes | None:
  """Reads the sizes off the shapes; None if they are not a BiT's.

  Args:
    params: nested dict of arrays, or of anything that has a shape.
  """
  shapes = {k: v.shape for k, v in flatten_dict(params, sep="/").items()}
  units = {
    match[1]: len(stage)
    for name, stage in params.items()
    if (match := re.fullmatch(r"block(\d)", name))
  }
  try:
    _, _, image_channels, channels = shapes["root_block/conv_root/kernel"]
    units = tuple(units[str(i + 1)] for i in range(len(units)))
  except (KeyError, ValueError):
    return None
  return BitSizes(
    width=channels / 64,
    units=units,
    image_channels=image_channels,
    num_classes=_width(shapes, "head"),
  )


def _width(shapes: dict[str, tuple[int, ...]], layer: str) -> int | None:
  """Returns the width of a dense layer; None if it is missing."""
  shape = shapes.get(f"{layer}/bias")
  return shape if shape is None else shape[0]
