# SPDX-License-Identifier: Apache-2.0
"""From a plan to a state on the devices, and from there to the host."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from mixer.data.device_feed import device_sharding
from mixer.plan import Plan
from mixer.training.checkpoint import Checkpoints
from mixer.training.mixing import AXIS
from mixer.training.optimizer import make_optimizer, make_schedule
from mixer.training.sharding import (
  REPLICATED,
  Replicated,
  Sharded,
  from_rows,
  share_shape,
  to_rows,
)
from mixer.training.step import (
  Objective,
  TrainState,
  bind_to_devices,
  create_state,
  train_step,
)
from mixer.xla import prepare_xla

CHECKPOINTS = "checkpoints"  # in a run's folder


def choose_operations(config: ConfigDict):
  """Sees to what XLA computes by, before jax looks for devices."""
  prepare_xla(deterministic=bool(config.get("deterministic_operations")))


def own_devices() -> list[jax.Device]:
  """Those of this host, in the order of `all_devices`."""
  here = jax.process_index()
  return [x for x in all_devices() if x.process_index == here]


def all_devices() -> list[jax.Device]:
  """The devices of all hosts, those of a host beside one another.

  A host feeds its own, so that what they get is a slice of the global batch.
  """
  return sorted(jax.devices(), key=lambda x: (x.process_index, x.id))


def create_optimizer(
  plan: Plan,
) -> tuple[optax.Schedule, optax.GradientTransformation]:
  config = plan.config
  schedule = make_schedule(
    kind=config.schedule.kind,
    total_steps=plan.total_steps,
    warmup_steps=plan.warmup_steps,
    end=config.schedule.end,
  )
  return schedule, make_optimizer(
    plan.abstract_params, schedule, **config.optimizer
  )


def create_update(
  plan: Plan,
  optimizer: optax.GradientTransformation,
  devices: Sequence[jax.Device],
) -> Callable:
  """The plan's `train_step`, on all devices."""
  config = plan.config
  objective = Objective(
    loss=config.loss,
    num_classes=config.model.num_classes,
    label_smoothing=config.label_smoothing,
    mixup=config.mixup,
    cutmix=config.cutmix,
    cutmix_share=config.cutmix_share,
    accumulation=plan.accumulation,
    average_decay=config.average_decay,
    seed=config.seed,
  )
  step = functools.partial(
    train_step,
    model=plan.model,
    optimizer=optimizer,
    objective=objective,
    sharding=plan_sharding(plan),
  )
  axes = state_axes(plan, optimizer) if config.shard_state else None
  return bind_to_devices(step, devices, axes)


def state_axes(
  plan: Plan, optimizer: optax.GradientTransformation
) -> TrainState:
  """0 for trees of parameters, of which devices have shares; None for others.

  A tree of parameters has one number, because jax.pmap on several hosts hashes
  what it is told of its outputs, and a dict has no hash.
  """
  return jax.tree.map(
    lambda x: 0 if is_of_parameters(x) else None,
    abstract_state(plan, optimizer),
    is_leaf=is_of_parameters,
  )


def is_of_parameters(part: object) -> bool:
  """Whether a part of a state has an array for each of the parameters."""
  return isinstance(part, dict)


def plan_sharding(plan: Plan) -> Replicated | Sharded:
  """What of the state a device of the plan's run has."""
  if plan.config.shard_state:
    return Sharded(plan.abstract_params)
  return REPLICATED


