# SPDX-License-Identifier: Apache-2.0
"""Schedules and optimizers in the form that the authors trained with.

One update of parameter p at step s, with g the clipped gradient:

  p <- p - schedule(s) * (learning_rate * multiplier * direction(g) + decay * p)

Weight decay is decoupled: it is multiplied by the schedule, which runs from 0
to 1 and down again, and not by the learning rate. The weight decay 0.1 of
the paper's table 4 is AdamW's coefficient, so decay = 0.1 * learning_rate.

Any other optimizer is optax's, in its own form; clipping, factors on the
learning rate and freezing are the same.
"""

import functools
import inspect
import re
import types
from collections.abc import Callable, Container, Mapping

import jax
import jax.numpy as jnp
import optax
from optax import contrib

AUTHORS = ("adam", "momentum")
AUTHORS_KEYS = (  # of these two only
  "weight_decay",
  "b1",
  "b2",
  "eps",
  "momentum",
  "accumulator_dtype",
)
# Optimizers that compute each element by itself, so that each device may update
# its share of an array.
ELEMENTWISE = (*AUTHORS, "adamw", "lion")


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
  layer_decay: float = 1.0,
  arguments: Mapping[str, object] | None = None,
) -> optax.GradientTransformation:
  """Makes the optimizer for these parameters.

  Args:
    params: nested dict of arrays or shapes.
    schedule: the factor from `make_schedule`.
    name: "adam", "momentum", or one of `optax_optimizers`, which takes
      `arguments` in place of `AUTHORS_KEYS`.
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
    layer_decay: factor on the learning rate for each layer above a parameter.
    arguments: of optax's function, besides its learning rate and mask.

  Raises:
    ValueError: a pattern matches no parameter, or everything is frozen.
  """
  factors = lr_multiplier_tree(params, multipliers, layer_decay)
  clip = clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  is_scaled = multipliers or layer_decay != 1
  scale = scale_by_tree(factors) if is_scaled else optax.identity()
  if name not in AUTHORS:

    def rate(step):
      return learning_rate * schedule(step)

    optimizer = _make_optax(name, rate, arguments or {})
    return freeze(optax.chain(clip, optimizer, scale), factors)
  if name == "adam":
    direction = optax.scale_by_adam(b1, b2, eps, mu_dtype=accumulator_dtype)
  else:
    direction = optax.trace(momentum, accumulator_dtype=accumulator_dtype)

  decay = optax.identity()
  if weight_decay:
    decay = optax.add_decayed_weights(weight_decay, is_kernel)
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


def optax_optimizers() -> dict[str, Callable]:
  """Returns optax's optimizers by name: its functions of a learning rate."""
  return {
    name: function
    for module in (contrib, optax)
    for name, function in vars(module).items()
    if isinstance(function, (types.FunctionType, functools.partial))
    and "learning_rate" in inspect.signature(function).parameters
    # schedule_free evaluates other parameters than it updates.
    and not name.startswith(("_", "scale_by_", "schedule_free"))
  }


def _make_optax(
  name: str, rate: optax.Schedule, arguments: Mapping[str, object]
) -> optax.GradientTransformation:
  make = optax_optimizers()[name]
  masks = {"mask", "weight_decay_mask"} & {*inspect.signature(make).parameters}
  values = dict.fromkeys(masks, is_kernel) | dict(arguments)
  return make(learning_rate=rate, **values)


def is_kernel(params: dict) -> dict:
  """Marks the parameters that decay."""
  return jax.tree.map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )


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
  """Returns True for a moment of a parameter that was frozen in another state.

  Args:
    name: of a leaf of a state, such as opt_state/1/mu/head/kernel.
    others: names of all leaves of the other state.
  """
  match = re.fullmatch(r"opt_state/1/(?:0/)?(mu|nu|trace)/(.+)", name)
  return bool(match) and name not in others and f"params/{match[2]}" in others


def lr_multiplier_tree(
  params: dict,
  multipliers: tuple[tuple[str, float], ...],
  layer_decay: float = 1.0,
) -> dict:
  """Gives every parameter its factor on the learning rate.

  Raises:
    ValueError: a pattern matches no parameter, or everything is frozen.
  """
  unused = dict.fromkeys(pattern for pattern, _ in multipliers)
  leaves, structure = jax.tree.flatten_with_path(params)
  names = ["/".join(key.key for key in path) for path, _ in leaves]
  factors = [1.0] * len(names)
  if layer_decay != 1:
    factors = _layer_scales(names, layer_decay)
  for i, name in enumerate(names):
    for pattern, value in multipliers:
      if re.fullmatch(pattern, name):
        unused.pop(pattern, None)
        factors[i] *= value
        break
  if unused:
    raise ValueError(
      f"optimizer.multipliers: {next(iter(unused))!r} is the first match of no "
      f"parameter. Parameters have names such as {names[0]!r} and "
      f"{names[-1]!r}."
    )
  if not any(factors):
    raise ValueError(
      f"optimizer.multipliers = {multipliers} freezes every parameter: give "
      "what should train a factor above 0."
    )
  return jax.tree.unflatten(structure, factors)


def _layer_scales(names: list[str], decay: float) -> list[float]:
  """Returns decay ** (depth from the head) for parameters by name.

  As in BEiT's code (arXiv 2106.08254): 0 for the head and the last norm, 1 for
  the last block, one more for each block below, and one more for the stem. A
  block of BiT is a stage.
  """
  number = r"(?:Transformer/)?[A-Za-z]+_?(\d+)/"
  blocks = [re.match(number, name) for name in names]
  numbers = {int(block[1]) for block in blocks if block}
  first, last = min(numbers, default=0), max(numbers, default=0)
  stem = r"(stem|embedding|cls|Transformer/posembed_input|root_block)\b.*"

  def depth(name, block):
    if block:
      return last + 1 - int(block[1])
    return last + 2 - first if re.fullmatch(stem, name) else 0

  return [decay ** depth(*each) for each in zip(names, blocks, strict=True)]


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
