# SPDX-License-Identifier: Apache-2.0
"""What a config comes to, and everything that is wrong with it, beforehand.

Nothing here compiles, and nothing waits for anything dear: keys, cross-field
rules, models, data sets and weights are all looked at, and all complaints are
reported together.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from mixer import weights
from mixer.config import did_you_mean, steps
from mixer.config_check import check_values, complete
from mixer.data.bad_images import BadImages
from mixer.data.sources import NotPrepared, Source
from mixer.data.workers import Workers
from mixer.errors import UserError
from mixer.evaluators import TYPES
from mixer.models import cost, create
from mixer.plan_data import (
  CLASSES,
  check_classes,
  open_split,
  output_size,
  trained_classes,
)
from mixer.training.optimizer import multiplier_tree

RESULTS = ("loss", "accuracy", "accuracy_top5")


@dataclasses.dataclass
class EvalPlan:
  """One evaluator of the config, resolved.

  every: updates between two runs; None for the end alone.
  """

  options: ConfigDict
  data_name: str
  batch: int
  every: int | None
  source: Source | None = None


@dataclasses.dataclass
class Plan:
  """A config, resolved against this machine's devices and data.

  Fields are None where a complaint says why.
  """

  config: ConfigDict
  devices: int
  total_steps: int | None = None
  warmup_steps: int = 0
  checkpoint_every: int | None = None
  milestone_every: int | None = None
  per_device: int | None = None  # images at once
  accumulation: int | None = None
  model: nn.Module | None = None
  image_size: tuple[int, int] | None = None
  abstract_params: dict | None = None
  multiply_accumulates: int | None = None
  initial_params: dict | None = None
  initial_note: str = ""
  source: Source | None = None
  evals: dict[str, EvalPlan] = dataclasses.field(default_factory=dict)
  bad_images: BadImages | None = None  # of training and evaluators together
  problems: list[str] = dataclasses.field(default_factory=list)
  missing: list[str] = dataclasses.field(default_factory=list)

  @contextlib.contextmanager
  def collecting(self, about: str = "") -> Iterator[None]:
    """Turns what is raised inside into a complaint."""
    try:
      yield
    except NotPrepared as error:
      if str(error) not in self.missing:
        self.missing.append(str(error))
    except ValueError as error:
      self.problems.append(f"{about}{error}")

  def raise_complaints(self):
    """Raises UserError with everything that stands in the way."""
    if complaints := self.problems + self.missing:
      raise UserError("\n".join(complaints))

  @property
  def workers(self) -> Workers:
    """Those that read and augment."""
    data = self.config.data
    return Workers(data.workers or None, data.worker_kind)

  @property
  def class_names(self) -> list[str]:
    return list(self.source.class_names)


def make_plan(
  config: ConfigDict,
  *,
  devices: int | None = None,
  trains: bool = True,
  begins: bool = True,
) -> Plan:
  """Resolves a config and collects complaints.

  Args:
    config: as a recipe and the command line made it.
    devices: that share a batch; those of this process if None.
    trains: False does without the training data.
    begins: False does without config.init, which a checkpoint supersedes.

  Raises:
    UserError: keys that the schema does not have; nothing else can be said
      about such a config.
  """
  plan = Plan(complete(config), devices or jax.local_device_count())
  plan.problems += check_values(plan.config)
  if jax.process_count() > 1:
    plan.problems.append(
      f"This is one of {jax.process_count()} processes that share a batch, and "
      "runs take one: start it on a machine of its own."
    )
  if plan.problems:
    return plan
  if plan.config.data.on_bad_image == "replace":
    plan.bad_images = BadImages()
  _plan_training_data(plan, trains)
  _plan_durations(plan)
  _plan_batch(plan)
  _plan_model(plan)
  if begins:
    _plan_start(plan)
  _plan_evals(plan)
  for name, evaluation in plan.evals.items():
    with plan.collecting(f"config.evals.{name}: "):
      evaluation.source = open_split(
        plan.config, evaluation.data_name, evaluation.options, "evals." + name
      )
      if plan.source is not None:
        check_classes(evaluation.source, plan.source.class_names, "training")
  return plan


def _plan_durations(plan: Plan):
  config = plan.config

  def read(part, prefix):
    return steps(
      part, prefix, batch=config.batch, examples=config.data.examples
    )

  with plan.collecting("config."):
    plan.total_steps = read(config, "total")
    if not plan.total_steps:
      plan.problems.append(
        "The length of the run is not set: give config.total_steps, "
        "total_epochs or total_examples."
      )
  with plan.collecting("config.schedule."):
    plan.warmup_steps = read(config.schedule, "warmup") or 0
    if plan.total_steps and plan.warmup_steps >= plan.total_steps:
      plan.problems.append(
        f"The warm-up of {plan.warmup_steps} steps does not end within the "
        f"run of {plan.total_steps}: shorten config.schedule.warmup_steps, or "
        "lengthen the run."
      )
  with plan.collecting("config.checkpoint."):
    plan.checkpoint_every = read(config.checkpoint, "every")
    plan.milestone_every = read(config.checkpoint, "milestone")


def _plan_batch(plan: Plan):
  config, devices = plan.config, plan.devices
  if config.batch % devices:
    lower = config.batch // devices * devices
    near = [str(n) for n in (lower, lower + devices) if n]
    plan.problems.append(
      f"config.batch = {config.batch} is not divided by the {devices} devices: "
      f"take {' or '.join(near)}."
    )
    return
  share = config.batch // devices
  parts = config.accumulation
  if parts is None:
    limit = config.max_per_device or share
    parts = next(
      n for n in range(1, share + 1) if share % n == 0 and share <= n * limit
    )
  if share % parts:
    plan.problems.append(
      f"config.accumulation = {parts} does not divide the {share} images of "
      f"each device ({config.batch} / {devices}): take a divisor, or set "
      "config.max_per_device instead."
    )
    return
  plan.accumulation, plan.per_device = parts, share // parts


def _plan_model(plan: Plan):
  options = plan.config.model.to_dict()
  fields = {k: v for k, v in options.items() if v is not None and k != "name"}
  with plan.collecting("config.model: "):
    plan.model = create(options["name"], **fields)
  with plan.collecting("config.data.ops: "):
    if not plan.config.data.ops:
      raise UserError("is not set, such as 'inception_crop(224) | flip'.")
    plan.image_size = output_size(plan.config.data.ops)
  if plan.model is None or plan.image_size is None:
    return
  with plan.collecting("config.data.ops and config.model: "):
    plan.abstract_params = cost.abstract_params(plan.model, plan.image_size)
    plan.multiply_accumulates = cost.multiply_accumulates(
      plan.model, plan.image_size
    )
  if plan.abstract_params is None:
    return
  with plan.collecting("config."):
    multiplier_tree(plan.abstract_params, plan.config.optimizer.multipliers)


def _plan_start(plan: Plan):
  config = plan.config
  if not config.init:
    if config.init_head != "auto":
      plan.problems.append(
        f"config.init_head = {config.init_head!r}, but config.init names no "
        "weights: give --config.init=FILE, or --config.init_head=auto to start "
        "from random ones."
      )
    return
  if plan.abstract_params is None:
    return
  with plan.collecting(f"config.init = {config.init}: "):
    _check_head(plan)
    plan.initial_params, plan.initial_note = weights.fit(
      weights.load(os.path.expanduser(config.init)),
      plan.abstract_params,
      head=config.init_head,
      head_bias=config.model.head_bias,
    )


def _check_head(plan: Plan):
  """Raises UserError if a run's head would stand for other classes."""
  if plan.config.init_head != "auto" or plan.source is None:
    return
  folder = Path(plan.config.init).expanduser()
  trained = trained_classes(folder) or plan.class_names
  if len(trained) == plan.source.num_classes and trained != plan.class_names:
    raise UserError(
      "The head was trained on other classes, or in another order"
      f" ({folder / CLASSES}): give images in folders that file with"
      " config.data.classes, or say with config.init_head whether to 'keep' the"
      " head or to begin with 'zeros'."
    )


