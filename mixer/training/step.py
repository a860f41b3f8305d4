# SPDX-License-Identifier: Apache-2.0
"""The training state, one update of it, and its losses.

`train_step` is a pure function of the state and one device's part of the batch;
`sharding.pmap_step` runs it on all devices, over the axis "batch". In order:
  1. draw the step's mixup or CutMix (`mixup.sample_mixup`);
  2. mix the images and labels, compute loss and gradients (`mean_loss`), in
     micro-batches (`accumulate`), perturbed if SAM is on (`sam`);
  3. average both over the devices;
  4. update parameters and EMA (`apply_gradients`). Clipping, the optimizer, the
     learning rate and weight decay are one optax transformation
     (`optimizer.make_optimizer`).
Imports jax, flax and optax only.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from mixer.models.layers import ScaledKeys
from mixer.training import sam
from mixer.training.mixup import MixupWeights, add_partners, sample_mixup
from mixer.training.semantic_softmax import Hierarchy, semantic_softmax
from mixer.training.sharding import AXIS, REPLICATED, Replicated


@struct.dataclass
class TrainState:
  """The whole state of a run at step n, that is after n updates.

  In a run that shards its state, each device holds its share of params,
  opt_state and average.

  step: int32 [].
  params: nested dict of float32 arrays under the published names.
  opt_state: the optimizer's state.
  skipped: int32 [], updates without effect because loss or gradients were not
    finite; skipped_in_a_row: int32 [], how many of them were the latest ones.
  average: exponential moving average (EMA) of params, or None.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  skipped: jax.Array
  skipped_in_a_row: jax.Array
  average: dict | None = None

  @property
  def eval_params(self) -> dict:
    """The parameters to evaluate and to publish: the EMA, if there is one."""
    return self.params if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Options of the update that are not the optimizer's.

  loss: "softmax", "sigmoid", or the hierarchy of a semantic softmax.
  num_classes: width of the labels.
  label_smoothing: share of the uniform distribution in the labels.
  mixup: p of Beta(p, p), from which a step's mixup weight is drawn; 0 is off.
  cutmix: p of Beta(p, p), from which a step's box is drawn; 0 is off.
  cutmix_share: share of the steps that take CutMix, where mixup is on as well.
  accumulation: micro-batches that a device's part of the batch is cut into.
  ema_decay: decay of the EMA of parameters; 0 is off.
  sam_radius: SAM's rho as a function of the step, from `sam.make_radius`; every
    micro-batch is perturbed by itself. None: no SAM.
  sam_alpha: GSAM's alpha; 0 is SAM.
  seed: of mixup weights and drop masks.
  drop_scale: factor on the model's drop rates by step; None: 1.
  temperature: of `distillation_loss`, if there is a teacher.
  teacher_weight: share of that loss; the labels' loss has the rest.
  """

  loss: str | Hierarchy
  num_classes: int
  label_smoothing: float = 0.0
  mixup: float = 0.0
  cutmix: float = 0.0
  cutmix_share: float = 0.5
  accumulation: int = 1
  ema_decay: float = 0.0
  sam_radius: optax.Schedule | None = None
  sam_alpha: float = 0.0
  seed: int = 0
  drop_scale: optax.Schedule | None = None
  temperature: float = 1.0
  teacher_weight: float = 1.0


def create_state(
  params: dict, optimizer: optax.GradientTransformation, *, average: bool
) -> TrainState:
  """Returns the state at step 0; `average` says whether to keep an EMA."""
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
  teacher_params: dict | None = None,
  *,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  objective: LossConfig,
  sharding: Replicated = REPLICATED,
  teacher: Callable[[dict, jax.Array], jax.Array] | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Applies one update; runs inside an axis named "batch".

  All randomness is drawn from (seed, step) or (seed, step, index of the example
  in the global batch), so that neither the number of devices nor accumulation
  changes the result, beyond the order of sums. With SAM the size of a
  micro-batch does, and the plan fixes it.

  An update whose loss or gradients are not finite has no effect: parameters,
  moments and EMA stay as they are, and the step counts all the same.

  Args:
    state: the same on every device, but for shares.
    batch: this device's part: "image" uint8 [n, h, w, 3], "label" int32 [n],
      "index" uint32 [n], the example's place in the global batch.
    teacher_params: the teacher's parameters, which no update changes.
    model: its `apply` returns (logits, intermediates).
    optimizer: from `mixer.training.optimizer.make_optimizer`.
    objective: the loss and its regularisers.
    sharding: `Replicated`, or `Sharded` where a device holds a share.
    teacher: maps its parameters and the student's images, after mixup, to
      logits; None trains on labels only.

  Returns:
    The next state, and float32 scalars: loss (mean over the global batch),
    gradient_norm (before clipping), update_norm (0 where it was skipped),
    parameter_norm (after the update); int32 skipped and skipped_in_a_row, as in
    the state. With SAM also float32 sharpness, the perturbed loss minus `loss`;
    with a teacher label_loss and teacher_loss, whose weighted mean is `loss`.
  """
  loss, others, gradients = mean_gradients(
    state,
    batch,
    teacher_params,
    model=model,
    objective=objective,
    sharding=sharding,
    teacher=teacher,
  )
  # 4. Optimizer and EMA.
  state, metrics = apply_gradients(
    state,
    loss,
    gradients,
    optimizer=optimizer,
    ema_decay=objective.ema_decay,
    sharding=sharding,
  )
  return state, metrics | others


