# SPDX-License-Identifier: Apache-2.0
"""Base classes of the models: options, input checks, block loop and head.

Letters in shape comments: n examples, h w rows and columns, s tokens,
c channels.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from mixer.models.layers import (
  ResidualBlock,
  apply_mask,
  cast_products,
  multiply_patches,
  remat_block,
  survival_probs,
)

# Mean and deviation of the red, green and blue pixels of ImageNet, of 0..1.
IMAGENET_PIXELS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageModel(nn.Module, kw_only=True):
  """An image classifier. Options of every model:

  num_classes: width of the head; 0 or None for no head.
  image_channels: 3 for RGB.
  dtype: of the factors of matrix products and convolutions, except the head's,
    and of each block's output; None for float32. Everything else is float32:
    parameters, their gradients, sums, norms, activations, logits. The authors'
    TPUs rounded the factors only. Storing tokens in bfloat16 saves a fifth of a
    step's memory and traffic there, and adds a fifth to the rounding error of
    its gradient (benchmarks/NOTES.md). A bias whose gradient is always 0 is
    then not trained (`layers.freeze_shift`).
  dropout: rate inside the MLPs and after each branch of a block (table 4 sweeps
    0 and 0.1); for BiT, on the input of the head.
  stoch_depth: rate at which a branch of the last block is dropped for an
    example; block i of L has i / (L - 1) of it (appendix B).
  stoch_depth_rescale: divides the remaining branches by 1 - rate; the authors'
    code does not.
  remat: remat policy, a key of `layers.REMAT`.
  head_bias: initial bias of the head; its kernel starts at 0.

  A model maps float32 images [n, height, width, image_channels] in [-1, 1] to
  float32 logits [n, num_classes] (without a head, to the pre-logits), and a
  dict of intermediates: "stem", the output of each block or stage, "pre_logits"
  [n, c] and "logits". Its arguments:

  train: turns dropout and stochastic depth on.
  drop_keys: [n] PRNG keys, one per example, or `layers.ScaledKeys`; required if
    anything is dropped.

  It raises ValueError if its options do not fit together, or if the images do
  not fit the options or the resolution of the parameters.
  """

  num_classes: int | None = None
  image_channels: int = 3
  dtype: jnp.dtype | None = None
  dropout: float = 0.0
  stoch_depth: float = 0.0
  stoch_depth_rescale: bool = False
  remat: str = "none"
  head_bias: float = 0.0

  def require_rng(
    self, train: bool, drop_keys: jax.Array | None
  ) -> jax.Array | None:
    """Returns the keys that drop masks are drawn from; None drops nothing."""
    if not (train and (self.dropout or self.stoch_depth)):
      return None
    if drop_keys is None:
      raise ValueError(
        "train=True with dropout or stochastic depth needs drop_keys, one PRNG "
        "key per example, such as jax.random.split(key, len(images))."
      )
    return drop_keys

  def classify(
    self, x: jax.Array, out: dict, mask: jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Applies the head in float32 and completes the intermediates.

    Args:
      x: [n, c] pre-logits.
      out: intermediates so far.
      mask: [n, c] drop mask of the head's input.
    """
    out["pre_logits"] = x
    if self.num_classes:
      head = nn.Dense(
        self.num_classes,
        kernel_init=nn.initializers.zeros,
        bias_init=nn.initializers.constant(self.head_bias),
        name="head",
      )
      x = out["logits"] = head(apply_mask(x, mask))
    return x, out


