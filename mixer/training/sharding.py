# SPDX-License-Identifier: Apache-2.0
"""Data parallelism by jax.pmap, with a replicated or sharded (ZeRO) state.

Every device computes the gradients of its part of the batch with all
parameters. The state is either replicated, or sharded: each device keeps and
updates one share of parameters, EMA and moments, and all-gathers the parameters
at the beginning of an update. That is ZeRO's second stage with sharded
parameters between updates. Imports jax, flax and optax only.
"""

import collections
import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def all_devices() -> list[jax.Device]:
  """Returns the devices of all hosts, those of one host next to each other.

  Each host feeds its own devices, so that they get a slice of the global batch.
  """
  return sorted(jax.devices(), key=lambda x: (x.process_index, x.id))


def local_devices() -> list[jax.Device]:
  """Returns the devices of this host, in the order of `all_devices`."""
  return _local(all_devices())


def pmap_step(
  step: Callable, devices: Sequence[jax.Device], **options
) -> Callable:
  """Compiles a function for all devices, over the axis "batch".

  Args:
    step: of one device's part.
    devices: of all hosts, or some of this host.
    **options: as jax.pmap takes them. An axis of None stands for arrays that
      are whole on every device, without a device axis.
  """
  return jax.pmap(step, axis_name=AXIS, devices=devices, **options)


def pmap_update(
  step: Callable,
  devices: Sequence[jax.Device],
  state_axes=None,
  *,
  has_teacher: bool = False,
) -> Callable:
  """Compiles (state, batch) -> (state, metrics) for all devices.

  The state is donated.

  Args:
    step: of the state and one device's part of the batch.
    devices: of all hosts.
    state_axes: 0 for arrays of which a device holds a share, None for whole
      ones; a tree of them, or one for all (`Replicated.axes`).
    has_teacher: a third argument is the teacher's parameters, whole on every
      device.
  """
  return pmap_step(
    step,
    devices,
    in_axes=(state_axes, 0, None) if has_teacher else (state_axes, 0),
    out_axes=(state_axes, None),
    donate_argnums=0,
  )


def batch_sharding(devices: Sequence[jax.Device]) -> NamedSharding:
  """The layout [devices, ...] that jax.pmap takes without a copy."""
  return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))


def replicate(tree, devices: Sequence[jax.Device]):
  """Puts a copy on every device, as jax.pmap takes it with in_axes=None."""
  mesh = batch_sharding(devices).mesh
  # From NumPy arrays: jax might pass arrays on that are on a device already,
  # and the update would donate them.
  return jax.device_put(
    jax.tree.map(np.asarray, tree), NamedSharding(mesh, PartitionSpec())
  )


def to_host(tree):
  """Copies a replicated tree to NumPy arrays, from one device.

  The copy is needed because the next update may reuse the device's memory.
  """
  return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data), tree)


