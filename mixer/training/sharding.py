# SPDX-License-Identifier: Apache-2.0
"""Which part of the parameters a device updates: all, or its share (ZeRO-1).

Parameters are on every device either way; the optimizer's state is only where
it is needed. Imports with jax, flax and optax alone.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixer.training.mixing import AXIS


class Replicated:
  """Every device updates all parameters, from the same gradients."""

  def mean(self, gradients: dict) -> dict:
    """Averages the devices' gradients, for what this device updates."""
    return jax.lax.pmean(gradients, AXIS)

  def part(self, params: dict) -> dict:
    """Takes what this device updates."""
    return params

  def clear_padding(self, part: dict, params: dict) -> dict:
    """Sets to zero what is beyond the parameters' ends."""
    return part

  def whole(self, part: dict, params: dict) -> dict:
    """Puts the devices' parts together, in the shapes of `params`."""
    return part

  def norm(self, part: dict) -> jax.Array:
    """The global norm of the whole."""
    return optax.tree.norm(part)


class Sharded:
  """Every device updates its share of each parameter; inside axis "batch".

  Its share of a leaf is its part of the rows that `to_rows` makes of it. Where
  an optimizer treats each number by itself, it need not know.
  """

  def mean(self, gradients: dict) -> dict:
    devices = jax.lax.axis_size(AXIS)

    def scatter(x):
      rows = to_rows(x, devices)
      return jax.lax.psum_scatter(rows, AXIS, tiled=True) / devices

    return jax.tree.map(scatter, gradients)

  def part(self, params: dict) -> dict:
    devices, own = jax.lax.axis_size(AXIS), jax.lax.axis_index(AXIS)

    def take(x):
      rows = to_rows(x, devices)
      n = rows.shape[0] // devices
      return jax.lax.dynamic_slice_in_dim(rows, own * n, n)

    return jax.tree.map(take, params)

  def clear_padding(self, part: dict, params: dict) -> dict:
    devices, own = jax.lax.axis_size(AXIS), jax.lax.axis_index(AXIS)

    def clear(share, x):
      if share.size * devices == x.size:
        return share
      place = own * share.size + jnp.arange(share.size)
      return jnp.where(place < x.size, share, 0)

    return jax.tree.map(clear, part, params)

  def whole(self, part: dict, params: dict) -> dict:
    def gather(share, x):
      return from_rows(jax.lax.all_gather(share, AXIS, tiled=True), x.shape)

    return jax.tree.map(gather, part, params)

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