def _plan_evals(plan: Plan):
  config = plan.config
  for name, options in config.evals.items():
    here = f"config.evals.{name}"
    if options.type not in TYPES:
      plan.problems.append(
        f"{here}.type = {options.type!r} is not an evaluator"
        f"{did_you_mean(options.type, TYPES)}"
      )
    batch = options.batch or plan.devices * (plan.per_device or 1)
    if batch < 1 or batch % plan.devices:
      plan.problems.append(
        f"{here}.batch = {batch} is no multiple of the {plan.devices} devices."
      )
    every = None
    with plan.collecting(f"{here}."):
      every = steps(
        options, "every", batch=config.batch, examples=config.data.examples
      )
    data_name = options.name or config.data.name
    plan.evals[name] = EvalPlan(options, data_name, batch, every)
    with plan.collecting(f"{here}.ops: "):
      if not options.ops:
        raise UserError("is not set, such as 'resize_small(256)'.")
      size = output_size(options.ops)
      if plan.image_size and size != plan.image_size:
        raise UserError(
          f"makes images of {size[0]} x {size[1]} px, training has "
          f"{plan.image_size[0]} x {plan.image_size[1]}: end both alike."
        )
  best = config.checkpoint.best
  known = [f"eval/{name}/{r}" for name in config.evals for r in RESULTS]
  if best and best not in known:
    plan.problems.append(
      f"config.checkpoint.best = {best!r} is the result of no evaluator"
      f"{did_you_mean(best, known)}"
    )


def _plan_training_data(plan: Plan, trains: bool):
  """Opens the training split; an epoch is as long as it, if not told."""
  data = plan.config.data
  if not trains:
    if not data.examples and data.name and data.split:
      with contextlib.suppress(UserError):  # evaluating needs no such data
        data.examples = len(open_split(plan.config, data.name, data, "data"))
    return
  if not data.name:
    plan.problems.append("config.data.name, the data set, is not set.")
    return
  with plan.collecting("config.data: "):
    plan.source = open_split(plan.config, data.name, data, "data")
    data.examples = len(plan.source)