def mean_gradients(
  state: TrainState,
  batch: dict[str, jax.Array],
  teacher_params: dict | None = None,
  *,
  model: nn.Module,
  objective: LossConfig,
  sharding: Replicated,
  teacher: Callable[[dict, jax.Array], jax.Array] | None,
  by_example: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
  """Computes an update's loss and gradients, averaged over devices.

  Arguments are those of `train_step`.

  Args:
    by_example: adds "example_losses", float32 [global batch], to the metrics.

  Returns:
    Loss, further metrics, and the gradients for this device's share.
  """
  # 1. Mixup and CutMix, the same for the whole global batch.
  mixup_key, drop_key = step_keys(objective.seed, state.step)
  mixup = sample_mixup(
    mixup_key,
    batch["image"].shape[1:3],
    mixup=objective.mixup,
    cutmix=objective.cutmix,
    cutmix_share=objective.cutmix_share,
  )
  if mixup is not None:
    batch = add_partners(batch)

  # 2. Loss and gradients of this device's part of the batch.
  def mean_loss(params, part):
    images, labels = apply_mixup(
      part,
      mixup,
      num_classes=objective.num_classes,
      label_smoothing=objective.label_smoothing,
    )
    fold = functools.partial(jax.random.fold_in, drop_key)
    drop_keys = jax.vmap(fold)(part["index"])
    if objective.drop_scale is not None:
      drop_keys = ScaledKeys(drop_keys, objective.drop_scale(state.step))
    logits, _ = model.apply(
      {"params": params}, images, train=True, drop_keys=drop_keys
    )
    losses, parts = example_losses(objective.loss, logits, labels), {}
    if teacher is not None:
      distances = distillation_loss(
        logits, teacher(teacher_params, images), objective.temperature
      )
      parts = {"label_loss": losses.mean(), "teacher_loss": distances.mean()}
      share = objective.teacher_weight
      losses = (1 - share) * losses + share * distances
    if by_example:  # sums, in the mean over micro-batches and devices
      total = batch["index"].size * jax.lax.axis_size(AXIS)
      rows = jnp.zeros(total).at[part["index"]].set(losses)
      parts["example_losses"] = rows * (total / losses.size)
    return losses.mean(), parts

  gradient = jax.value_and_grad(mean_loss, has_aux=True)
  if objective.sam_radius is not None:
    rho = objective.sam_radius(state.step)
    gradient = sam.sam_gradient(gradient, rho, objective.sam_alpha)
  losses, gradients = accumulate(
    gradient,
    sharding.gather_params(state.params),
    batch,
    objective.accumulation,
  )
  # 3. Means over the devices.
  (loss, others), gradients = (
    jax.lax.pmean(losses, AXIS),
    sharding.mean_grads(gradients),
  )
  return loss, others, gradients


def apply_gradients(
  state: TrainState,
  loss: jax.Array,
  gradients: dict,
  *,
  optimizer: optax.GradientTransformation,
  ema_decay: float,
  sharding: Replicated,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Applies loss and gradients that are averaged over devices.

  Arguments and results are those of `train_step`.
  """
  gradient_norm = sharding.norm(gradients)
  # Loss and gradients are read anyway; a look at the new parameters would take
  # one more pass over all of them.
  skip = ~(jnp.isfinite(loss) & jnp.isfinite(gradient_norm))

  def keep_if_skipped(old, new):
    def select(old, new):
      # The learning rate's count follows the step, skipped or not.
      return new if is_schedule(new) else jnp.where(skip, old, new)

    return jax.tree.map(select, old, new, is_leaf=is_schedule)

  # Clips, scales by the learning rate of this step, and decays weights.
  updates, opt_state = optimizer.update(
    gradients, state.opt_state, state.params, norm=sharding.norm
  )
  updates = sharding.mask_padding(updates)
  params, opt_state = keep_if_skipped(
    (state.params, state.opt_state),
    (optax.apply_updates(state.params, updates), opt_state),
  )
  change = jax.tree.map(jnp.subtract, params, state.params)
  metrics = {
    "loss": loss,
    "gradient_norm": gradient_norm,
    # The norm of `updates` would make the compiler write them to memory.
    "update_norm": sharding.norm(change),
    "parameter_norm": sharding.norm(params),
  }
  average = state.average  # EMA
  if average is not None:
    moved = optax.incremental_update(params, average, 1 - ema_decay)
    average = keep_if_skipped(average, moved)
  counts = {
    "skipped": state.skipped + skip,
    "skipped_in_a_row": jnp.where(skip, state.skipped_in_a_row + 1, 0),
  }
  state = TrainState(
    state.step + 1, params, opt_state, average=average, **counts
  )
  return state, metrics | counts


def is_schedule(state: object) -> bool:
  """Returns whether a part of the optimizer's state counts learning rates."""
  return isinstance(state, optax.ScaleByScheduleState)


def step_keys(seed: int, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
  """Returns a step's PRNG keys for mixup and for drop masks."""
  # Threefry, because it draws the same on every kind of device.
  key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
  mixup_key, drop_key = jax.random.split(key)
  return mixup_key, drop_key


def accumulate(value_and_grad, params, batch, parts: int):
  """Averages values and gradients over `parts` equal micro-batches."""
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


def apply_mixup(
  batch: dict[str, jax.Array],
  mixup: MixupWeights | None,
  *,
  num_classes: int,
  label_smoothing: float,
) -> tuple[jax.Array, jax.Array]:
  """Turns uint8 images and int labels into the model's and the loss's inputs.

  Args:
    batch: "image" uint8 [n, h, w, 3] and "label" int32 [n]; with mixup,
      "partner_image" and "partner_label" as well.
    mixup: from `sample_mixup`; None leaves the examples as they are.
    num_classes: width of the labels.
    label_smoothing: share of the uniform distribution in the labels.

  Returns:
    float32 [n, h, w, 3] in [-1, 1] and float32 [n, num_classes].
  """

  def labels(x):
    return soft_labels(x, num_classes, label_smoothing)

  images, targets = normalise(batch["image"]), labels(batch["label"])
  if mixup is None:
    return images, targets
  partners = normalise(batch["partner_image"])
  return (
    mixup.pixels * images + (1 - mixup.pixels) * partners,
    mixup.label * targets + (1 - mixup.label) * labels(batch["partner_label"]),
  )


def normalise(images: jax.Array) -> jax.Array:
  """Scales uint8 0..255 to float32 -1..1, the authors' value range."""
  return images.astype(jnp.float32) / 127.5 - 1


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Binary cross entropies in nats, summed over classes, as the authors train.

  A mean over classes, the default elsewhere, would be this divided by the
  number of classes, and the published learning rates would not hold.
  """
  return optax.sigmoid_binary_cross_entropy(logits, labels).sum(axis=-1)


def distillation_loss(
  student: jax.Array, teacher: jax.Array, temperature: float
) -> jax.Array:
  """KL(teacher || student) in nats: T^2 sum over classes of p log(p / q).

  p and q are the softmax of the teacher's and the student's logits divided by
  the temperature T. This is the distance "kl" of big_vision's proj/distill
  ("function matching", arXiv 2106.05237), which has the factor T^2 of Hinton et
  al. (arXiv 1503.02531): gradients keep their size at any T.

  Args:
    student, teacher: logits, float32 [n, classes].
    temperature: T, above 0.

  Returns:
    float32 [n].
  """
  log_p = jax.nn.log_softmax(teacher / temperature)
  log_q = jax.nn.log_softmax(student / temperature)
  kl = optax.losses.kl_divergence_with_log_targets(log_q, log_p)
  return temperature**2 * kl


LOSSES = {
  "softmax": optax.softmax_cross_entropy,
  "sigmoid": sigmoid_cross_entropy,
}


def example_losses(
  loss: str | Hierarchy, logits: jax.Array, labels: jax.Array
) -> jax.Array:
  """Returns each example's loss; logits and labels float32 [n, classes]."""
  if isinstance(loss, Hierarchy):
    return semantic_softmax(logits, labels, loss)
  return LOSSES[loss](logits, labels)


def soft_labels(
  labels: jax.Array, num_classes: int, label_smoothing: float = 0.0
) -> jax.Array:
  """One-hot rows, mixed with the uniform distribution.

  Args:
    labels: int32 [n] in 0..num_classes - 1.
    num_classes: width of a row.
    label_smoothing: share of the uniform distribution, 0 to 1.

  Returns:
    float32 [n, num_classes], rows that sum to 1.
  """
  rows = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  return rows * (1 - label_smoothing) + label_smoothing / num_classes
