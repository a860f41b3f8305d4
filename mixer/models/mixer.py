# SPDX-License-Identifier: Apache-2.0
"""MLP-Mixer, figure 1 of the paper (arXiv 2105.01601).

Letters in shape comments: n examples, h w rows and columns of patches,
s = h * w tokens, c channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from mixer.models.gelu import check_gelu, gelu
from mixer.models.inputs import (
  check_images,
  check_tokens,
  keys_if_dropping,
)
from mixer.models.kernels import gpu, select_kernels, tpu, weights_of
from mixer.models.layers import classifier, patch_embedding
from mixer.models.residual import (
  Residual,
  cast_products,
  hidden_product,
  hold_on_gpu,
  mixed_tokens,
  rematerialise,
  run_blocks,
)

# Table 1 of the paper. Parameters and multiply-accumulates, pinned by tests,
# follow from these numbers alone.
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
  """Dense, GELU, Dense, on one vector.

  out: features that come out; None for as many as go in.
  product: the first one.
  """

  hidden: int
  dtype: jnp.dtype | None = None
  gelu: str = "tanh"
  out: int | None = None
  product: Callable[..., jax.Array] = jax.lax.dot_general

  @nn.compact
  def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
    """Maps [features] to [out].

    Args:
      x: [features].
      scale: [hidden] factors for the hidden units, the dropout mask; drawn by
        the caller, because a draw in here would be shared by all vectors.
    """
    types = {"dtype": self.dtype, "promote_dtype": cast_products}
    y = nn.Dense(self.hidden, dot_general=self.product, **types)(x)
    y = gelu(y, self.gelu)
    if scale is not None:
      y = y * scale
    return nn.Dense(self.out or x.shape[-1], **types)(y)


def share_over(module: type[nn.Module], axis: int) -> type[nn.Module]:
  """Lifts a module over one axis of its input, with the same parameters."""
  return nn.vmap(
    module,
    in_axes=axis,
    out_axes=axis,
    variable_axes={"params": None},
    split_rngs={"params": False},
  )


TokenMixing = share_over(share_over(MlpBlock, axis=1), axis=0)  # along s
ChannelMixing = share_over(share_over(MlpBlock, axis=0), axis=0)  # along c


class MixerBlock(Residual, kw_only=True):
  """Token mixing, then channel mixing, each with a skip connection.

  All but the products is computed in float32. What each leaves is kept in
  `dtype`, because a step's memory and much of its time go into moving it.

  kernels: what computes it from the parameters that the layers make: "plain"
    for the layers themselves, or "gpu" or "tpu" (`mixer.models.kernels`).
  """

  tokens_mlp: int
  channels_mlp: int
  kernels: str = "plain"

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Maps n s c to n s c; `keys` [n] turns dropping on."""
    x = mixed_tokens(self._mix_tokens(x, keys))
    return self._mix_channels(x, keys)

  def _mix_tokens(self, x, keys):
    if self.kernels == "tpu":
      kept = self._kept_paths(keys, 1, ())  # n
      weights = self._weights("token_mixing")
      return tpu.mix_tokens(x, weights, kept, dtype=self.dtype)
    if self.kernels == "gpu":
      x, y = gpu.mix_tokens(x, self._weights("token_mixing"), self.dtype)
      return self._add(x, y, keys, 1)
    # Widened once for both its uses, whose cotangents are added in float32.
    x = x.astype(jnp.float32)
    y = nn.LayerNorm(dtype=self.dtype, name="LayerNorm_0")(x)
    # The products leave its cotangent with tokens last. Turned once, in the
    # products' dtype, and not in float32 in each use.
    y = hold_on_gpu(y)
    types = self.dtype, self.gelu
    mlp = TokenMixing(self.tokens_mlp, *types, name="token_mixing")
    y = mlp(y, self._dropout(keys, 0, (self.tokens_mlp, x.shape[-1])))  # n s c
    return self._add(x, y, keys, 1)

  def _mix_channels(self, x, keys):
    if self.kernels == "gpu":
      x, y = gpu.mix_channels(x, self._weights("channel_mixing"), self.dtype)
      return self._add(x, y, keys, 4)
    x = x.astype(jnp.float32)
    y = nn.LayerNorm(dtype=self.dtype, name="LayerNorm_1")(x)
    types = self.dtype, self.gelu
    mlp = ChannelMixing(
      self.channels_mlp, *types, product=hidden_product, name="channel_mixing"
    )
    y = mlp(y, self._dropout(keys, 3, (x.shape[1], self.channels_mlp)))  # n s c
    return self._add(x, y, keys, 4)

  def _weights(self, mixing):
    return weights_of(self.variables["params"], mixing)


