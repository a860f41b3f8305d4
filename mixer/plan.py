# SPDX-License-Identifier: Apache-2.0
"""A config resolved against this machine's devices, data and weights.

Planning is cheap: nothing is compiled. All complaints are collected and
reported together.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from mixer import weights
from mixer.config import default, resolve_steps
from mixer.config_check import resolve, validate
from mixer.data import preprocess
from mixer.data.decode import decode
from mixer.data.input_pipeline import BadImages
from mixer.data.preprocess import output_size
from mixer.data.sources import (
  DatasetNotFoundError,
  Source,
  image_folder,
  open_source,
)
from mixer.data.workers import Workers
from mixer.errors import UserError, did_you_mean, format_list
from mixer.evaluators import TYPES, result_name
from mixer.models import FAMILIES, create, family_of, fields_of, flops
from mixer.training.optimizer import lr_multiplier_tree
from mixer.weights import LoadedWeights


@dataclasses.dataclass
class EvalPlan:
  """One evaluator of the config, resolved.

  every: updates between two runs; None: only at the end.
  source: the split to evaluate; None if there is a complaint about it.
  pool: the split to sample examples from, for a type that does so.
  """

  options: ConfigDict
  data_name: str
  batch: int
  every: int | None
  source: Source | None = None
  pool: Source | None = None


@dataclasses.dataclass
class Plan:
  """A config, resolved against this machine's devices and data.

  A field is None if there is a complaint about it.
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
  checkpoint: LoadedWeights | None = None  # that config.init names
  initial_params: dict | None = None
  initial_note: str = ""
  source: Source | None = None
  evals: dict[str, EvalPlan] = dataclasses.field(default_factory=dict)
  left_out: str = ""  # a sentence about evaluators without data
  bad_images: BadImages | None = None  # of training and evaluators together
  problems: list[str] = dataclasses.field(default_factory=list)
  missing: list[str] = dataclasses.field(default_factory=list)

  @contextlib.contextmanager
  def collecting(self, about: str = "") -> Iterator[None]:
    """Collects errors raised inside as complaints."""
    try:
      yield
    except DatasetNotFoundError as error:
      if str(error) not in self.missing:
        self.missing.append(str(error))
    except ValueError as error:
      self.problems.append(f"{about}{error}")

  def raise_complaints(self):
    """Raises UserError with all complaints."""
    if complaints := self.problems + self.missing:
      raise UserError("\n".join(complaints))

  @property
  def workers(self) -> Workers:
    """Returns the workers that read and augment."""
    data = self.config.data
    return Workers(data.workers or None, data.worker_kind)

  @property
  def class_names(self) -> list[str]:
    return list(self.source.class_names)


def make_plan(
  config: ConfigDict,
  *,
  devices: int | None = None,
  for_training: bool = True,
  load_init: bool = True,
  skip_missing: bool = False,
) -> Plan:
  """Resolves a config and collects complaints.

  Args:
    config: from a recipe and the command line.
    devices: that share a batch; those of all processes if None.
    for_training: False does without training data, length of the run and batch.
    load_init: False does without config.init, which a checkpoint supersedes.
    skip_missing: leave out evaluators whose data are missing, unless none would
      be left or training data are missing as well.

  Raises:
    UserError: keys that the schema does not have; no other check runs then.
  """
  plan = Plan(resolve(config), devices or jax.device_count())
  plan.problems += validate(plan.config)
  if plan.problems:
    return plan
  _skip_evals(plan)
  if plan.config.data.on_bad_image == "replace":
    plan.bad_images = BadImages()
  if for_training:
    _plan_training_data(plan)
    _plan_durations(plan)
  _plan_batch(plan, for_training)
  if load_init:
    read_start(plan, for_training)
  plan_model(plan, for_training)
  if load_init:
    take_start(plan)
  plan_evals(plan, for_training)
  open_evals(plan)
  if skip_missing and (plan.source is not None or not for_training):
    _leave_out_missing(plan)
  return plan


