# SPDX-License-Identifier: Apache-2.0
"""Sizes of a Mixer, inferred from its parameters."""

import dataclasses
import math

from flax.traverse_util import flatten_dict

from mixer.models import mixer


class OfTokens:
  """Base of the sizes of models with tokens of patches."""

  takes_any_size = False

  @property
  def fields(self) -> dict[str, object]:
    """For `mixer.models.create`."""
    fields = dataclasses.asdict(self)
    del fields["tokens"]
    return fields

  @property
  def image_size(self) -> tuple[int, int] | None:
    """Height and width of the square image that makes so many tokens."""
    side = math.isqrt(self.tokens)
    return (side * self.patch,) * 2 if side * side == self.tokens else None

  @property
  def counted(self) -> str:
    """The number of tokens in words, and the image that makes so many."""
    size = self.image_size
    pixels = f" ({size[0]} x {size[1]} px)" if size else ""
    return f"{self.tokens:,} tokens{pixels}"


@dataclasses.dataclass(frozen=True)
class Sizes(OfTokens):
  """A Mixer's sizes, as `mixer.models.create` names them, and its tokens.

  num_classes: None without a head.
  """

  patch: int
  hidden: int
  blocks: int
  tokens_mlp: int
  channels_mlp: int
  tokens: int
  image_channels: int
  num_classes: int | None

  family = "Mixer"

  @property
  def factor(self) -> int | None:
    """Growth factor from the paper's variant (1: not grown).

    None if it is none.
    """
    for _, *of_variant in mixer.VARIANTS.values():
      factor = self._growth_of(of_variant)
      if factor:
        return factor
    return None

  @property
  def variant(self) -> str | None:
    """Its name in table 1 of the paper; /P for a patch that is not there."""
    for name, (_, *of_variant) in mixer.VARIANTS.items():
      if self._growth_of(of_variant):
        return f"{name.partition('/')[0]}/{self.patch}"
    return None

  @property
  def name(self) -> str:
    """Mixer-B/16, or its sizes if the paper has no such Mixer."""
    return self.variant or (
      f"a Mixer of {self.blocks} blocks, {self.hidden} channels and "
      f"{self.channels_mlp:,} hidden units"
    )

  @property
  def details(self) -> str:
    """Describes the sizes besides the name and the head."""
    return f"{self.counted}, tokens_mlp {self.tokens_mlp:,}"

  def _growth_of(self, variant: list[int]) -> int | None:
    hidden, blocks, tokens_mlp, channels_mlp = variant
    if (self.hidden, self.blocks, self.channels_mlp) != (
      hidden,
      blocks,
      channels_mlp,
    ):
      return None
    factor = math.isqrt(self.tokens_mlp // tokens_mlp)
    return factor if factor * factor * tokens_mlp == self.tokens_mlp else None


def sizes_of(params: dict) -> Sizes | None:
  """Reads the sizes off the shapes; None if they are not a Mixer's.

  Args:
    params: nested dict of arrays, or of anything that has a shape.
  """
  shapes = {k: v.shape for k, v in flatten_dict(params, sep="/").items()}
  try:
    patch, _, image_channels, hidden = shapes["stem/kernel"]
    tokens, tokens_mlp = shapes["MixerBlock_0/token_mixing/Dense_0/kernel"]
    _, channels_mlp = shapes["MixerBlock_0/channel_mixing/Dense_0/kernel"]
    head = shapes.get("head/kernel")
    num_classes = head if head is None else head[1]
  except (KeyError, ValueError, IndexError):
    return None
  return Sizes(
    patch=patch,
    hidden=hidden,
    blocks=sum(name.startswith("MixerBlock_") for name in params),
    tokens_mlp=tokens_mlp,
    channels_mlp=channels_mlp,
    tokens=tokens,
    image_channels=image_channels,
    num_classes=num_classes,
  )
