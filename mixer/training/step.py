# SPDX-License-Identifier: Apache-2.0
"""The state of a run, and one update of it.

`train_step` is pure and knows one device's part of the batch; jax.pmap binds
it to the devices over the axis "batch". Imports with jax, flax and optax alone.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from mixer.training.losses import LOSSES
from mixer.training.mixing import AXIS, add_partners, draw_mixing, to_examples
from mixer.training.sharding import REPLICATED, Replicated, Sharded


@struct.dataclass
class TrainState:
  """All that a run is at step n, which means after n updates.

  On the devices, each one's share of params, opt_state and average, if the run
  shards its state.

  step: int32 [].
  params: nested dict of float32 arrays under the published names.
  opt_state: the optimizer's.
  skipped: int32 [], updates without effect, because loss or gradients were not
    finite; skipped_in_a_row: int32 [], those at the end.
  average: exponential moving average of params, or None.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  skipped: jax.Array
  skipped_in_a_row: jax.Array
  average: dict | None = None

  @property
  def eval_params(self) -> dict:
    """The parameters to evaluate and to publish."""
    return self.params if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a step minimises, and how.

  loss: "softmax" or "sigmoid".
  num_classes: width of the labels.
  label_smoothing: share of the uniform distribution in the labels.
  mixup: p of Beta(p, p), from which a step's mixing weight is drawn; 0 is off.
  cutmix: p of Beta(p, p), from which a step's box is drawn; 0 is off.
  cutmix_share: of the steps that take CutMix, where mixup is on as well.
  accumulation: micro-batches that a device's part of the batch is cut into.
  average_decay: of the moving average of parameters; 0 is off.
  seed: of mixing weights and drop masks.
  """

  loss: str
  num_classes: int
  label_smoothing: float = 0.0
  mixup: float = 0.0
  cutmix: float = 0.0
  cutmix_share: float = 0.5
  accumulation: int = 1
  average_decay: float = 0.0
  seed: int = 0


def create_state(
  params: dict, optimizer: optax.GradientTransformation, *, average: bool
) -> TrainState:
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    step=zero,
    params=params,
    opt_state=optimizer.init(params),
    skipped=zero,
    skipped_in_a_row=zero,
    average=params if average else None,
  )


def train_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  *,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  objective: Objective,
  sharding: Replicated | Sharded = REPLICATED,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Applies one update; runs inside an axis named "batch".

  Everything random is drawn from (seed, step) or (seed, step, index of the
  example in the global batch), so that neither the number of devices nor
  accumulation changes what is computed, beyond the order of sums.

  An update whose loss or gradients are not finite has no effect: parameters,
  moments and average stay as they are, and the step counts all the same.

  Args:
    state: the same on every device, but for shares.
    batch: this device's part: "image" uint8 [n, h, w, 3], "label" int32 [n],
      "index" uint32 [n], the example's place in the global batch.
    model: its `apply` returns (logits, intermediates).
    optimizer: from `mixer.training.optimizer.make_optimizer`.
    objective: the loss and its regularisers.
    sharding: what of the state this device has.

  Returns:
    The next state, and float32 scalars: loss (mean over the global batch),
    gradient_norm (before clipping), update_norm (0 where it was skipped),
    parameter_norm (after it); int32 skipped and skipped_in_a_row, as in the
    state.
  """
  mixing_key, drop_key = step_keys(objective.seed, state.step)
  mixing = draw_mixing(
    mixing_key,
    batch["image"].shape[1:3],
    mixup=objective.mixup,
    cutmix=objective.cutmix,
    cutmix_share=objective.cutmix_share,
  )
  if mixing is not None:
    batch = add_partners(batch)

  def mean_loss(params, part):
    images, labels = to_examples(
      part,
      mixing,
      num_classes=objective.num_classes,
      label_smoothing=objective.label_smoothing,
    )
    fold = functools.partial(jax.random.fold_in, drop_key)
    drop_keys = jax.vmap(fold)(part["index"])
    logits, _ = model.apply(
      {"params": params}, images, train=True, drop_keys=drop_keys
    )
    return LOSSES[objective.loss](logits, labels).mean()

  loss, gradients = accumulate(
    jax.value_and_grad(mean_loss),
    sharding.whole(state.params),
    batch,
    objective.accumulation,
  )
  loss, gradients = jax.lax.pmean(loss, AXIS), sharding.mean(gradients)
  return apply_gradients(
    state,
    loss,
    gradients,
    optimizer=optimizer,
    average_decay=objective.average_decay,
    sharding=sharding,
  )


