# SPDX-License-Identifier: Apache-2.0
"""Variations of the token mixing that did not help (paper, appendix A).

untied: each channel has a token-mixing MLP of its own. No gain.
group: the MLP takes G neighbouring channels at once, S * G numbers, and is
  shared over the C / G groups. Less than 1 to 2 % in 5-shot accuracy.
views: before grouping, G learned linear functions of the channels make G views
  of C / G features of every token; the MLP sees the views of a feature. 3 to
  4 % for S/32, nothing for larger models.
pyramid: the MLP of some blocks maps S tokens to fewer, S'. Much faster and
  little worse on JFT-300M, worse on ImageNet and ImageNet-21k.

The paper says no more than that. Decided here: the hidden units D_S stay as
they are; with fewer tokens, the skip connection takes the mean of those
neighbours on the grid that one token replaces.

Letters in shape comments: n examples, s tokens, c channels, g channels of a
group.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from mixer.models.mixer import (
  MixerBlock,
  MlpBlock,
  MlpMixer,
  TokenMixing,
  share_over,
)
from mixer.models.residual import cast_products

UntiedTokenMixing = share_over(
  nn.vmap(
    MlpBlock,
    in_axes=1,
    out_axes=1,
    variable_axes={"params": 0},
    split_rngs={"params": True},
  ),
  axis=0,
)


class VariedBlock(MixerBlock):
  """A Mixer block with another token mixing.

  divide: by how much the sides of the grid of tokens become shorter.
  """

  untied: bool = False
  group: int = 1
  views: bool = False
  divide: int = 1

  def _mix_tokens(self, x, keys):
    x = x.astype(jnp.float32)
    y = nn.LayerNorm(dtype=self.dtype)(x)
    if self.views:
      y = nn.Dense(
        x.shape[-1],
        use_bias=False,
        dtype=self.dtype,
        promote_dtype=cast_products,
        name="views",
      )(y)
    y = join_neighbours(y, self.group)  # n (g s) c/g
    mixing = (UntiedTokenMixing if self.untied else TokenMixing)(
      self.tokens_mlp,
      dtype=self.dtype,
      gelu=self.gelu,
      out=y.shape[1] // self.divide**2,
      name="token_mixing",
    )
    y = mixing(y, self._dropout(keys, 0, (self.tokens_mlp, y.shape[-1])))
    y = part_neighbours(y, self.group)  # n s' c
    return self._add(pool(x, self.divide), y, keys, 1)


def join_neighbours(x: jax.Array, group: int) -> jax.Array:
  """Puts columns of neighbouring channels under one another.

  Maps n s c to n (g s) c/g.
  """
  n, s, c = x.shape
  x = x.reshape(n, s, c // group, group).transpose(0, 3, 1, 2)  # n g s c/g
  return x.reshape(n, group * s, c // group)


def part_neighbours(x: jax.Array, group: int) -> jax.Array:
  """Undoes `join_neighbours`: maps n (g s) c/g to n s c."""
  n, rows, columns = x.shape
  x = x.reshape(n, group, rows // group, columns).transpose(0, 2, 3, 1)
  return x.reshape(n, rows // group, columns * group)


def pool(x: jax.Array, divide: int) -> jax.Array:
  """Means over squares of tokens, on a square grid: n s c to n s/divide^2 c."""
  n, s, c = x.shape
  side = math.isqrt(s) // divide
  x = x.reshape(n, side, divide, side, divide, c)  # n h dh w dw c
  return x.mean(axis=(2, 4)).reshape(n, side * side, c)


class MixerVariation(MlpMixer):
  """A Mixer whose token mixing is varied. Attributes beside the Mixer's:

  untied: whether each channel, or group of them, has an MLP of its own.
  group: channels that are mixed together, G.
  views: whether G learned views of a token take the place of its G neighbours.
  pyramid: for each block, by how much it divides the sides of the grid of
    tokens, which must be square; (1, 1, 2, 1) leaves S / 4 tokens after the
    third block. Empty: all blocks keep their tokens.

  Without any of these it is a Mixer, its parameters named VariedBlock_0 and so
  on in place of MixerBlock_0, so that neither is taken for the other.
  """

  untied: bool = False
  group: int = 1
  views: bool = False
  pyramid: Sequence[int] = ()

  def _block_kind(self):
    return VariedBlock

  def _block(self, *, index, **fields):
    return super()._block(
      untied=self.untied,
      group=self.group,
      views=self.views,
      divide=self.pyramid[index] if self.pyramid else 1,
      index=index,
      **fields,
    )

  def _tokens_made_for(self, params):
    kernel = params["VariedBlock_0"]["token_mixing"]["Dense_0"]["kernel"]
    return kernel.shape[-2] // self.group

  def _kernels(self):
    return "plain"

  def _check(self, images):
    if self.kernels == "fused":
      raise ValueError(
        "kernels='fused' is for Mixer, and not for MixerVariation: take "
        "kernels='plain'."
      )
    if self.group < 1 or self.hidden % self.group:
      raise ValueError(
        f"group={self.group} does not divide the {self.hidden} channels."
      )
    super()._check(images)
    if not self.pyramid:
      return
    if self.scan:
      raise ValueError(
        "scan=True loops over blocks that are alike, which a pyramid's are "
        "not: take scan=False."
      )
    if len(self.pyramid) != self.blocks or min(self.pyramid) < 1:
      raise ValueError(
        f"pyramid={tuple(self.pyramid)} needs one whole number for each of the "
        f"{self.blocks} blocks: 1 keeps the tokens, 2 leaves a quarter."
      )
    height, width = (size // self.patch for size in images.shape[1:3])
    if height != width or height % math.prod(self.pyramid):
      raise ValueError(
        f"pyramid={tuple(self.pyramid)} divides the sides of the grid by "
        f"{math.prod(self.pyramid)}, and images of {images.shape[1]} x "
        f"{images.shape[2]} px make {height} x {width} tokens: take square "
        "images whose grid it divides."
      )
