# SPDX-License-Identifier: Apache-2.0
"""The layers that models begin and end with."""

import jax.numpy as jnp
from flax import linen as nn

from mixer.models.residual import cast_products


def patch_embedding(
  hidden: int, patch: int, dtype: jnp.dtype | None, name: str
) -> nn.Conv:
  """A projection of each patch by itself: n h w c to n h/P w/P hidden."""
  return nn.Conv(
    hidden,
    kernel_size=(patch, patch),
    strides=(patch, patch),
    padding="VALID",
    dtype=dtype,
    promote_dtype=cast_products,
    name=name,
  )


def classifier(num_classes: int, bias: float) -> nn.Dense:
  """The head, in float32: its kernel starts at 0, its bias where it is told."""
  return nn.Dense(
    num_classes,
    kernel_init=nn.initializers.zeros,
    bias_init=nn.initializers.constant(bias),
    name="head",
  )