def apply_gradients(
  state: TrainState,
  loss: jax.Array,
  gradients: dict,
  *,
  optimizer: optax.GradientTransformation,
  average_decay: float,
  sharding: Replicated | Sharded,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Makes the next state of the devices' averaged loss and gradients.

  Args:
    state: as `train_step` takes it.
    loss: float32 [].
    gradients: as `sharding` gives them.
    optimizer: as `train_step` takes it.
    average_decay: of the moving average of parameters.
    sharding: as `train_step` takes it.

  Returns:
    As `train_step`.
  """
  gradient_norm = sharding.norm(gradients)
  # Of what is read anyway: to look at the new parameters first would take one
  # more pass over all of them.
  skip = ~(jnp.isfinite(loss) & jnp.isfinite(gradient_norm))

  def keep_if_skipped(old, new):
    def keep(old, new):
      # Where the schedule stands is the step, whatever comes of it.
      return new if is_schedule(new) else jnp.where(skip, old, new)

    return jax.tree.map(keep, old, new, is_leaf=is_schedule)

  updates, opt_state = optimizer.update(
    gradients, state.opt_state, state.params, norm=sharding.norm
  )
  updates = sharding.clear_padding(updates)
  params, opt_state = keep_if_skipped(
    (state.params, state.opt_state),
    (optax.apply_updates(state.params, updates), opt_state),
  )
  change = jax.tree.map(jnp.subtract, params, state.params)
  metrics = {
    "loss": loss,
    "gradient_norm": gradient_norm,
    # Not of `updates`, which the compiler would then write to memory.
    "update_norm": sharding.norm(change),
    "parameter_norm": sharding.norm(params),
  }
  average = state.average
  if average is not None:
    followed = optax.incremental_update(params, average, 1 - average_decay)
    average = keep_if_skipped(average, followed)
  counts = {
    "skipped": state.skipped + skip,
    "skipped_in_a_row": jnp.where(skip, state.skipped_in_a_row + 1, 0),
  }
  state = TrainState(
    state.step + 1, params, opt_state, average=average, **counts
  )
  return state, metrics | counts


def is_schedule(state: object) -> bool:
  return isinstance(state, optax.ScaleByScheduleState)


def step_keys(seed: int, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
  """The randomness of a step's mixing, and that of its drop masks."""
  # Threefry, because the same on every kind of device.
  key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
  mixing_key, drop_key = jax.random.split(key)
  return mixing_key, drop_key


def bind_to_devices(step, devices: Sequence[jax.Device], state_axes=None):
  """Runs a step on every device, on its own part; the state is donated.

  Args:
    step: of a state and one device's part of a batch.
    devices: of all hosts.
    state_axes: 0 where each device has a row of an array of the state, None
      where all have the whole; of all arrays, or a tree of it.
  """
  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(state_axes, 0),
    out_axes=(state_axes, None),
    devices=devices,
    donate_argnums=0,
  )


def accumulate(value_and_grad, params, batch, parts: int):
  """Averages values and gradients over equal parts of the batch, in turn."""
  if parts == 1:
    return value_and_grad(params, batch)
  batch = jax.tree.map(
    lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch
  )

  def add(total, part):
    return jax.tree.map(jnp.add, total, value_and_grad(params, part)), None

  shapes = jax.eval_shape(
    value_and_grad, params, jax.tree.map(lambda x: x[0], batch)
  )
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  total, _ = jax.lax.scan(add, zeros, batch)
  return jax.tree.map(lambda x: x / parts, total)
