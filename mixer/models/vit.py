# SPDX-License-Identifier: Apache-2.0
"""Vision Transformer (arXiv 2010.11929), which the paper compares Mixer with.

Names, shapes and initial values are those of the authors' code, so that
published weights fit. Letters in shape comments: n examples, h w rows and
columns of patches, s tokens (h * w, and the class token), c channels, k heads,
d channels of a head.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from mixer.models.gelu import check_gelu, gelu
from mixer.models.inputs import (
  check_images,
  check_tokens,
  keys_if_dropping,
)
from mixer.models.layers import classifier, patch_embedding
from mixer.models.residual import (
  Residual,
  cast_products,
  draw_kept,
  hidden_product,
  mixed_tokens,
  rematerialise,
  run_blocks,
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


class MlpBlock(nn.Module):
  """Dense, GELU, Dense, on the channels of every token."""

  hidden: int
  dtype: jnp.dtype | None = None
  gelu: str = "tanh"

  @nn.compact
  def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
    """Maps n s c to n s c; `scale` [n, s, hidden] is the dropout mask."""
    layer = {
      "dtype": self.dtype,
      "promote_dtype": cast_products,
      "kernel_init": nn.initializers.xavier_uniform(),
      "bias_init": nn.initializers.normal(1e-6),
    }
    y = nn.Dense(self.hidden, dot_general=hidden_product, **layer)(x)
    y = gelu(y, self.gelu)
    if scale is not None:
      y = y * scale
    return nn.Dense(x.shape[-1], **layer)(y)


class SelfAttention(nn.Module):
  """Every head lets each token gather what others have for it.

  Flax's own attention adds biases in `dtype` (see `cast_products`).
  """

  heads: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps n s c to n s c."""
    layer = {
      "dtype": self.dtype,
      "promote_dtype": cast_products,
      "kernel_init": nn.initializers.xavier_uniform(),
    }
    each = self.heads, x.shape[-1] // self.heads
    query, key, value = (
      nn.DenseGeneral(each, name=name, **layer)(x).astype(x.dtype)  # n s k d
      for name in ("query", "key", "value")
    )
    y = jax.nn.dot_product_attention(query, key, value)  # n s k d
    return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="out", **layer)(y)


class EncoderBlock(Residual, kw_only=True):
  """Self-attention, then an MLP, each with a skip connection.

  All but the products is computed in float32; what each leaves is kept in
  `dtype`, as in a Mixer block.
  """

  mlp: int
  heads: int

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Maps n s c to n s c; `keys` [n] turns dropping on."""
    _, s, _ = x.shape

    x = x.astype(jnp.float32)
    y = nn.LayerNorm(dtype=self.dtype)(x)
    attention = SelfAttention(
      self.heads, self.dtype, name="MultiHeadDotProductAttention_0"
    )
    x = mixed_tokens(self._add(x, attention(y), keys, 1))

    x = x.astype(jnp.float32)
    y = nn.LayerNorm(dtype=self.dtype)(x)
    mlp = MlpBlock(self.mlp, self.dtype, self.gelu, name="MlpBlock_0")
    y = mlp(y, self._dropout(keys, 3, (s, self.mlp)))
    return self._add(x, y, keys, 4)


class AddPositions(nn.Module):
  """Adds to every token what was learned about its place."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps n s c to n s c."""
    shape = (1, *x.shape[1:])
    init = nn.initializers.normal(0.02)
    return x + self.param("pos_embedding", init, shape)


