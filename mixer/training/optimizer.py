# SPDX-License-Identifier: Apache-2.0
"""Schedules and optimizers in the form that the authors trained with.

One update of parameter p at step s, with g the clipped gradient:

  p <- p - schedule(s) * (learning_rate * multiplier * direction(g) + decay * p)

Weight decay is decoupled: it is multiplied by the schedule, which runs from 0
to 1 and down again, and not by the learning rate. The weight decay 0.1 of
the paper's table 4 is AdamW's coefficient, so decay = 0.1 * learning_rate.
"""

import re
from collections.abc import Container

import jax
import jax.numpy as jnp
import optax


def make_schedule(
  *, kind: str, total_steps: int, warmup_steps: int = 0, end: float = 0.0
) -> optax.Schedule:
  """Makes the factor on the peak learning rate, as a function of the step.

  Args:
    kind: what follows the warm-up, "linear", "cosine" or "constant".
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
    name: "adam" or "momentum".
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
  assert name in ("adam", "momentum")
  factors = lr_multiplier_tree(params, multipliers)
  if name == "adam":
    direction = optax.scale_by_adam(b1, b2, eps, mu_dtype=accumulator_dtype)
  else:
    direction = optax.trace(momentum, accumulator_dtype=accumulator_dtype)

  def is_kernel(path, leaf):
    return path[-1].key == "kernel"

  def decayed(params):
    return jax.tree.map_with_path(is_kernel, params)

  clip = clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  scale = scale_by_tree(factors) if multipliers else optax.identity()
  decay = optax.identity()
  if weight_decay:
    decay = optax.add_decayed_weights(weight_decay, decayed)
  # Always these seven, so that the state has the same names whatever is on.
  optimizer = optax.chain(
    clip,
    direction,
    optax.scale(learning_rate),
    scale,
    decay,
    optax.scale_by_schedule(schedule),
    optax.scale(-1.0),
  )
  return freeze(optimizer, factors)


def current_name(name: str) -> str:
  """Returns today's name of a leaf of the state, in any checkpoint.

  Before, stages that were off took no place in the chain, and an optimizer
  with frozen parameters was two levels deeper.
  """
  match = re.fullmatch(r"opt_state/(?:0/inner_state/)?(\d)/(.+)", name)
  if not match:
    return name
  stage = 1 if int(match[1]) <= 1 else 5  # direction, schedule
  return f"opt_state/{stage}/{match[2]}"


def is_unfrozen(name: str, others: Container[str]) -> bool:
  """Returns True for a moment that another state only lacks by freezing.

  Args:
    name: of a leaf of a state, such as opt_state/1/mu/head/kernel.
    others: names of all leaves of the other state.
  """
  match = re.fullmatch(r"opt_state/1/(mu|nu|trace)/(.+)", name)
  return bool(match) and name not in others and f"params/{match[2]}" in others


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


def freeze(
  optimizer: optax.GradientTransformationExtraArgs, factors: dict
) -> optax.GradientTransformationExtraArgs:
  """Hides parameters with factor 0 from an optimizer; their update is zero.

  Unlike optax.masked, this adds no level to the state. In the state, frozen
  parameters are optax.MaskedNode.
  """
  if all(jax.tree.leaves(factors)):
    return optimizer

  def hide(tree):
    return jax.tree.map(
      lambda factor, x: x if factor else optax.MaskedNode(), factors, tree
    )

  def update(gradients, state, params=None, **others):
    updates, state = optimizer.update(
      hide(gradients), state, hide(params), **others
    )
    updates = jax.tree.map(
      lambda factor, update, x: update if factor else jnp.zeros_like(x),
      factors,
      updates,
      gradients,
    )
    return updates, state

  return optax.GradientTransformationExtraArgs(
    lambda params: optimizer.init(hide(params)), update
  )
