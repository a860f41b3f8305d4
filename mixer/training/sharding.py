# SPDX-License-Identifier: Apache-2.0
"""What of the state a device keeps and updates: all, or its share.

The model is computed with all parameters either way: where devices have shares,
they gather them at the beginning of an update, and nothing whole outlives it.
That is ZeRO's second stage with parameters in shares between the updates;
its third would gather a layer at a time, twice an update.
Imports with jax, flax and optax alone.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixer.training.mixing import AXIS


class Replicated:
  """Every device keeps and updates all parameters, from the same gradients."""

  def whole(self, params: dict) -> dict:
    """Makes whole parameters of what this device has of them."""
    return params

  def mean(self, gradients: dict) -> dict:
    """Averages the devices' gradients, for what this device updates."""
    return jax.lax.pmean(gradients, AXIS)

  def clear_padding(self, updates: dict) -> dict:
    """Sets to zero what is beyond the parameters' ends."""
    return updates

  def norm(self, part: dict) -> jax.Array:
    """The global norm of the whole."""
    return optax.tree.norm(part)


REPLICATED = Replicated()


class Sharded:
  """Every device has its share of each parameter; inside axis "batch".

  Its share of a leaf is its part of the rows that `to_rows` makes of it. Where
  an optimizer treats each number by itself, it need not know.
  """

  def __init__(self, shapes: dict):
    """Takes note of the parameters.

    Args:
      shapes: the whole parameters, or anything that has their shapes.
    """
    self._shapes = shapes

  def whole(self, params: dict) -> dict:
    def gather(share, like):
      rows = jax.lax.all_gather(share, AXIS, tiled=True)
      return from_rows(rows, like.shape)

    return jax.tree.map(gather, params, self._shapes)

  def mean(self, gradients: dict) -> dict:
    devices = jax.lax.axis_size(AXIS)

    def scatter(x):
      rows = to_rows(x, devices)
      return jax.lax.psum_scatter(rows, AXIS, tiled=True) / devices

    return jax.tree.map(scatter, gradients)

  def clear_padding(self, updates: dict) -> dict:
    devices, own = jax.lax.axis_size(AXIS), jax.lax.axis_index(AXIS)

    def clear(share, like):
      if share.size * devices == like.size:
        return share
      place = own * share.size + jnp.arange(share.size)
      return jnp.where(place < like.size, share, 0)

    return jax.tree.map(clear, updates, self._shapes)

  def norm(self, part: dict) -> jax.Array:
    return jnp.sqrt(jax.lax.psum(optax.tree.norm(part, squared=True), AXIS))


def share_shape(shape: tuple[int, ...], devices: int) -> tuple[int, ...]:
  """The shape of a device's share of an array.

  As few leading axes as will do are merged into one that the devices divide.
  The last two lie in tiles on a TPU: to merge them moves the data, and what is
  so moved was seen to be all-reduced instead of reduce-scattered. Where not
  even all of them will do, the share is one of a flat array that ends in zeros.
  """
  for axis in range(1, len(shape) + 1):
    rows = math.prod(shape[:axis])
    if rows % devices == 0:
      return (rows // devices, *shape[axis:])
  return (-(-math.prod(shape) // devices),)


def to_rows(x: jax.Array, devices: int) -> jax.Array:
  """Reshapes an array, of JAX or NumPy, to all shares one after the other."""
  rows, *rest = share_shape(x.shape, devices)
  shape = (devices * rows, *rest)
  if padding := math.prod(shape) - x.size:
    pad = np.pad if isinstance(x, np.ndarray) else jnp.pad
    x = pad(x.reshape(-1), (0, padding))
  return x.reshape(shape)


def from_rows(rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Undoes `to_rows`."""
  return rows.reshape(-1)[: math.prod(shape)].reshape(shape)
