# SPDX-License-Identifier: Apache-2.0
"""Vision Transformer (arXiv 2010.11929), a baseline of the paper.

Names, shapes and initial values are those of the authors' code, so that
published weights fit. Letters in shape comments: n examples, s tokens (patches,
and the class token), c channels, k heads, d channels of a head.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from mixer.models.base import TokenModel
from mixer.models.layers import (
  HIDDEN,
  ResidualBlock,
  apply_mask,
  cast_products,
  dense,
  dropout_mask,
  gelu,
)

# Table 1 of the ViT paper.
COLUMNS = ("patch", "hidden", "blocks", "mlp", "heads")
VARIANTS = {
  # name      patch  hidden  blocks   MLP  heads
  "ViT-B/32": (32,      768,     12,  3072,  12),
  "ViT-B/16": (16,      768,     12,  3072,  12),
  "ViT-L/32": (32,     1024,     24,  4096,  16),
  "ViT-L/16": (16,     1024,     24,  4096,  16),
  "ViT-H/14": (14,     1280,     32,  5120,  16),
}  # fmt: skip

POOLS = ("token", "mean")

_KERNEL_INIT = nn.initializers.xavier_uniform()


class MlpBlock(nn.Module):
  """Dense, GELU, dense, on the channels of every token."""

  hidden: int
  dtype: jnp.dtype | None = None
  gelu: str = "tanh"

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Maps n s c to n s c, with a dropout mask [n, s, hidden]."""
    init = {
      "kernel_init": _KERNEL_INIT,
      "bias_init": nn.initializers.normal(1e-6),
    }
    y = dense(self.hidden, self.dtype, saved_as=HIDDEN, **init)(x)
    y = apply_mask(gelu(y, self.gelu), mask)
    return dense(x.shape[-1], self.dtype, **init)(y)


class SelfAttention(nn.Module):
  """Multi-head self-attention.

  Flax's own adds biases in `dtype` (see `cast_products`).
  """

  heads: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps n s c to n s c."""

    def linear(features, name, **options):
      # The key's bias adds the same to all logits of a softmax.
      cast = functools.partial(cast_products, shifts=name == "key")
      return nn.DenseGeneral(
        features,
        name=name,
        dtype=self.dtype,
        promote_dtype=cast,
        kernel_init=_KERNEL_INIT,
        **options,
      )

    shape = self.heads, x.shape[-1] // self.heads
    query, key, value = (
      linear(shape, name)(x).astype(x.dtype)  # n s k d
      for name in ("query", "key", "value")
    )
    y = jax.nn.dot_product_attention(query, key, value)  # n s k d
    return linear(x.shape[-1], "out", axis=(-2, -1))(y)


class EncoderBlock(ResidualBlock, kw_only=True):
  """Self-attention, then an MLP, each with a skip connection."""

  mlp: int
  heads: int

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Maps n s c to n s c; PRNG keys [n] turn dropping on."""
    x, y = self.norm(x, branch=0)
    name = "MultiHeadDotProductAttention_0"
    y = SelfAttention(self.heads, self.dtype, name=name)(y)
    x = self.add(x, y, keys, branch=0)

    x, y = self.norm(x, branch=1)
    mask = self.hidden_mask(keys, (x.shape[1], self.mlp), branch=1)
    y = MlpBlock(self.mlp, self.dtype, self.gelu, name="MlpBlock_0")(y, mask)
    return self.add(x, y, keys, branch=1)


class AddPositions(nn.Module):
  """Adds a learned position embedding to every token."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps n s c to n s c."""
    shape = (1, *x.shape[1:])
    init = nn.initializers.normal(0.02)
    return x + self.param("pos_embedding", init, shape)


class Encoder(nn.Module):
  """Position embedding, blocks and last layer norm.

  A module only because the published names nest; the model runs its blocks.

  run_blocks: the model's method.
  position_mask: draws a dropout mask of a shape from PRNG keys.
  """

  run_blocks: Callable
  position_mask: Callable

  @nn.compact
  def __call__(
    self, x: jax.Array, keys: jax.Array | None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Maps n s c to float32 n s c, and a dict of the blocks' outputs."""
    x = AddPositions(name="posembed_input")(x)
    x = apply_mask(x, self.position_mask(keys, x.shape[1:]))
    x, out = self.run_blocks(x, keys, name="encoderblock", parent=self)
    return nn.LayerNorm(dtype=jnp.float32, name="encoder_norm")(x), out


class VisionTransformer(TokenModel, kw_only=True):
  """The whole network. Options, besides those of `TokenModel`:

  mlp: hidden units of a block's MLP.
  heads: number of attention heads, which divides `hidden`.
  pool: "token", the class token, as published, or "mean", the mean over tokens,
    without a class token.
  representation: units of a hidden layer with tanh under the head, as in the
    ViT paper's files of ImageNet-21k; 0 or None for none. Its output is then
    the pre-logits.

  `dropout` also applies after the position embedding; attention weights have
  none, as published.
  """

  mlp: int
  heads: int
  pool: str = "token"
  representation: int | None = None

  block_sizes = ("mlp", "heads")

  @nn.compact
  def __call__(self, images, *, train=False, drop_keys=None):
    """Classifies images; see `ImageModel`.

    Outputs of blocks are n s c, the class token first; the stem has none.
    """
    self.check(images)
    keys = self.require_rng(train, drop_keys)
    x = stem = self.embed_patches(images, "embedding")  # n s c
    if self.pool == "token":
      cls = self.param("cls", nn.initializers.zeros, (1, 1, self.hidden))
      cls = jnp.broadcast_to(cls, (x.shape[0], 1, self.hidden))  # n 1 c
      x = jnp.concatenate([cls, x], axis=1)  # n s c

    encoder = Encoder(self.run_blocks, self.position_mask, name="Transformer")
    x, out = encoder(x, keys)  # n s c
    x = x[:, 0] if self.pool == "token" else jnp.mean(x, axis=1)  # n c
    if self.representation:
      x = jnp.tanh(nn.Dense(self.representation, name="pre_logits")(x))
    return self.classify(x, {"stem": stem, **out})

  @nn.nowrap
  def block_class(self) -> type[EncoderBlock]:
    return EncoderBlock

  @nn.nowrap
  def position_mask(self, keys, shape) -> jax.Array | None:
    # Its number is the first one after the blocks'.
    return dropout_mask(keys, self.dropout, 6 * self.blocks, shape)

  def trained_tokens(self, params) -> int:
    positions = params["Transformer"]["posembed_input"]["pos_embedding"]
    has_token = "cls" in params
    if has_token != (self.pool == "token"):
      pool, article = ("token", "a") if has_token else ("mean", "no")
      raise ValueError(
        f"These parameters have {article} class token, and the model pools by "
        f"{self.pool!r}: create it with pool={pool!r}."
      )
    return positions.shape[1] - has_token

  def check(self, images):
    assert self.pool in POOLS
    if self.hidden % self.heads:
      raise ValueError(
        f"heads={self.heads} do not divide hidden={self.hidden} channels: take "
        "a divisor."
      )
    super().check(images)
