# SPDX-License-Identifier: Apache-2.0
"""MLP-Mixer, figure 1 of the paper (arXiv 2105.01601).

Letters in shape comments: n examples, s tokens, c channels. Another token
mixing is written like those in mixer_variations.py.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mixer.models.base import TokenModel
from mixer.models.kernels import select_block
from mixer.models.layers import (
  HIDDEN,
  ResidualBlock,
  apply_mask,
  dense,
  gelu,
  share_over,
)

# Table 1 of the paper.
COLUMNS = ("patch", "hidden", "blocks", "tokens_mlp", "channels_mlp")
VARIANTS = {
  # name        patch   hidden C  blocks   D_S       D_C
  "Mixer-S/32": (32,       512,        8,      256,      2048),
  "Mixer-S/16": (16,       512,        8,      256,      2048),
  "Mixer-B/32": (32,       768,       12,      384,      3072),
  "Mixer-B/16": (16,       768,       12,      384,      3072),
  "Mixer-L/32": (32,      1024,       24,      512,      4096),
  "Mixer-L/16": (16,      1024,       24,      512,      4096),
  "Mixer-H/14": (14,      1280,       32,      640,      5120),
}  # fmt: skip


class MlpBlock(nn.Module):
  """Dense, GELU, dense, on one vector: [features] to [out or features]."""

  hidden: int
  dtype: jnp.dtype | None = None
  gelu: str = "tanh"
  out: int | None = None
  saved_as: str | None = None  # checkpoint name of the first product
  shifts: bool = False  # the last bias has no effect, see `freeze_shift`

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    # The caller draws the dropout mask [hidden]: drawn here, all vectors would
    # share it.
    y = dense(self.hidden, self.dtype, saved_as=self.saved_as)(x)
    y = apply_mask(gelu(y, self.gelu), mask)
    features = self.out or x.shape[-1]
    return dense(features, self.dtype, shifts=self.shifts)(y)


# Of n s c, one shares its parameters over channels, the other over tokens.
TokenMixing = share_over(share_over(MlpBlock, axis=1), axis=0)  # mixes s
ChannelMixing = share_over(share_over(MlpBlock, axis=0), axis=0)  # mixes c


class MixerBlock(ResidualBlock, kw_only=True):
  """Token mixing, then channel mixing, each with a skip connection."""

  tokens_mlp: int
  channels_mlp: int

  patches_as_product = False

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Maps n s c to n s c; PRNG keys [n] turn dropping on."""
    x = self.mix_tokens(x, keys)
    return self.mix_channels(x, keys)

  def mix_tokens(self, x, keys):
    # The gradient of y comes out of the products with tokens last. Stored, it
    # is transposed once, in the products' dtype; XLA would do it for each use.
    x, y = self.norm(x, branch=0, keep_layout=True)
    mask = self.hidden_mask(keys, (self.tokens_mlp, x.shape[-1]), branch=0)
    options = {"dtype": self.dtype, "gelu": self.gelu, "name": "token_mixing"}
    # With dropout of the branch's output the last bias has an effect, because
    # it no longer shifts all channels alike.
    options["shifts"] = not self.dropout
    y = TokenMixing(self.tokens_mlp, **options)(y, mask)  # n s c
    return self.add(x, y, keys, branch=0)

  def mix_channels(self, x, keys):
    x, y = self.norm(x, branch=1)
    mask = self.hidden_mask(keys, (x.shape[1], self.channels_mlp), branch=1)
    options = {"dtype": self.dtype, "gelu": self.gelu, "name": "channel_mixing"}
    y = ChannelMixing(self.channels_mlp, saved_as=HIDDEN, **options)(y, mask)
    return self.add(x, y, keys, branch=1)


class MlpMixer(TokenModel, kw_only=True):
  """The whole network. Options, besides those of `TokenModel`:

  tokens_mlp: hidden units of the token-mixing MLP, D_S.
  channels_mlp: hidden units of the channel-mixing MLP, D_C.
  kernels: "plain" for the layers here, "fused" for kernels in their place,
    which have no forward-mode derivative, or "auto" for kernels on an H100 or
    H200 (`mixer.models.kernels`).
  """

  tokens_mlp: int
  channels_mlp: int
  kernels: str = "auto"

  block_name = "MixerBlock"
  block_sizes = ("tokens_mlp", "channels_mlp")

  @nn.compact
  def __call__(self, images, *, train=False, drop_keys=None):
    """Classifies images; see `ImageModel`. Outputs of blocks are n s c."""
    self.check(images)
    keys = self.require_rng(train, drop_keys)
    as_product = self.block_class().patches_as_product
    stem = self.embed_patches(images, "stem", as_product=as_product)
    x, out = self.run_blocks(stem, keys, name=self.block_name)  # n s c
    x = nn.LayerNorm(dtype=jnp.float32, name="pre_head_layer_norm")(x)
    return self.classify(jnp.mean(x, axis=1), {"stem": stem, **out})

  @nn.nowrap
  def block_class(self) -> type[MixerBlock]:
    return select_block(self, MixerBlock)

  def check(self, images):
    if self.kernels == "fused" and type(self) is not MlpMixer:
      raise ValueError(
        f"kernels='fused' is for Mixer, and not for {type(self).__name__}: "
        "take kernels='plain'."
      )
    super().check(images)

  def trained_tokens(self, params) -> int | None:
    mixing = params[f"{self.block_name}_0"].get("token_mixing")
    return mixing and mixing["Dense_0"]["kernel"].shape[-2]