class MlpMixer(nn.Module):
  """The whole network. Attributes, with the paper's symbols:

  patch: side of a patch in pixels, P.
  hidden: channels of a token, C.
  blocks: number of Mixer blocks.
  tokens_mlp: hidden units of the token-mixing MLP, D_S.
  channels_mlp: hidden units of the channel-mixing MLP, D_C.
  num_classes: width of the head; 0 or None for no head.
  image_channels: 3 for RGB.
  dtype: of matrix products in the blocks and the stem, and of the tokens that
    each branch of a block leaves, and before kernels or a loop the stem.
    Everything between is computed in float32, and parameters, their gradients,
    head and logits are float32. The authors' TPUs rounded the factors of
    products alone; tokens kept in bfloat16 take a fifth off a step's memory and
    traffic there, and add as much to the rounding error of its gradient
    (benchmarks/NOTES.md).
  gelu: "tanh", the form that the authors' code computes, or "exact", as timm
    does.
  dropout: rate inside and after both MLPs (table 4 sweeps 0 and 0.1).
  stoch_depth: rate at which the last block's two branches are dropped for an
    example; block i of L has i / (L - 1) of it (appendix B).
  stoch_depth_rescale: divides the branches that stay by 1 - rate; the authors'
    code does not.
  remat: what of a block is not kept for the backward pass, but computed again
    (`residual.REMAT`).
  scan: compiles one block and loops over it: H/14 takes two thirds of the time
    to compile (benchmarks/NOTES.md), and each step a copy of the blocks'
    parameters. `remat` "none" is "products" then.
  head_bias: initial value of the head's bias (its kernel starts at 0).
  kernels: "plain" for the layers, "fused" for kernels in their place, which
    have no forward-mode derivative, or "auto": kernels on an H100 or H200
    (`mixer.models.kernels`).
  """

  patch: int
  hidden: int
  blocks: int
  tokens_mlp: int
  channels_mlp: int
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
  kernels: str = "auto"

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
      dict of intermediates: "stem" [n, s, c], "block00" and so on [n, s, c] in
      `dtype`, "pre_logits" [n, c], "logits".

    Raises:
      ValueError: the images do not fit the patch, the channels or the
        resolution that the parameters were made for.
    """
    self._check(images)
    drop_keys = keys_if_dropping(
      drop_keys,
      train=train,
      dropping=bool(self.dropout or self.stoch_depth),
    )
    out = {}
    embed = patch_embedding(
      self.hidden,
      self.patch,
      self.dtype,
      "stem",
      as_product=self._kernels() == "gpu",
    )
    x = embed(images)  # n h w c
    x = out["stem"] = x.reshape(x.shape[0], -1, x.shape[-1])  # n s c

    x, left = run_blocks(
      self, x, drop_keys, name=self._block_kind().__name__, make=self._block
    )  # n s c
    out |= left

    x = nn.LayerNorm(dtype=jnp.float32, name="pre_head_layer_norm")(x)
    x = out["pre_logits"] = jnp.mean(x, axis=1)  # n c
    if self.num_classes:
      x = out["logits"] = classifier(self.num_classes, self.head_bias)(x)
    return x, out

  def _block_kind(self):
    return MixerBlock

  def _block(self, **fields):
    """Makes a block; `fields` beside those that all have."""
    kind = rematerialise(self._block_kind(), self.remat, looped=self.scan)
    return kind(
      tokens_mlp=self.tokens_mlp,
      channels_mlp=self.channels_mlp,
      rescale=self.stoch_depth_rescale,
      dropout=self.dropout,
      dtype=self.dtype,
      gelu=self.gelu,
      kernels=self._kernels(),
      **fields,
    )

  def _kernels(self):
    """What computes a block; layers make the parameters."""
    if self.is_initializing():
      return "plain"
    return select_kernels(self.kernels, gelu=self.gelu, dropout=self.dropout)

  def _tokens_made_for(self, params):
    """How many tokens parameters mix; KeyError if they are being made."""
    kernel = params["MixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"]
    return kernel.shape[0]

  def _check(self, images):
    """Raises ValueError with both numbers and the way out."""
    check_gelu(self.gelu)
    select_kernels(self.kernels, gelu=self.gelu, dropout=self.dropout)
    check_images(images, self.image_channels, self.patch)
    try:
      made_for = self._tokens_made_for(self.variables["params"])
    except KeyError:
      return
    check_tokens(images, patch=self.patch, made_for=made_for)
