# SPDX-License-Identifier: Apache-2.0
"""BiT's ResNet (arXiv 1912.11370), a baseline of the paper.

A pre-activation ResNet (v2, arXiv 1603.05027) with group normalization and
weight-standardized convolutions in place of batch normalization. Names, shapes,
constants and padding are those of the code that was released with the published
weights (google-research/big_transfer).

Letters in shape comments: n examples, h w rows and columns, c channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from mixer.models.base import ImageModel, check_images
from mixer.models.layers import (
  ResidualBlock,
  cast_products,
  dropout_mask,
  remat_block,
  survival_probs,
)

COLUMNS = ("width", "units")
VARIANTS = {
  # name         width  units of the four stages
  "BiT-R50x1":  (1,     (3,  4,  6, 3)),
  "BiT-R50x2":  (2,     (3,  4,  6, 3)),
  "BiT-R50x3":  (3,     (3,  4,  6, 3)),
  "BiT-R101x1": (1,     (3,  4, 23, 3)),
  "BiT-R101x3": (3,     (3,  4, 23, 3)),
  "BiT-R152x1": (1,     (3,  8, 36, 3)),
  "BiT-R152x2": (2,     (3,  8, 36, 3)),
  "BiT-R152x4": (4,     (3,  8, 36, 3)),
  "BiT-R200x3": (3,     (3, 24, 36, 3)),
}  # fmt: skip

GROUPS = 32


def standardize(x: jax.Array, axes: Sequence[int], epsilon: float):
  """Normalizes to mean 0 and variance 1 along axes, in two passes."""
  x = x - jnp.mean(x, axes, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x**2, axes, keepdims=True) + epsilon)


def standardize_filters(kernel: jax.Array) -> jax.Array:
  """Standardizes each filter of a kernel [h, w, c, features]."""
  return standardize(kernel, (0, 1, 2), epsilon=1e-10)


def standardize_kernel(inputs, kernel, bias, *, dtype, inexact=True):
  """Standardizes filters in float32, then casts them to `dtype`.

  Replaces the dtype promotion of a Flax convolution, which every kernel passes
  between parameters and product.
  """
  kernel = standardize_filters(kernel)
  return cast_products(inputs, kernel, bias, dtype=dtype, inexact=inexact)


def StdConv(features, size, stride=1, *, dtype, name) -> nn.Conv:
  """Returns a weight-standardized convolution with symmetric padding.

  With "SAME", a stride of 2 would pad one side more.
  """
  return nn.Conv(
    features,
    kernel_size=(size, size),
    strides=(stride, stride),
    padding=size // 2,
    use_bias=False,
    dtype=dtype,
    promote_dtype=standardize_kernel,
    name=name,
  )


class GroupNorm(nn.Module):
  """Group normalization; its parameters have the authors' shapes."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps n h w c to float32 n h w c."""
    n, h, w, c = x.shape
    scale = self.param("scale", nn.initializers.ones, (1, 1, 1, c))
    bias = self.param("bias", nn.initializers.zeros, (1, 1, 1, c))
    x = x.astype(jnp.float32).reshape(n, h, w, GROUPS, c // GROUPS)
    x = standardize(x, (1, 2, 4), epsilon=1e-5).reshape(n, h, w, c)
    return x * scale + bias


class ResidualUnit(ResidualBlock, kw_only=True):
  """A bottleneck of 1x1, 3x3 and 1x1 convolutions, added to a shortcut."""

  channels: int  # of the bottleneck, a quarter of the output's
  stride: int = 1

  output_mask = 0  # no mask of hidden units before it

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Maps n h w c to n h w c, h and w divided by `stride`, rounded up.

    Args:
      x: n h w c.
      keys: [n] PRNG keys turn dropping on.
    """

    def conv(name, features, size, stride=1):
      return StdConv(features, size, stride, dtype=self.dtype, name=name)

    features = 4 * self.channels
    shortcut = x
    y = nn.relu(GroupNorm(name="gn1")(x))
    if x.shape[-1] != features or self.stride != 1:
      shortcut = conv("conv_proj", features, 1, self.stride)(y)
    y = conv("conv1", self.channels, 1)(y)
    y = nn.relu(GroupNorm(name="gn2")(y))
    y = conv("conv2", self.channels, 3, self.stride)(y)
    y = nn.relu(GroupNorm(name="gn3")(y))
    y = conv("conv3", features, 1)(y)
    return self.add(shortcut.astype(jnp.float32), y, keys, branch=0)


class Stage(nn.Module):
  """Units of one resolution; the first one reduces to it.

  channels, stride: of the first unit.
  survival_probs: probability of each unit that its branch is not dropped.
  first: index of the first unit in the whole network.
  rescale, remat, dtype: as in the model.
  """

  channels: int
  stride: int
  survival_probs: Sequence[float]
  first: int = 0
  rescale: bool = False
  remat: str = "none"
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Maps n h w c to n h w c; PRNG keys [n] turn dropping on."""
    unit = remat_block(ResidualUnit, self.remat)
    for i, survival_prob in enumerate(self.survival_probs):
      x = unit(
        channels=self.channels,
        stride=self.stride if i == 0 else 1,
        index=self.first + i,
        survival_prob=survival_prob,
        rescale=self.rescale,
        dtype=self.dtype,
        name=f"unit{i + 1:02d}",
      )(x, keys)  # n h w c
    return x


class RootBlock(nn.Module):
  """The stem: a convolution and max pooling, each of stride 2.

  Pads the pooling with 0, as the released code does; its later copy in
  google-research/big_vision pads with -inf.
  """

  channels: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps n h w c to n h/4 w/4 channels, rounded up."""
    x = StdConv(self.channels, 7, 2, dtype=self.dtype, name="conv_root")(images)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return nn.max_pool(x, (3, 3), strides=(2, 2))


class BitResNet(ImageModel, kw_only=True):
  """The whole network. Options, besides those of `ImageModel`:

  width: factor on all channels, the 4 of R152x4; a multiple of 0.5, because
    channels are normalized in 32 groups.
  units: residual units of each stage; every stage but the first halves the
    resolution and doubles the channels.

  Blocks are residual units here. `remat` has no "token_mixing".
  """

  width: float
  units: Sequence[int]

  @nn.compact
  def __call__(self, images, *, train=False, drop_keys=None):
    """Classifies images of any resolution; see `ImageModel`.

    Intermediates "stem", and "block1" and so on for the stages, are n h w c.
    """
    check_images(images, self.image_channels)
    channels = self.check_width()
    keys = self.require_rng(train, drop_keys)

    out = {}
    x = RootBlock(channels, self.dtype, name="root_block")(images)
    out["stem"] = x  # n h w c
    depth = sum(self.units)
    probs = survival_probs(self.stoch_depth, depth)
    first = 0
    for i, units in enumerate(self.units):
      x = out[f"block{i + 1}"] = Stage(
        channels * 2**i,
        stride=1 if i == 0 else 2,
        survival_probs=tuple(probs[first : first + units]),
        first=first,
        rescale=self.stoch_depth_rescale,
        remat=self.remat,
        dtype=self.dtype,
        name=f"block{i + 1}",
      )(x, keys)  # n h w c
      first += units

    x = nn.relu(GroupNorm(name="norm-pre-head")(x))
    x = jnp.mean(x, axis=(1, 2))  # n c
    # Its number is the first one after the units'.
    mask = dropout_mask(keys, self.dropout, 6 * depth, x.shape[1:])
    return self.classify(x, out, mask)

  def check_width(self) -> int:
    """Returns the stem's channels; ValueError unless they fit the groups."""
    channels = round(64 * self.width)
    if channels < GROUPS or channels % GROUPS or channels != 64 * self.width:
      raise ValueError(
        f"width={self.width} makes {64 * self.width:g} channels, which cannot "
        f"be normalized in {GROUPS} groups: take a multiple of 0.5."
      )
    return channels