class TokenModel(ImageModel, kw_only=True):
  """A model of patches, each a token.

  A subclass defines `block_class`, which returns the class of its blocks
  (decorated with `nn.nowrap`, so that a nested module may call it),
  `block_sizes`, the names of the fields that blocks take from it, and
  `trained_tokens`, which returns the number of tokens that parameters were made
  for, None if they do not tell. Options of Mixer and ViT:

  patch: side of a patch in pixels, P.
  hidden: channels of a token, C.
  blocks: number of blocks.
  gelu: "tanh", as in the authors' code, or "exact", as in timm.
  pixels: "imagenet" takes the data set's mean off images and divides by its
    deviation; None leaves them in [-1, 1], as the authors do.
  scan: compiles one block and loops over it. H/14 compiles in two thirds of the
    time (benchmarks/NOTES.md), and each step copies the blocks' parameters.
    `remat` "none" then means "products".
  """

  patch: int
  hidden: int
  blocks: int
  gelu: str = "tanh"
  pixels: str | None = None
  scan: bool = False

  def check(self, images: jax.Array):
    """Raises ValueError unless images fit the model and its parameters."""
    check_images(images, self.image_channels, self.patch)
    if self.is_initializing():
      return
    trained, patch = self.trained_tokens(self.variables["params"]), self.patch
    _, height, width, _ = images.shape
    tokens = (height // patch) * (width // patch)
    if trained in (None, tokens):
      return
    side = math.isqrt(trained)
    size = f"{side * patch} x {side * patch} px"
    if side * side != trained:
      size = f"{trained} patches"
    raise ValueError(
      f"Images of {height} x {width} px make {tokens} tokens of {patch} px, "
      f"but these parameters are for {trained}: resize the images to {size}, "
      f"or use parameters made for {height} x {width} px."
    )

  def embed_patches(
    self, images: jax.Array, name: str, *, as_product: bool = False
  ) -> jax.Array:
    """Projects each patch to a token: n h w c to n s c."""
    if self.pixels == "imagenet":
      mean, deviation = jnp.array(IMAGENET_PIXELS)
      images = ((images + 1) / 2 - mean) / deviation
    embed = nn.Conv(
      self.hidden,
      kernel_size=(self.patch, self.patch),
      strides=(self.patch, self.patch),
      padding="VALID",
      dtype=self.dtype,
      promote_dtype=cast_products,
      conv_general_dilated=multiply_patches if as_product else None,
      name=name,
    )
    x = embed(images)  # n h w c
    return x.reshape(x.shape[0], -1, x.shape[-1])

  @nn.nowrap
  def make_block(self, **fields) -> ResidualBlock:
    """Makes a block; takes index=, survival_prob=, Flax's name= or parent=."""
    block = remat_block(self.block_class(), self.remat, scanned=self.scan)
    return block(
      **{size: getattr(self, size) for size in self.block_sizes},
      rescale=self.stoch_depth_rescale,
      dropout=self.dropout,
      dtype=self.dtype,
      gelu=self.gelu,
      **fields,
    )

  @nn.nowrap
  def run_blocks(
    self,
    x: jax.Array,
    keys: jax.Array | None,
    *,
    name: str,
    parent: nn.Module | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs the blocks in turn.

    With `scan`, compiles one block and loops over the stacked parameters of all
    of them. The parameters' names stay the same.

    Args:
      x: n s c.
      keys: [n] PRNG keys, or None.
      name: of a block, without its number.
      parent: module that has the blocks' parameters; this one by default.

    Returns:
      The last block's output, and each block's, as "block00" and so on.
    """
    parent = parent or self
    indices = range(self.blocks)
    probs = survival_probs(self.stoch_depth, self.blocks)
    if not self.scan or parent.is_initializing():
      out = {}
      for i in indices:
        block = self.make_block(
          index=i, survival_prob=probs[i], name=f"{name}_{i}"
        )
        x = out[f"block{i:02d}"] = block(x, keys)
      return x, out

    params = [parent.variables["params"][f"{name}_{i}"] for i in indices]
    probs = jnp.array(probs) if self.stoch_depth else None

    def step(x, args):
      index, prob, params = args
      prob = 1.0 if prob is None else prob
      block = self.make_block(index=index, survival_prob=prob, parent=None)
      x = block.apply({"params": params}, x, keys)
      return x, x

    x = x.astype(self.dtype or jnp.float32)  # dtype of a block's output
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    xs = jnp.arange(self.blocks), probs, stacked
    x, outputs = jax.lax.scan(step, x, xs)
    return x, {f"block{i:02d}": outputs[i] for i in indices}


def check_images(images: jax.Array, image_channels: int, patch: int = 1):
  """Raises ValueError unless images are [n, height, width, image_channels].

  Args:
    images: any array.
    image_channels: number that the model takes.
    patch: side in pixels, which must divide height and width.
  """
  if images.ndim != 4:
    raise ValueError(
      f"Images have shape {images.shape}, not [n, height, width, channels]; "
      "a single image needs a leading axis: image[None]."
    )
  _, height, width, channels = images.shape
  if channels != image_channels:
    raise ValueError(
      f"Images have {channels} channels, the model takes {image_channels}: "
      "convert the images, or create the model with "
      f"image_channels={channels}."
    )
  if height % patch or width % patch:
    near = [max(round(x / patch), 1) * patch for x in (height, width)]
    raise ValueError(
      f"Images of {height} x {width} px are not divided by patches of "
      f"{patch} px: resize them, to {near[0]} x {near[1]} px for one, "
      "or choose a variant with another patch."
    )