class Encoder(nn.Module):
  """Positions, blocks and a last LayerNorm; fields as VisionTransformer's."""

  blocks: int
  mlp: int
  heads: int
  dtype: jnp.dtype | None
  gelu: str
  dropout: float
  stoch_depth: float
  stoch_depth_rescale: bool
  remat: str
  scan: bool

  @nn.compact
  def __call__(
    self, x: jax.Array, keys: jax.Array | None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Maps n s c to float32 n s c, and what each block leaves."""
    x = AddPositions(name="posembed_input")(x)
    if keys is not None and self.dropout:
      kept = draw_kept(keys, 6 * self.blocks, 1 - self.dropout, x.shape[1:])
      x = x * (kept / (1 - self.dropout))

    block = functools.partial(
      rematerialise(EncoderBlock, self.remat, looped=self.scan),
      mlp=self.mlp,
      heads=self.heads,
      rescale=self.stoch_depth_rescale,
      dropout=self.dropout,
      dtype=self.dtype,
      gelu=self.gelu,
    )
    x, out = run_blocks(self, x, keys, name="encoderblock", make=block)  # n s c
    return nn.LayerNorm(dtype=jnp.float32, name="encoder_norm")(x), out


class VisionTransformer(nn.Module):
  """The whole network. Attributes:

  patch: side of a patch in pixels.
  hidden: channels of a token.
  blocks: number of encoder blocks.
  mlp: hidden units of a block's MLP.
  heads: of self-attention, which divide `hidden`.
  pool: what stands for the image at the end: "token", the class token, as
    published, or "mean", the mean over the tokens, without a class token.
  representation: units of a hidden layer with tanh under the head, as in the
    ViT paper's files of ImageNet-21k; 0 or None for none. What it leaves is the
    pre-logits then.
  num_classes: width of the head; 0 or None for no head.
  image_channels: 3 for RGB.
  dtype: of matrix products in the blocks and the stem, and of the tokens that
    each branch of a block leaves, as `MlpMixer.dtype`.
  gelu: "tanh", the form that the authors' code computes, or "exact".
  dropout: rate after the position embeddings, inside the MLPs and after both
    branches of a block; the weights of attention have none, as published.
  stoch_depth: rate at which the last block's two branches are dropped for an
    example; block i of L has i / (L - 1) of it.
  stoch_depth_rescale: divides the branches that stay by 1 - rate.
  remat: what of a block is not kept for the backward pass, but computed again
    (`residual.REMAT`).
  scan: compiles one block and loops over it, as `MlpMixer.scan`.
  head_bias: initial value of the head's bias (its kernel starts at 0).
  """

  patch: int
  hidden: int
  blocks: int
  mlp: int
  heads: int
  pool: str = "token"
  representation: int | None = None
  num_classes: int | None = None
  image_channels: int = 3
  dtype: jnp.dtype | None = None
  gelu: str = "tanh"
  dropout: float = 0.0
  stoch_depth: float = 0.0
  stoch_depth_rescale: bool = False
  remat: str = "none"
  scan: bool = False
  head_bias: float = 0.0

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    *,
    train: bool = False,
    drop_keys: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Classifies images.

    Args:
      images: float32 [n, height, width, image_channels] in [-1, 1].
      train: whether dropout and stochastic depth are on.
      drop_keys: [n] PRNG keys, one an example; needed if anything is dropped.

    Returns:
      float32 logits [n, num_classes] (without a head the pre-logits), and a
      dict of intermediates: "stem" [n, h * w, c], "block00" and so on [n, s, c]
      in `dtype`, the class token first, "pre_logits" [n, c], "logits".

    Raises:
      ValueError: the fields do not fit one another, or the images the patch,
        the channels or the resolution that the parameters were made for.
    """
    self._check(images)
    drop_keys = keys_if_dropping(
      drop_keys,
      train=train,
      dropping=bool(self.dropout or self.stoch_depth),
    )

    embed = patch_embedding(self.hidden, self.patch, self.dtype, "embedding")
    x = embed(images)  # n h w c
    x = stem = x.reshape(x.shape[0], -1, x.shape[-1])  # n s c
    if self.pool == "token":
      cls = self.param("cls", nn.initializers.zeros, (1, 1, self.hidden))
      cls = jnp.broadcast_to(cls, (x.shape[0], 1, self.hidden))  # n 1 c
      x = jnp.concatenate([cls, x], axis=1)  # n s c

    x, out = Encoder(
      self.blocks,
      self.mlp,
      self.heads,
      self.dtype,
      self.gelu,
      self.dropout,
      self.stoch_depth,
      self.stoch_depth_rescale,
      self.remat,
      self.scan,
      name="Transformer",
    )(x, drop_keys)  # n s c

    x = x[:, 0] if self.pool == "token" else jnp.mean(x, axis=1)  # n c
    if self.representation:
      x = jnp.tanh(nn.Dense(self.representation, name="pre_logits")(x))
    out = {"stem": stem, **out, "pre_logits": x}
    if self.num_classes:
      x = out["logits"] = classifier(self.num_classes, self.head_bias)(x)
    return x, out

  def _check(self, images):
    """Raises ValueError with both numbers and the way out."""
    check_gelu(self.gelu)
    if self.pool not in POOLS:
      raise ValueError(f"pool={self.pool!r} is none of {', '.join(POOLS)}.")
    if self.hidden % self.heads:
      raise ValueError(
        f"heads={self.heads} do not divide hidden={self.hidden} channels: take "
        "a divisor."
      )
    check_images(images, self.image_channels, self.patch)
    try:
      params = self.variables["params"]
      made_for = params["Transformer"]["posembed_input"]["pos_embedding"]
    except KeyError:  # the parameters are being made
      return
    has_token = "cls" in params
    if has_token != (self.pool == "token"):
      pool, has = ("token", "a") if has_token else ("mean", "no")
      raise ValueError(
        f"These parameters have {has} class token, and the model pools by "
        f"{self.pool!r}: create it with pool={pool!r}."
      )
    check_tokens(
      images,
      patch=self.patch,
      made_for=made_for.shape[1] - has_token,
      verb="know the places of",
    )
