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

from mixer.training.losses import LOSSES, soft_labels

AXIS = "batch"


@struct.dataclass
class TrainState:
  """All that a run is at step n, which means after n updates.

  step: int32 [].
  params: nested dict of float32 arrays under the published names.
  opt_state: the optimizer's.
  average: exponential moving average of params, or None.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
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
  accumulation: micro-batches that a device's part of the batch is cut into.
  average_decay: of the moving average of parameters; 0 is off.
  seed: of mixing weights and drop masks.
  """

  loss: str
  num_classes: int
  label_smoothing: float = 0.0
  mixup: float = 0.0
  accumulation: int = 1
  average_decay: float = 0.0
  seed: int = 0


def create_state(
  params: dict, optimizer: optax.GradientTransformation, *, average: bool
) -> TrainState:
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    average=params if average else None,
  )


def train_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  *,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  objective: Objective,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Applies one update; runs inside an axis named "batch".

  Everything random is drawn from (seed, step) or (seed, step, index of the
  example in the global batch), so that neither the number of devices nor
  accumulation changes what is computed, beyond the order of sums.

  Args:
    state: the same on every device.
    batch: this device's part: "image" uint8 [n, h, w, 3], "label" int32 [n],
      "index" uint32 [n], the example's place in the global batch.
    model: its `apply` returns (logits, intermediates).
    optimizer: from `mixer.training.optimizer.make_optimizer`.
    objective: the loss and its regularisers.

  Returns:
    The next state, and float32 scalars: loss (mean over the global batch),
    gradient_norm (before clipping), update_norm, parameter_norm.
  """
  key = jax.random.key(objective.seed, impl="threefry2x32")
  key = jax.random.fold_in(key, state.step)
  mixup_key, drop_key = jax.random.split(key)
  batch = dict(batch)
  if objective.mixup:
    weight = jax.random.beta(mixup_key, objective.mixup, objective.mixup)
    batch["partner_image"] = roll_by_one(batch["image"])
    batch["partner_label"] = roll_by_one(batch["label"])
    weight = jnp.maximum(weight, 1 - weight)
  else:
    weight = None

  def mean_loss(params, part):
    images, labels = to_examples(part, objective, weight)
    fold = functools.partial(jax.random.fold_in, drop_key)
    drop_keys = jax.vmap(fold)(part["index"])
    logits, _ = model.apply(
      {"params": params}, images, train=True, drop_keys=drop_keys
    )
    return LOSSES[objective.loss](logits, labels).mean()

  loss, gradients = accumulate(
    jax.value_and_grad(mean_loss), state.params, batch, objective.accumulation
  )
  loss, gradients = jax.lax.pmean((loss, gradients), AXIS)

  updates, opt_state = optimizer.update(
    gradients, state.opt_state, state.params
  )
  params = optax.apply_updates(state.params, updates)
  average = state.average
  if average is not None:
    average = optax.incremental_update(
      params, average, 1 - objective.average_decay
    )
  state = TrainState(state.step + 1, params, opt_state, average)
  metrics = {
    "loss": loss,
    "gradient_norm": optax.tree.norm(gradients),
    "update_norm": optax.tree.norm(updates),
    "parameter_norm": optax.tree.norm(params),
  }
  return state, metrics


def bind_to_devices(step, devices: Sequence[jax.Device]):
  """Runs a step on every device, on its own part; the state is donated."""
  return jax.pmap(step, axis_name=AXIS, devices=devices, donate_argnums=0)


def normalise(images: jax.Array) -> jax.Array:
  """uint8 0..255 to float32 -1..1, the authors' value range."""
  return images.astype(jnp.float32) / 127.5 - 1


def to_examples(part, objective: Objective, weight):
  """uint8 images and int labels to what the model and the loss take.

  With mixup (arXiv 1710.09412) an example is `weight` of itself and the rest
  of its partner.

  Returns:
    float32 [n, h, w, 3] in [-1, 1] and float32 [n, classes].
  """

  def labels(x):
    return soft_labels(x, objective.num_classes, objective.label_smoothing)

  if weight is None:
    return normalise(part["image"]), labels(part["label"])
  return (
    weight * normalise(part["image"])
    + (1 - weight) * normalise(part["partner_image"]),
    weight * labels(part["label"])
    + (1 - weight) * labels(part["partner_label"]),
  )


def roll_by_one(x: jax.Array) -> jax.Array:
  """numpy.roll(x, 1, axis=0) of the global batch, whose parts the devices hold.

  The authors roll inside each device's part, which makes the result depend on
  the number of devices.
  """
  devices = jax.lax.axis_size(AXIS)
  ring = [(i, (i + 1) % devices) for i in range(devices)]
  first = jax.lax.ppermute(x[-1:], AXIS, ring)
  return jnp.concatenate([first, x[:-1]])


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