def prefetch_to_device(
  batches: Iterator[dict[str, np.ndarray]],
  devices: Sequence[jax.Device],
  depth: int = 2,
) -> Iterator[dict[str, jax.Array]]:
  """Transfers batches to the devices while they compute on earlier ones.

  Like `flax.jax_utils.prefetch_to_device`, which copies every batch once more
  on the host (np.stack), and leaves the iterator of batches open.

  Args:
    batches: arrays [n, ...]; n is a multiple of the number of devices.
    devices: the local devices of a `pmap_step`, in its order.
    depth: batches on the devices, or in transfer, besides the one in use.

  Yields:
    The same batches with arrays [devices, n / devices, ...].
  """

  sharding = batch_sharding(devices)

  def put(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    rows = {
      key: values.reshape(len(devices), -1, *values.shape[1:])
      for key, values in batch.items()
    }
    # Asynchronous: returns before the transfers end.
    return jax.device_put(rows, sharding)

  with contextlib.closing(batches):
    pending = collections.deque(map(put, itertools.islice(batches, depth)))
    while pending:
      pending.extend(map(put, itertools.islice(batches, 1)))
      yield pending.popleft()


class Replicated:
  """Every device keeps and updates the whole state."""

  # Inside a step, on the axis "batch".

  def gather_params(self, params: dict) -> dict:
    """Returns whole parameters, from this device's part of them."""
    return params

  def mean_grads(self, gradients: dict) -> dict:
    """Averages gradients over devices, for the part that this one updates."""
    return jax.lax.pmean(gradients, AXIS)

  def mask_padding(self, updates: dict) -> dict:
    """Sets the padding at the end of shares to zero."""
    return updates

  def norm(self, tree: dict) -> jax.Array:
    """Returns the global norm of a tree of parameters, over all shares."""
    return optax.tree.norm(tree)

  # On the host. A state is any pytree whose dicts are trees of parameters.

  def axes(self, state):
    """Returns the state's in_axes and out_axes for `pmap_step`."""
    del state
    return None

  def abstract(self, state, devices: int):
    """Returns the shapes and dtypes that a step takes, from those on a host."""
    del devices
    return state

  def put(self, state, devices: Sequence[jax.Device]):
    """Puts a whole state of NumPy arrays on this host's devices.

    Args:
      state: the same on every host.
      devices: of all hosts.
    """
    return replicate(state, _local(devices))

  def fetch(self, state, template, devices: Sequence[jax.Device]):
    """Copies the whole state to the host, as NumPy arrays.

    Where it is sharded this is a collective: all hosts call it after the same
    update.

    Args:
      state: on the devices.
      template: shapes of the whole state.
      devices: of all hosts.
    """
    del template, devices
    return to_host(state)

  def gather(self, params: dict, devices: Sequence[jax.Device]) -> dict:
    """Returns parameters that are whole on every device; a collective."""
    del devices
    return params


REPLICATED = Replicated()


class Sharded(Replicated):
  """Every device keeps and updates its share of each parameter.

  A share of a leaf is a part of the rows that `pad_and_split` makes of it.
  """

  def __init__(self, shapes: dict):
    """Keeps the shapes of the whole parameters, nested as they are."""
    self._shapes = shapes

  def gather_params(self, params: dict) -> dict:
    def gather(share, like):
      rows = jax.lax.all_gather(share, AXIS, tiled=True)
      return unsplit(rows, like.shape)

    return jax.tree.map(gather, params, self._shapes)

  def mean_grads(self, gradients: dict) -> dict:
    devices = jax.lax.axis_size(AXIS)

    def reduce_scatter(x):
      rows = pad_and_split(x, devices)
      return jax.lax.psum_scatter(rows, AXIS, tiled=True) / devices

    return jax.tree.map(reduce_scatter, gradients)

  def mask_padding(self, updates: dict) -> dict:
    devices, device = jax.lax.axis_size(AXIS), jax.lax.axis_index(AXIS)

    def mask(share, like):
      if share.size * devices == like.size:
        return share
      place = device * share.size + jnp.arange(share.size)
      return jnp.where(place < like.size, share, 0)

    return jax.tree.map(mask, updates, self._shapes)

  def norm(self, tree: dict) -> jax.Array:
    return jnp.sqrt(jax.lax.psum(optax.tree.norm(tree, squared=True), AXIS))

  def axes(self, state):
    # One number for a whole tree of parameters: on several hosts jax.pmap
    # hashes its out_axes, and a dict has no hash.
    return jax.tree.map(
      lambda x: 0 if _is_param_tree(x) else None, state, is_leaf=_is_param_tree
    )

  def abstract(self, state, devices: int):
    def share(x):
      shape = (devices, *shard_shape(x.shape, devices))
      return jax.ShapeDtypeStruct(shape, x.dtype)

    return _map_state(share, lambda x: x, state)

  def put(self, state, devices: Sequence[jax.Device]):
    local = _local(devices)
    places = [devices.index(device) for device in local]

    def share(x):
      rows = pad_and_split(np.asarray(x), len(devices))
      shares = rows.reshape(len(devices), -1, *rows.shape[1:])
      return jax.device_put(shares[places], batch_sharding(local))

    return _map_state(share, lambda x: replicate(x, local), state)

  def fetch(self, state, template, devices: Sequence[jax.Device]):
    gather = _all_gather(tuple(devices))

    def whole(x, like):
      # One at a time: a device may lack the memory for all.
      return unsplit(to_host(gather(x)), like.shape)

    return _map_state(whole, lambda x, _: to_host(x), state, template)

  def gather(self, params: dict, devices: Sequence[jax.Device]) -> dict:
    return _gather_params(self, tuple(devices))(params)


@functools.cache
def _all_gather(devices: tuple[jax.Device, ...]) -> Callable:
  gather = functools.partial(jax.lax.all_gather, axis_name=AXIS, tiled=True)
  return pmap_step(gather, devices, out_axes=None)


@functools.cache
def _gather_params(
  sharding: Sharded, devices: tuple[jax.Device, ...]
) -> Callable:
  return pmap_step(sharding.gather_params, devices, out_axes=None)


def _local(devices: Sequence[jax.Device]) -> list[jax.Device]:
  host = jax.process_index()
  return [device for device in devices if device.process_index == host]


def _is_param_tree(part: object) -> bool:
  """Returns whether a part of a state has one array a parameter."""
  return isinstance(part, dict)


def _map_state(share: Callable, copy: Callable, state, *rest):
  """Maps `share` over trees of parameters, `copy` over all other leaves."""

  def map_part(part, *others):
    function = share if _is_param_tree(part) else copy
    return jax.tree.map(function, part, *others)

  return jax.tree.map(map_part, state, *rest, is_leaf=_is_param_tree)


def shard_shape(shape: tuple[int, ...], devices: int) -> tuple[int, ...]:
  """Returns the shape of one device's share of an array.

  The fewest leading axes whose product the devices divide are merged into one.
  The last two axes are tiled on a TPU: merging them moves the data, and XLA was
  seen to all-reduce such an array instead of reduce-scattering it. Where no
  product divides, the share is one of a flat array padded with zeros.
  """
  for axis in range(1, len(shape) + 1):
    rows = math.prod(shape[:axis])
    if rows % devices == 0:
      return (rows // devices, *shape[axis:])
  return (-(-math.prod(shape) // devices),)


def pad_and_split(x: jax.Array, devices: int) -> jax.Array:
  """Reshapes an array, of JAX or NumPy, to all shares one after the other."""
  rows, *rest = shard_shape(x.shape, devices)
  shape = (devices * rows, *rest)
  if padding := math.prod(shape) - x.size:
    pad = np.pad if isinstance(x, np.ndarray) else jnp.pad
    x = pad(x.reshape(-1), (0, padding))
  return x.reshape(shape)


def unsplit(rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Reverses `pad_and_split`."""
  return rows.reshape(-1)[: math.prod(shape)].reshape(shape)