def _skip_evals(plan: Plan):
  """Removes the evaluators that config.skip_evals names, and the key's value.

  The resolved config can then be planned again, from a run's config.json.
  """
  evals = plan.config.evals
  known = list(evals)
  names = [name.strip() for name in plan.config.skip_evals.split(",")]
  for name in filter(None, names):
    if name not in known:
      plan.problems.append(
        f"config.skip_evals: {name!r} is not an evaluator"
        f"{did_you_mean(name, known)}"
      )
    elif name in evals:
      del evals[name]
  plan.config.skip_evals = ""


def _plan_durations(plan: Plan):
  config = plan.config

  def read(part, prefix):
    return resolve_steps(
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


def _plan_batch(plan: Plan, for_training: bool):
  config, devices = plan.config, plan.devices
  if not for_training:  # evaluators take as many images at once, about
    share = -(-config.batch // devices)
    plan.per_device = min(share, config.max_per_device or share)
    return
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


def _plan_training_data(plan: Plan):
  """Opens the training split and sets data.examples to its size."""
  data = plan.config.data
  if not data.name:
    plan.problems.append("config.data.name, the data set, is not set.")
    return
  with plan.collecting("config.data: "):
    source = open_split(
      plan.config, data.name, data, "data", classes=data.classes
    )
    check_num_classes(source, plan.config)
    plan.source = source
    data.examples = len(source)


def check_classes(source: Source, trained: Sequence[str], where: str) -> None:
  """Raises UserError if a folder's labels stand for other classes.

  TFDS data sets are not compared: some spell class names differently.
  """
  is_folder = source.name.startswith(image_folder.PREFIX)
  if is_folder and source.class_names != tuple(trained):
    different = sorted({*source.class_names} ^ {*trained})
    raise UserError(
      f"{source.name} has other classes than {where}, or in another order"
      f"{different and f' ({format_list(different)})'}: give both the same "
      "file, one class a line, with config.data.classes, such as a run's "
      "classes.txt."
    )


def check_num_classes(source: Source, config: ConfigDict) -> None:
  """Raises UserError if the head has another width."""
  if source.num_classes != config.model.num_classes:
    raise UserError(
      f"{source.name} has {source.num_classes} classes, the model "
      f"{config.model.num_classes}: set config.model.num_classes = "
      f"{source.num_classes}."
    )


def open_split(
  config: ConfigDict,
  name: str,
  options: ConfigDict,
  where: str,
  *,
  classes: str = "",
  has_several: bool = False,
) -> Source:
  """Opens a split and compares it with the config.

  Args:
    config: the whole.
    name: of the data set.
    options: the part of the config that is about this split.
    where: that part's name, such as "data".
    classes: file with the classes of a folder of images.
    has_several: whether an example's label is a row of any number of classes.

  Raises:
    DatasetNotFoundError: there is no such data set on disk.
    UserError: it differs from the config, or the ops fail on its images.
  """
  if not options.split:
    raise UserError("split is not set, such as 'validation'.")
  source = open_source(
    name,
    options.split,
    data_dir=config.data.data_dir or None,
    image_key=options.image,
    label_key=options.label,
    classes=classes or None,
  )
  if options.examples and options.examples != len(source):
    raise UserError(
      f"{name} has {len(source)} examples in {options.split!r}, and not "
      f"{options.examples}: set config.{where}.examples = {len(source)}, or 0, "
      "which takes what there is."
    )
  if bool(source.label_shape) != has_several:
    labels = "any number of classes" if source.label_shape else "one class"
    raise UserError(
      f"The label {options.label!r} of {name} is {labels} an image, which is "
      + (
        "not for the type 'real': take 'classification'."
        if has_several
        else "only for evaluators of the type 'real'."
      )
    )
  _try_examples(source, options.ops)
  return source


def _try_examples(source: Source, ops: str | None):
  """Applies the ops to the first and last example, to fail early."""
  try:
    transform = preprocess.parse(ops or "")
  except UserError:
    return  # reported with the image size
  for i in {0, len(source) - 1}:
    [(data, _)] = source.read([i])
    try:
      image = decode(data)
    except ValueError:
      continue  # data.on_bad_image decides
    try:
      transform(image, np.random.default_rng(0))
    except ValueError as error:
      raise UserError(
        f"The ops fail on example {i} of {source.name}, split {source.split}"
        f" ({source.locate(i)}): {error}"
      ) from error


def plan_model(plan: Plan, for_training: bool):
  """Creates the model, and counts its parameters and operations."""
  config = plan.config
  with plan.collecting("config.model: "):
    fields, problems = _model_fields(config.model)
    plan.problems += problems
    if not problems:
      plan.model = create(config.model.name, **fields)
  with plan.collecting("config.data.ops: "):
    ops = config.data.ops or (not for_training and _first_ops(plan))
    if not ops:
      raise UserError("is not set, such as 'inception_crop(224) | flip'.")
    plan.image_size = output_size(ops)
  if plan.model is None or plan.image_size is None:
    return
  with plan.collecting("config.data.ops and config.model: "):
    plan.abstract_params = flops.abstract_params(plan.model, plan.image_size)
    plan.multiply_accumulates = flops.multiply_accumulates(
      plan.model, plan.image_size
    )
  if plan.abstract_params is None or not for_training:
    return
  with plan.collecting("config."):
    lr_multiplier_tree(plan.abstract_params, config.optimizer.multipliers)


def _model_fields(options: ConfigDict) -> tuple[dict, list[str]]:
  """Splits the model's part of the config.

  Returns:
    Arguments of `create`, and a complaint for each key that is set although
    the model's family does not have it.

  Raises:
    ValueError: there is no such model.
  """
  name, off = options.name, default().model
  known = {"num_classes", *fields_of(family_of(name))}
  fields, problems = {}, []
  for key, value in options.to_dict().items():
    if key in known:
      if value is not None:
        fields[key] = value
    elif key != "name" and value != off[key]:
      owners = [family for family in FAMILIES if key in fields_of(family)]
      problems.append(
        f"config.model.{key} is of {', '.join(owners)}; {name} has no such "
        "field: leave it out."
      )
  return fields, problems


def _first_ops(plan: Plan) -> str | None:
  """Returns the ops of the first evaluator that has any."""
  return next((o.ops for o in plan.config.evals.values() if o.ops), None)


def read_start(plan: Plan, for_training: bool):
  """Reads config.init, which also says how the model's GELU is computed."""
  config = plan.config
  if not for_training:
    _keep_head(config)
  for key, off in (("init_head", "auto"), ("init_growth", "none")):
    if for_training and config[key] != off and not config.init:
      plan.problems.append(
        f"config.{key} = {config[key]!r}, but config.init names no weights: "
        f"give --config.init=FILE, or --config.{key}={off} to start from "
        "random ones."
      )
  if not config.init:
    return
  with plan.collecting(f"config.init = {config.init}: "):
    plan.checkpoint = weights.read(os.path.expanduser(config.init))
    family = config.model.name.partition("-")[0]
    has_gelu = family in FAMILIES and "gelu" in fields_of(family)
    if has_gelu and config.model.gelu is None:
      config.model.gelu = plan.checkpoint.gelu


def _keep_head(config: ConfigDict):
  """Keeps the head if an evaluator needs it: no head of zeros is evaluated."""
  needs_head = any(not TYPES[x.type].own_classes for x in config.evals.values())
  config.init_head = "keep" if needs_head else "auto"


def take_start(plan: Plan):
  """Grows the weights if the config says so, and fits them to the model."""
  config, checkpoint = plan.config, plan.checkpoint
  if checkpoint is None or plan.abstract_params is None:
    return
  with plan.collecting(f"config.init = {config.init}: "):
    _check_head(plan)
    params, grown = _grow(plan)
    plan.initial_params, head = weights.merge_params(
      params,
      plan.abstract_params,
      head=config.init_head,
      head_bias=config.model.head_bias,
    )
    plan.initial_note = f"{grown}{head}"


def _grow(plan: Plan) -> tuple[dict, str]:
  """Returns the weights for the run's token grid, and a note about it."""
  params, growth = plan.checkpoint.params, plan.config.init_growth
  if growth == "none":
    return params, ""
  _check_growth(plan.config)
  grid = weights.grid_shape(params, plan.checkpoint.image_size)
  new_grid = tuple(side // plan.model.patch for side in plan.image_size)
  if grid == new_grid:
    return params, ""
  if growth == "tiles":
    factor = weights.integer_factor(grid, new_grid)
    grown = weights.grow(params, factor=factor, grid=grid)
    how = f"{factor} x {factor} tiles of the old mixing"
  else:
    grown = weights.grow(params, tokens=new_grid, grid=grid)
    how = "the old mixing interpolated, which is beyond the paper"
    if family_of(plan.config.model.name) == "ViT":
      how = "the old position embeddings interpolated"
  sizes = " to ".join(f"{h} x {w}" for h, w in (grid, new_grid))
  return grown, f"Grown from {sizes} tokens: {how}. "


def _check_growth(config: ConfigDict):
  """Raises UserError if the model's family does not grow like this."""
  family, how = family_of(config.model.name), config.init_growth
  if family == "BiT":
    raise UserError(
      f"config.init_growth = {how!r}, but {config.model.name} takes images of "
      "any size as it is: leave it out."
    )
  if family == "ViT" and how == "tiles":
    raise UserError(
      "config.init_growth = 'tiles' copies a Mixer's token-mixing MLPs for "
      f"every tile of a larger image, and {config.model.name} has none: take "
      "'interpolate', which resizes its position embeddings."
    )


def _check_head(plan: Plan):
  """Raises UserError if a run's head would stand for other classes."""
  if plan.config.init_head != "auto" or plan.source is None:
    return
  folder = Path(plan.config.init).expanduser()
  trained = weights.trained_classes(folder) or plan.class_names
  if len(trained) == plan.source.num_classes and trained != plan.class_names:
    raise UserError(
      "The head was trained on other classes, or in another order"
      f" ({folder / weights.CLASSES}): give images in folders that file with"
      " config.data.classes, or say with config.init_head whether to 'keep' the"
      " head or to begin with 'zeros'."
    )


def plan_evals(plan: Plan, for_training: bool):
  for name, options in plan.config.evals.items():
    here = f"config.evals.{name}"
    plan.evals[name] = _plan_one(plan, here, options, for_training)
  _check_best(plan)


def _plan_one(
  plan: Plan, here: str, options: ConfigDict, for_training: bool
) -> EvalPlan:
  config = plan.config
  batch = options.batch or plan.devices * (plan.per_device or 1)
  if batch < 1 or batch % plan.devices:
    plan.problems.append(
      f"{here}.batch = {batch} is no multiple of the {plan.devices} devices."
    )
  every = None
  if for_training:
    with plan.collecting(f"{here}."):
      every = resolve_steps(
        options, "every", batch=config.batch, examples=config.data.examples
      )
  data_name = options.name or config.data.name
  if not data_name:
    plan.problems.append(f"{here}.name, the data set, is not set.")
  with plan.collecting(f"{here}.ops: "):
    if not options.ops:
      raise UserError("is not set, such as 'resize_small(256)'.")
    size = output_size(options.ops)
    if plan.image_size and size != plan.image_size:
      others = "training has" if config.data.ops else "those before it have"
      raise UserError(
        f"makes images of {size[0]} x {size[1]} px, {others} "
        f"{plan.image_size[0]} x {plan.image_size[1]}: end both alike."
      )
  return EvalPlan(options, data_name, batch, every)


def known_results(plan: Plan) -> dict[str, str]:
  """Maps each result, such as "eval/test/loss", to its evaluator's name."""
  return {
    result_name(evaluation.options.type, name, result): name
    for name, evaluation in plan.evals.items()
    for result in TYPES[evaluation.options.type].results(evaluation.options)
  }


def _check_best(plan: Plan):
  best, known = plan.config.checkpoint.best, known_results(plan)
  if best and best not in known:
    plan.problems.append(
      f"config.checkpoint.best = {best!r} is the result of no evaluator"
      f"{did_you_mean(best, known)}"
    )


def open_evals(plan: Plan):
  """Opens the data sets of every evaluator."""
  for name, evaluation in plan.evals.items():
    if evaluation.data_name:
      with plan.collecting(f"config.evals.{name}: "):
        _open_eval(plan, name, evaluation)


def _open_eval(plan: Plan, name: str, evaluation: EvalPlan):
  """Opens an evaluator's split, and the pool that it samples from if any."""
  config, options = plan.config, evaluation.options
  data_name = evaluation.data_name
  kind = TYPES[options.type]
  is_folder = data_name.startswith(image_folder.PREFIX)
  source = open_split(
    config,
    data_name,
    options,
    f"evals.{name}",
    classes=config.data.classes if is_folder and not kind.own_classes else "",
    has_several=kind.multilabel,
  )
  if not kind.own_classes:
    check_num_classes(source, config)
    if plan.source is not None:
      check_classes(source, plan.source.class_names, "training")
  if "pool_split" in options:
    pool = options.copy_and_resolve_references()
    pool.update(split=options.pool_split, examples=None)
    evaluation.pool = open_split(config, data_name, pool, f"evals.{name}")
  evaluation.source = source


def _leave_out_missing(plan: Plan):
  """Drops the evaluators whose data are missing, unless none would be left."""
  names = [name for name, each in plan.evals.items() if each.source is None]
  if not plan.missing or len(names) == len(plan.evals):
    return
  reasons = "\n  ".join(plan.missing)
  plan.left_out = f"Leaves out {', '.join(names)}:\n  {reasons}"
  plan.missing = []
  for name in names:
    del plan.evals[name]


def plan_summary(plan: Plan) -> str:
  """Returns the plan as lines of text."""
  config = plan.config
  lines = []
  if plan.accumulation:
    n = jax.process_count()
    hosts = f"{n} hosts" if n > 1 else "1 host"
    kind = jax.local_devices()[0].device_kind
    lines.append(
      f"batch         global {config.batch} = {hosts} x {plan.devices // n} "
      f"{kind} x {plan.per_device} x {plan.accumulation} accumulated"
    )
  if plan.model is not None and plan.abstract_params is not None:
    parameters = flops.count_params(plan.abstract_params)
    lines += [
      f"model         {config.model.name}, {parameters:,} parameters, "
      f"{plan.image_size[0]} x {plan.image_size[1]} px, "
      f"{plan.multiply_accumulates / 1e9:.3g} GMAC or "
      f"{2 * plan.multiply_accumulates / 1e9:.3g} GFLOP an image forward, "
      f"{6 * plan.multiply_accumulates / 1e9:.3g} GFLOP in training",
    ]
  lines.append(
    f"start         {config.init or 'random weights'}"
    + (f"; {plan.initial_note}" if plan.initial_note else "")
  )
  if config.data.name:
    examples = (
      f"{config.data.examples:,}" if config.data.examples else "unknown"
    )
    lines.append(
      f"data          {config.data.name}, {config.data.split}: {examples} "
      f"examples; {config.data.ops}"
    )
  if plan.total_steps:
    seen = plan.total_steps * config.batch
    epochs = (
      f", {seen / config.data.examples:.4g} epochs"
      if config.data.examples
      else ""
    )
    lines.append(
      f"length        {plan.total_steps:,} steps{epochs}, {seen:,} images, "
      f"warm-up {plan.warmup_steps:,} steps"
    )
    if plan.multiply_accumulates:
      lines.append(
        f"compute       {6 * plan.multiply_accumulates * seen:.3g} FLOP"
      )
  for name, evaluation in plan.evals.items():
    often = f"every {evaluation.every:,} steps and " if evaluation.every else ""
    lines.append(
      f"evaluation    {name}: {evaluation.data_name}, "
      f"{evaluation.options.split}; {evaluation.options.ops}; {often}at the end"
    )
  often = (
    f"every {plan.checkpoint_every:,} steps and at the end"
    if plan.checkpoint_every
    else "at the end"
  )
  lines.append(f"checkpoints   {often}, newest {config.checkpoint.keep} kept")
  if plan.left_out:
    lines.append(plan.left_out)
  return "\n".join(lines)
