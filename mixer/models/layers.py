# SPDX-License-Identifier: Apache-2.0
"""The layers that models begin and end with."""

import jax.numpy as jnp
from flax import linen as nn

from mixer.models.residual import cast_products


def patch_embedding(
  hidden: int,
  patch: int,
  dtype: jnp.dtype | None,
  name: str,
  *,
  as_product: bool = False,
) -> nn.Conv:
  """A projection of each patch by itself: n h w c to n h/P w/P hidden.

  Args:
    hidden: features of a token.
    patch: side P in pixels.
    dtype: of the projection; None for float32.
    name: of its parameters.
    as_product: computes a matrix product of patches, where a GPU's convolutions
      take ten times as long.
  """
  return nn.Conv(
    hidden,
    kernel_size=(patch, patch),
    strides=(patch, patch),
    padding="VALID",
    dtype=dtype,
    promote_dtype=cast_products,
    conv_general_dilated=_multiply_patches if as_product else None,
    name=name,
  )


def _multiply_patches(images, kernel, strides, *_, **__):
  """The convolution of an image cut into squares: n h w c to n h/P w/P d."""
  n, height, width, c = images.shape
  p, _ = strides
  squares = images.reshape(n, height // p, p, width // p, p, c)
  squares = squares.transpose(0, 1, 3, 2, 4, 5)  # n h/P w/P P P c
  squares = squares.reshape(*squares.shape[:3], p * p * c)
  return squares @ kernel.reshape(p * p * c, -1)


def classifier(num_classes: int, bias: float) -> nn.Dense:
  """The head, in float32: its kernel starts at 0, its bias where it is told."""
  return nn.Dense(
    num_classes,
    kernel_init=nn.initializers.zeros,
    bias_init=nn.initializers.constant(bias),
    name="head",
  )
