# SPDX-License-Identifier: Apache-2.0
"""BiT's ResNet (arXiv 1912.11370), which the paper compares Mixer with.

A pre-activation ResNet (v2, arXiv 1603.05027) with group normalisation and
weight-standardised convolutions in place of batch normalisation. Names, shapes,
constants and padding are those of the code that was released with the published
weights (google-research/big_transfer).

Letters in shape comments: n examples, h w rows and columns, c channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from mixer.models.inputs import check_images, keys_if_dropping
from mixer.models.layers import classifier
from mixer.models.residual import (
  Residual,
  cast_products,
  draw_kept,
  keep_rates,
  rematerialise,
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


def standardise(x: jax.Array, axes: Sequence[int], epsilon: float):
  """Gives mean 0 and variance 1 along axes, by two passes."""
  x = x - jnp.mean(x, axes, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x**2, axes, keepdims=True) + epsilon)


def standardise_filters(kernel: jax.Array) -> jax.Array:
  """Of a convolution, h w c features, as the network uses them."""
  return standardise(kernel, (0, 1, 2), epsilon=1e-10)


def standardise_kernel(inputs, kernel, bias, *, dtype, inexact=True):
  """Standardises each filter, in float32, before the product.

  Takes the place of the dtypes' promotion in a Flax convolution, which is
  where the kernel passes on its way from the parameters to the product.
  """
  kernel = standardise_filters(kernel)
  return cast_products(inputs, kernel, bias, dtype=dtype, inexact=inexact)


def StdConv(features, size, stride=1, *, dtype, name) -> nn.Conv:
  """A weight-standardised convolution, padded alike on all sides.

  Fixed padding: with "SAME" a stride of 2 would pad one side more.
  """
  return nn.Conv(
    features,
    kernel_size=(size, size),
    strides=(stride, stride),
    padding=size // 2,
    use_bias=False,
    dtype=dtype,
    promote_dtype=standardise_kernel,
    name=name,
  )


class GroupNorm(nn.Module):
  """Group normalisation, its parameters shaped as the authors' are."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps n h w c to float32 n h w c."""
    n, h, w, c = x.shape
    scale = self.param("scale", nn.initializers.ones, (1, 1, 1, c))
    bias = self.param("bias", nn.initializers.zeros, (1, 1, 1, c))
    x = x.astype(jnp.float32).reshape(n, h, w, GROUPS, c // GROUPS)
    x = standardise(x, (1, 2, 4), epsilon=1e-5).reshape(n, h, w, c)
    return x * scale + bias


class ResidualUnit(Residual, kw_only=True):
  """A bottleneck: 1x1, 3x3 and 1x1 convolutions beside a shortcut.

  All but the products is computed in float32, and what the unit leaves is kept
  in `dtype`, as in a Mixer block.
  """

  channels: int  # of the bottleneck, a quarter of what comes out
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Maps n h w c to n h w c, h and w divided by `stride`, rounded up.

    Args:
      x: n h w c.
      keys: [n] PRNG keys, which turn dropping on.
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
    return self._add(shortcut.astype(jnp.float32), y, keys, 0)


class Stage(nn.Module):
  """Units of one resolution; the first of them comes down to it.

  keep_paths: rate at which each unit's branch stays.
  first: index of the first unit in the whole network.
  """

  channels: int
  stride: int
  keep_paths: Sequence[float]
  first: int = 0
  rescale: bool = False
  remat: str = "none"
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Maps n h w c to n h w c; `keys` [n] turns dropping on."""
    unit = rematerialise(ResidualUnit, self.remat)
    for i, keep_path in enumerate(self.keep_paths):
      x = unit(
        channels=self.channels,
        stride=self.stride if i == 0 else 1,
        index=self.first + i,
        keep_path=keep_path,
        rescale=self.rescale,
        dtype=self.dtype,
        name=f"unit{i + 1:02d}",
      )(x, keys)  # n h w c
    return x


class RootBlock(nn.Module):
  """The stem: a convolution and a pooling, each of stride 2.

  The pooling takes the larger of 0 and what is at the border, as the released
  code does; its later copy in google-research/big_vision pads with -inf.
  """

  channels: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps n h w c to n h/4 w/4 channels, rounded up."""
    x = StdConv(self.channels, 7, 2, dtype=self.dtype, name="conv_root")(images)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return nn.max_pool(x, (3, 3), strides=(2, 2))


class BitResNet(nn.Module):
  """The whole network. Attributes:

  width: factor on all channels, the 4 of R152x4; a multiple of 0.5, because
    channels are normalised in 32 groups.
  units: residual units of each stage; every stage but the first halves the
    resolution and doubles the channels.
  num_classes: width of the head; 0 or None for no head.
  image_channels: 3 for RGB.
  dtype: of convolutions' products, and of what each unit leaves. Statistics,
    standardised filters and sums are computed in float32; parameters, their
    gradients, head and logits are float32.
  stoch_depth: rate at which the last unit's branch is dropped for an example;
    unit i of L has i / (L - 1) of it, as a Mixer's blocks have.
  stoch_depth_rescale: divides the branches that stay by 1 - rate.
  dropout: rate on what enters the head.
  remat: what of a unit is not kept for the backward pass, but computed again
    (`residual.REMAT`, but for "token_mixing").
  head_bias: initial value of the head's bias (its kernel starts at 0).
  """

  width: float
  units: Sequence[int]
  num_classes: int | None = None
  image_channels: int = 3
  dtype: jnp.dtype | None = None
  stoch_depth: float = 0.0
  stoch_depth_rescale: bool = False
  dropout: float = 0.0
  remat: str = "none"
  head_bias: float = 0.0

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    *,
    train: bool = False,
    drop_keys: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Classifies images of any resolution.

    Args:
      images: float32 [n, height, width, image_channels] in [-1, 1].
      train: whether dropout and stochastic depth are on.
      drop_keys: [n] PRNG keys, one an example; needed if anything is dropped.

    Returns:
      float32 logits [n, num_classes] (without a head the pre-logits), and a
      dict of intermediates: "stem" [n, h, w, c], "block1" and so on, what each
      stage leaves [n, h, w, c], in `dtype`; "pre_logits" [n, c], "logits".

    Raises:
      ValueError: the images' axes or channels do not fit, or the width.
    """
    check_images(images, self.image_channels)
    channels = round(64 * self.width)
    if channels < GROUPS or channels % GROUPS or channels != 64 * self.width:
      raise ValueError(
        f"width={self.width} makes {64 * self.width:g} channels, which cannot "
        f"be normalised in {GROUPS} groups: take a multiple of 0.5."
      )
    keys = keys_if_dropping(
      drop_keys,
      train=train,
      dropping=bool(self.dropout or self.stoch_depth),
    )

    out = {}
    x = RootBlock(channels, self.dtype, name="root_block")(images)
    out["stem"] = x  # n h w c
    depth = sum(self.units)
    rates = keep_rates(self.stoch_depth, depth)
    first = 0
    for i, units in enumerate(self.units):
      x = out[f"block{i + 1}"] = Stage(
        channels * 2**i,
        stride=1 if i == 0 else 2,
        keep_paths=tuple(rates[first : first + units]),
        first=first,
        rescale=self.stoch_depth_rescale,
        remat=self.remat,
        dtype=self.dtype,
        name=f"block{i + 1}",
      )(x, keys)  # n h w c
      first += units

    x = nn.relu(GroupNorm(name="norm-pre-head")(x))
    x = out["pre_logits"] = jnp.mean(x, axis=(1, 2))  # n c
    if self.num_classes:
      if keys is not None and self.dropout:
        # The first site after those of the units, see Residual.
        kept = draw_kept(keys, 6 * depth, 1 - self.dropout, x.shape[1:])
        x = x * (kept / (1 - self.dropout))
      x = out["logits"] = classifier(self.num_classes, self.head_bias)(x)
    return x, out
