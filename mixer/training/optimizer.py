# SPDX-License-Identifier: Apache-2.0
"""Schedules and optimizers in the form that the authors trained with.

One update of parameter p at step s, with g the clipped gradient:

  p <- p - schedule(s) * (learning_rate * multiplier * direction(g) + decay * p)

Weight decay is decoupled: it is multiplied by the schedule, which runs from 0
to 1 and down again, and not by the learning rate. What the paper's table 4
calls weight decay 0.1 is AdamW's coefficient, so decay = 0.1 * learning_rate.
"""

import re

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("linear", "cosine", "constant")
OPTIMIZERS = ("adam", "momentum")


def make_schedule(
  *, kind: str, total_steps: int, warmup_steps: int = 0, end: float = 0.0
) -> optax.Schedule:
  """Makes the factor on the peak learning rate, as a function of the step.

  Args:
    kind: what follows the warm-up, one of SCHEDULES.
    total_steps: updates of the whole run.
    warmup_steps: updates of the linear rise from 0; the first update has
      factor 0.
    end: the factor that a linear schedule ends at.
  """
  steps = total_steps - warmup_steps
  decay = {
    "linear": lambda: optax.linear_schedule(1.0, end, steps),
    "cosine": lambda: optax.cosine_decay_schedule(1.0, steps),
    "constant": lambda: optax.constant_schedule(1.0),
  }[kind]()
  if not warmup_steps:
    return decay
  warmup = optax.linear_schedule(0.0, 1.0, warmup_steps)
  return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(
  params: dict,
  schedule: optax.Schedule,
  *,
  name: str = "adam",
  learning_rate: float,
  weight_decay: float = 0.0,
  clip_norm: float | None = None,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  momentum: float = 0.9,
  accumulator_dtype: str = "float32",
  multipliers: tuple[tuple[str, float], ...] = (),
) -> optax.GradientTransformation:
  """Makes the optimizer for these parameters.

  Args:
    params: nested dict of arrays or shapes.
    schedule: the factor from `make_schedule`.
    name: one of OPTIMIZERS.
    learning_rate: the peak.
    weight_decay: decoupled, on kernels only, times the schedule, not times the
      learning rate.
    clip_norm: largest global norm of the gradients; None or 0 leaves them.
    b1, b2, eps: of Adam.
    momentum: of SGD with (heavy-ball) momentum.
    accumulator_dtype: of the first moment, "float32" or "bfloat16".
    multipliers: (pattern, factor) pairs on the learning rate; the first whose
      regular expression matches the whole name, such as "head/kernel", holds,
      and a name that none matches has 1. Factor 0 freezes: no update, no
      decay, no part in the gradients' norm.

  Raises:
    ValueError: a pattern matches no parameter, or everything is frozen.
  """
  factors = lr_multiplier_tree(params, multipliers)
  if name == "adam":
    direction = optax.scale_by_adam(b1, b2, eps, mu_dtype=accumulator_dtype)
  else:
    direction = optax.trace(momentum, accumulator_dtype=accumulator_dtype)

  def is_kernel(path, leaf):
    return path[-1].key == "kernel"

  def decayed(params):
    return jax.tree.map_with_path(is_kernel, params)

  chain = [clip_by_global_norm(clip_norm)] if clip_norm else []
  chain += [direction, optax.scale(learning_rate)]
  if multipliers:
    chain += [scale_by_tree(factors)]
  if weight_decay:
    chain += [optax.add_decayed_weights(weight_decay, decayed)]
  chain += [optax.scale_by_schedule(schedule), optax.scale(-1.0)]
  trained = optax.chain(*chain)
  if all(jax.tree.leaves(factors)):
    return trained
  # Not optax.partition, whose state is a dict that is none of parameters.
  return optax.chain(
    optax.masked(trained, jax.tree.map(lambda x: x != 0, factors)),
    optax.masked(optax.set_to_zero(), jax.tree.map(lambda x: x == 0, factors)),
  )


def lr_multiplier_tree(
  params: dict, multipliers: tuple[tuple[str, float], ...]
) -> dict:
  """Gives every parameter its factor on the learning rate.

  Raises:
    ValueError: a pattern matches no parameter, or everything is frozen.
  """
  unused = dict.fromkeys(pattern for pattern, _ in multipliers)
  names = []

  def factor(path, _):
    name = "/".join(key.key for key in path)
    names.append(name)
    for pattern, value in multipliers:
      if re.fullmatch(pattern, name):
        unused.pop(pattern, None)
        return value
    return 1.0

  factors = jax.tree.map_with_path(factor, params)
  if unused:
    raise ValueError(
      f"optimizer.multipliers: {next(iter(unused))!r} is the first match of no "
      f"parameter. Parameters have names such as {names[0]!r} and "
      f"{names[-1]!r}."
    )
  if not any(jax.tree.leaves(factors)):
    raise ValueError(
      f"optimizer.multipliers = {multipliers} freezes every parameter: give "
      "what should train a factor above 0."
    )
  return factors


def clip_by_global_norm(
  largest: float,
) -> optax.GradientTransformationExtraArgs:
  """optax.clip_by_global_norm, with the norm as an argument of `update`.

  A device that has only a share of the gradients cannot know theirs by itself.
  """

  def update(updates, state, params=None, *, norm=optax.tree.norm, **others):
    del params, others
    length = norm(updates)
    is_short = length < largest
    clipped = jax.tree.map(
      lambda x: jnp.where(is_short, x, x / length * largest), updates
    )
    return clipped, state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def scale_by_tree(factors: dict) -> optax.GradientTransformation:
  """Multiplies each update by its own factor."""

  def update(updates, params):
    del params
    return jax.tree.map(
      # Frozen parameters come as optax.MaskedNode, which has no factor.
      lambda factor, x: x if isinstance(x, optax.MaskedNode) else factor * x,
      factors,
      updates,
    )

  return optax.stateless(update)
