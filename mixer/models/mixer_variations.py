# SPDX-License-Identifier: Apache-2.0
"""Variations of token mixing that did not help (paper, appendix A).

untied: one token-mixing MLP per channel. No gain.
group: the MLP takes G neighbouring channels at once, S * G numbers, and is
  shared over the C / G groups. Less than 1 to 2 % in 5-shot accuracy.
views: before grouping, G learned linear functions of the channels make G views
  of C / G features of every token; the MLP sees the views of a feature. 3 to
  4 % for S/32, nothing for larger models.
pyramid: the MLP of some blocks maps S tokens to fewer, S'. Much faster and
  slightly worse on JFT-300M, worse on ImageNet and ImageNet-21k.

The paper gives no more detail. Decided here: D_S does not change; with fewer
tokens, the skip connection averages the square of neighbours on the grid that
one token replaces.

Letters in shape comments: n examples, s tokens, c channels, g channels of a
group.
"""

import math
from collections.abc import Sequence

import jax
from flax import linen as nn

from mixer.models.layers import dense, share_over
from mixer.models.mixer import MixerBlock, MlpBlock, MlpMixer, TokenMixing

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

  untied, group, views: as in the model.
  divide: factor by which the sides of the grid of tokens shrink.
  """

  untied: bool = False
  group: int = 1
  views: bool = False
  divide: int = 1

  def mix_tokens(self, x, keys):
    x, y = self.norm(x, branch=0)
    if self.views:
      y = dense(x.shape[-1], self.dtype, use_bias=False, name="views")(y)
    y = join_neighbours(y, self.group)  # n (g s) c/g
    mixing = (UntiedTokenMixing if self.untied else TokenMixing)(
      self.tokens_mlp,
      dtype=self.dtype,
      gelu=self.gelu,
      out=y.shape[1] // self.divide**2,
      name="token_mixing",
    )
    mask = self.hidden_mask(keys, (self.tokens_mlp, y.shape[-1]), branch=0)
    y = part_neighbours(mixing(y, mask), self.group)  # n s' c
    return self.add(pool(x, self.divide), y, keys, branch=0)


def join_neighbours(x: jax.Array, group: int) -> jax.Array:
  """Stacks neighbouring channels along the token axis: n s c to n (g s) c/g."""
  n, s, c = x.shape
  x = x.reshape(n, s, c // group, group).transpose(0, 3, 1, 2)  # n g s c/g
  return x.reshape(n, group * s, c // group)


def part_neighbours(x: jax.Array, group: int) -> jax.Array:
  """Inverts `join_neighbours`: n (g s) c/g to n s c."""
  n, rows, columns = x.shape
  x = x.reshape(n, group, rows // group, columns).transpose(0, 2, 3, 1)
  return x.reshape(n, rows // group, columns * group)


def pool(x: jax.Array, divide: int) -> jax.Array:
  """Averages squares of a square grid of tokens: n s c to n s/divide^2 c."""
  n, s, c = x.shape
  side = math.isqrt(s) // divide
  x = x.reshape(n, side, divide, side, divide, c)  # n h dh w dw c
  return x.mean(axis=(2, 4)).reshape(n, side * side, c)


class MixerVariation(MlpMixer):
  """A Mixer with another token mixing. Options, besides those of `MlpMixer`:

  untied: one MLP per channel, or per group of channels.
  group: channels that are mixed together, G.
  views: mixes G learned views of a token instead of its G neighbours.
  pyramid: for each block, the factor by which it divides the sides of the grid
    of tokens, which must be square; (1, 1, 2, 1) leaves S / 4 tokens after the
    third block. Empty: all blocks keep their tokens.

  Without any of these it is a Mixer. Its parameters are named VariedBlock_0 and
  so on, so that they cannot be confused with a Mixer's.
  """

  untied: bool = False
  group: int = 1
  views: bool = False
  pyramid: Sequence[int] = ()

  block_name = "VariedBlock"
  block_sizes = (*MlpMixer.block_sizes, "untied", "group", "views")

  @nn.nowrap
  def block_class(self):
    return VariedBlock

  @nn.nowrap
  def make_block(self, *, index, **fields):
    divide = self.pyramid[index] if self.pyramid else 1
    return super().make_block(divide=divide, index=index, **fields)

  def trained_tokens(self, params):
    return super().trained_tokens(params) // self.group

  def check(self, images):
    if self.group < 1 or self.hidden % self.group:
      raise ValueError(
        f"group={self.group} does not divide the {self.hidden} channels."
      )
    super().check(images)
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