def initial_state(
  plan: Plan, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first update, on the host."""

  def init():
    images = jnp.zeros((1, *plan.image_size, plan.model.image_channels))
    key = jax.random.key(plan.config.seed, impl="threefry2x32")
    return plan.model.init(key, images)["params"]

  params = plan.initial_params
  if params is None:
    params = jax.jit(init)()
  create = functools.partial(
    create_state, optimizer=optimizer, average=plan.config.average_decay > 0
  )
  return jax.device_get(jax.jit(create)(params))


def abstract_state(
  plan: Plan, optimizer: optax.GradientTransformation
) -> TrainState:
  """Shapes and dtypes of the whole state, as checkpoints hold it."""
  create = functools.partial(
    create_state, optimizer=optimizer, average=plan.config.average_decay > 0
  )
  return jax.eval_shape(create, plan.abstract_params)


def abstract_device_state(
  plan: Plan,
  optimizer: optax.GradientTransformation,
  devices: Sequence[jax.Device],
) -> TrainState:
  """Shapes and dtypes that the update takes: of shares [devices, ...]."""
  n = len(devices)

  def share(x):
    return jax.ShapeDtypeStruct((n, *share_shape(x.shape, n)), x.dtype)

  return _map_state(plan, share, lambda x: x, abstract_state(plan, optimizer))


def abstract_device_batch(
  plan: Plan, devices: Sequence[jax.Device]
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of the batch that the update takes."""
  rows = len(devices), plan.config.batch // len(devices)
  image = (*plan.image_size, plan.model.image_channels)
  return {
    "image": jax.ShapeDtypeStruct((*rows, *image), jnp.uint8),
    "label": jax.ShapeDtypeStruct(rows, jnp.int32),
    "index": jax.ShapeDtypeStruct(rows, jnp.uint32),
  }


def put_state(
  plan: Plan, state: TrainState, devices: Sequence[jax.Device]
) -> TrainState:
  """Puts a state on this host's devices, as the update takes it.

  Args:
    plan: says what is sharded.
    state: NumPy arrays, whole and on every host the same.
    devices: those of all hosts.
  """
  here = jax.process_index()
  own = [i for i, device in enumerate(devices) if device.process_index == here]
  local = [devices[i] for i in own]

  def share(x):
    rows = to_rows(np.asarray(x), len(devices))
    shares = rows.reshape(len(devices), -1, *rows.shape[1:])
    return jax.device_put(shares[own], device_sharding(local))

  return _map_state(plan, share, lambda x: replicate(x, local), state)


def get_state(
  plan: Plan, state: TrainState, devices: Sequence[jax.Device]
) -> TrainState:
  """Takes the whole state to the host, as NumPy arrays.

  Where it is sharded, the devices of all hosts have to talk to each other: all
  hosts call this after the same update.
  """
  if not plan.config.shard_state:
    return to_host(state)
  gather = gather_shares(tuple(devices))

  def whole(x, like):
    # One after the other: the devices may lack the room for all at once.
    return from_rows(to_host(gather(x)), like.shape)

  _, optimizer = create_optimizer(plan)
  template = abstract_state(plan, optimizer)
  return _map_state(plan, whole, lambda x, _: to_host(x), state, template)


def create_gathering(
  plan: Plan, devices: Sequence[jax.Device]
) -> Callable[[dict], dict]:
  """From parameters as the update has them to a whole copy on every device.

  Where they are sharded, all hosts call it after the same update.
  """
  if not plan.config.shard_state:
    return lambda params: params
  whole = plan_sharding(plan).whole
  return jax.pmap(whole, axis_name=AXIS, out_axes=None, devices=devices)


@functools.cache
def gather_shares(devices: tuple[jax.Device, ...]) -> Callable:
  """Gives every device the shares of all: [local, share] to [whole]."""
  gather = functools.partial(jax.lax.all_gather, axis_name=AXIS, tiled=True)
  return jax.pmap(gather, axis_name=AXIS, out_axes=None, devices=devices)


def _map_state(
  plan: Plan, share: Callable, copy: Callable, state: TrainState, *rest
) -> TrainState:
  """Maps leaves of which devices have shares apart from those they all have."""

  def map_part(part, *others):
    is_shared = plan.config.shard_state and is_of_parameters(part)
    return jax.tree.map(share if is_shared else copy, part, *others)

  return jax.tree.map(map_part, state, *rest, is_leaf=is_of_parameters)


def replicate(tree, devices: Sequence[jax.Device]):
  """Puts a copy on every device, as jax.pmap takes it with in_axes=None."""
  mesh = device_sharding(devices).mesh
  # From NumPy arrays, because of jax's it might pass on those that are there,
  # which the update would then give away.
  return jax.device_put(
    jax.tree.map(np.asarray, tree), NamedSharding(mesh, PartitionSpec())
  )


def to_host(tree):
  """Takes one device's copy of a replicated tree, as NumPy arrays.

  Copied, because the devices may reuse the memory at the next update.
  """
  return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data), tree)


def open_checkpoints(plan: Plan, folder: Path) -> Checkpoints:
  options = plan.config.checkpoint
  return Checkpoints(
    folder / CHECKPOINTS,
    keep=options.keep,
    keep_every_steps=plan.milestone_every,
    best="min" if options.best.endswith("/loss") else "max",
  )
