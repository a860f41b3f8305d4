# SPDX-License-Identifier: Apache-2.0
"""The data of a plan: training split, micro-batches, evaluators."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from mixer.config import EVALUATORS, EvaluatorType, result_name
from mixer.config_check import Complaints
from mixer.data import preprocess
from mixer.data.decode import decode
from mixer.data.hierarchy import plan_hierarchy
from mixer.data.input_pipeline import BadImages
from mixer.data.sources import Source, image_folder, open_source
from mixer.data.workers import Workers
from mixer.errors import UserError, did_you_mean, format_list, printable
from mixer.schema import resolve_steps
from mixer.training.semantic_softmax import Hierarchy


@dataclasses.dataclass(frozen=True)
class EvalPlan:
  """One evaluator of the config, resolved.

  options: its part of the config.
  batch: images at once, over all devices.
  every: updates between two runs; None: only at the end.
  source: split to evaluate; None if there is a complaint about it.
  pool: split to sample examples from, for a type that does so.
  """

  options: ConfigDict
  batch: int
  every: int | None
  source: Source | None
  pool: Source | None

  @property
  def type(self) -> EvaluatorType:
    return EVALUATORS[self.options.type]


@dataclasses.dataclass(frozen=True)
class DataPlan:
  """Training data and evaluators; None where there is a complaint.

  source: training split; None without training.
  image_size: (height, width) in pixels, in training and evaluation.
  per_device: images of a micro-batch on one device.
  accumulation: micro-batches per update; None without training.
  evals: by name.
  left_out: a sentence about evaluators without data.
  bad_images: counter of replaced images; None if the first one is an error.
  hierarchy: of the classes, for the semantic softmax; None for other losses.
  """

  source: Source | None = None
  image_size: tuple[int, int] | None = None
  per_device: int | None = None
  accumulation: int | None = None
  evals: dict[str, EvalPlan] = dataclasses.field(default_factory=dict)
  left_out: str = ""
  workers: Workers = Workers()
  bad_images: BadImages | None = None
  hierarchy: Hierarchy | None = None

  @property
  def unused_folders(self) -> list[str]:
    """Split folders that neither training nor an evaluator reads."""
    if self.source is None:
      return []
    evals = self.evals.values()
    sources = [self.source, *(s for x in evals for s in (x.source, x.pool))]
    sources = [x for x in sources if isinstance(x, image_folder.FolderSource)]
    known = {folder for source in sources for folder in source.split_folders}
    read = {os.path.dirname(x) for s in sources for x in s.class_folders}
    return sorted(known - read)


def plan_data(
  config: ConfigDict,
  devices: int,
  complaints: Complaints,
  *,
  for_training: bool,
  skip_missing: bool,
) -> DataPlan:
  """Opens all splits; sets config.data.examples to the training split's size.

  Args: as of `mixer.plan.make_plan`.
  """
  data = config.data
  source = per_device = accumulation = None
  left_out = ""
  if for_training:
    with complaints.collect():
      per_device, accumulation = _split_batch(config, devices)
    with complaints.collect("config.data: ", once=True):
      source = _open_split(config, "data", data)
      data.examples = len(source)
  else:  # evaluators take as many images at once, about
    share = -(-config.batch // devices)
    per_device = min(share, config.max_per_device or share)
  image_size = _check_image_size(config, complaints, for_training)
  # There is a complaint about the data set already.
  is_unreadable = for_training and source is None
  evals = {}
  for name, options in config.evals.items():
    where, every, splits = f"config.evals.{name}", None, (None, None)
    batch = options.batch or devices * (per_device or 1)
    if batch < 1 or batch % devices:
      complaints.problems.append(
        f"{where}.batch = {batch} is no multiple of the {devices} devices."
      )
    if for_training:
      with complaints.collect(f"{where}."):
        every = resolve_steps(
          options, "every", batch=config.batch, examples=data.examples
        )
    if not is_unreadable or (options.name or data.name) != data.name:
      with complaints.collect(f"{where}: ", once=True):
        splits = _open_eval(config, name, source)
    evals[name] = EvalPlan(options, batch, every, *splits)
  best = config.checkpoint.best
  results = known_results(evals, config.model.num_classes)
  if best and best not in results:
    complaints.problems.append(
      f"config.checkpoint.best = {best!r} is the result of no evaluator"
      + (did_you_mean(best, results) if results else ": set it to ''.")
    )
  hierarchy = None
  with complaints.collect("config.data.hierarchy: "):
    sources = [x.source for x in evals.values() if not x.type.own_classes]
    hierarchy = plan_hierarchy(data.hierarchy, config.loss, [source, *sources])
  for name, each in evals.items():
    if hierarchy and each.options.get("present_classes_only"):
      complaints.problems.append(
        f"config.evals.{name}.present_classes_only: the semantic softmax has a "
        "loss for each level of its classes: leave it out."
      )
  if skip_missing and (source is not None or not for_training):
    evals, left_out = _leave_out_missing(evals, complaints)
  return DataPlan(
    source=source,
    image_size=image_size,
    per_device=per_device,
    accumulation=accumulation,
    evals=evals,
    left_out=left_out,
    workers=Workers(data.workers, data.worker_kind),
    bad_images=BadImages() if data.on_bad_image == "replace" else None,
    hierarchy=hierarchy,
  )


def _split_batch(config: ConfigDict, devices: int) -> tuple[int, int]:
  """Returns images per micro-batch and device, and micro-batches per update."""
  if config.batch % config.data.repeats:
    raise UserError(
      f"config.data.repeats = {config.data.repeats} does not divide the "
      f"{config.batch} images of a batch: take a divisor, such as 2 or 4, or "
      "1 for none."
    )
  if config.batch % devices:
    lower = config.batch // devices * devices
    near = [str(n) for n in (lower, lower + devices) if n]
    raise UserError(
      f"config.batch = {config.batch} is not divided by the {devices} devices: "
      f"take {' or '.join(near)}."
    )
  share = config.batch // devices
  parts = config.accumulation
  if not parts:
    limit = config.max_per_device or share
    parts = next(
      n for n in range(1, share + 1) if share % n == 0 and share <= n * limit
    )
  if share % parts:
    raise UserError(
      f"config.accumulation = {parts} does not divide the {share} images of "
      f"each device ({config.batch} / {devices}): take a divisor, or set "
      "config.max_per_device instead."
    )
  if config.sam.rho:
    images, most = config.sam.images, share // parts
    if most % images:
      fitting = [str(n) for n in range(1, most + 1) if most % n == 0]
      raise UserError(
        f"config.sam.images = {images} does not divide the {most} images of a "
        f"device's micro-batch ({config.batch} / {devices} / {parts}): take "
        f"{' or '.join(fitting[-3:])}, or fewer devices, or a larger "
        "config.batch or config.max_per_device."
      )
    parts = share // images
  return share // parts, parts


def _check_image_size(
  config: ConfigDict, complaints: Complaints, for_training: bool
) -> tuple[int, int] | None:
  """Returns the one size that the ops of training and evaluators make."""
  parts = {f"evals.{name}": part for name, part in config.evals.items()}
  if for_training or config.data.ops:
    parts = {"data": config.data} | parts
  sizes = {}
  for where, part in parts.items():
    with complaints.collect(f"config.{where}.ops: "):
      if not part.ops:
        raise UserError(
          "set them, such as 'resize_small(256) | central_crop(224)'."
        )
      height, width = preprocess.output_size(part.ops)
      sizes.setdefault((height, width), []).append(f"config.{where}.ops")
  if len(sizes) > 1:
    listed = "; ".join(
      f"{height} x {width} px by {', '.join(keys)}"
      for (height, width), keys in sizes.items()
    )
    complaints.problems.append(
      f"Images are of several sizes: {listed}. End all ops alike."
    )
    return None
  return next(iter(sizes), None)


def _open_eval(
  config: ConfigDict, name: str, training: Source | None
) -> tuple[Source, Source | None]:
  """Opens an evaluator's split, and the pool that it samples from if any."""
  options, where = config.evals[name], f"evals.{name}"
  kind = EVALUATORS[options.type]
  source = _open_split(config, where, options, kind)
  if training is not None and not kind.own_classes:
    check_classes(source, training.class_names, "training")
  if "pool_split" not in options:
    return source, None
  options = options.copy_and_resolve_references()
  options.update(split=options.pool_split, examples=None)
  return source, _open_split(config, where, options, kind)


def _open_split(
  config: ConfigDict,
  where: str,
  options: ConfigDict,
  kind: EvaluatorType = EVALUATORS["classification"],
) -> Source:
  """Opens a split and compares it with the config.

  Args:
    config: the whole.
    where: the part of the config that is about this split, such as "data".
    options: that part.
    kind: of the evaluator; training needs labels as classification does.
  """
  name, split = options.name or config.data.name, options.split
  if not name:
    raise UserError("name, the data set, is not set.")
  if not split:
    raise UserError("split is not set, such as 'validation'.")
  is_folder = name.startswith(image_folder.PREFIX)
  classes = ""
  if where == "data" or is_folder:
    classes = config.data.classes
  source = open_source(
    name,
    split,
    data_dir=config.data.data_dir or None,
    image_key=options.image,
    label_key=options.label,
    configs=kind.configs,
    classes=None if kind.own_classes else classes or None,
  )
  source = dataclasses.replace(source, max_pixels=config.data.max_pixels)
  examples, width = len(source), config.model.num_classes
  if options.examples and options.examples != examples:
    raise UserError(
      f"{name} has {examples} examples in {split!r}, and not "
      f"{options.examples}: set config.{where}.examples = {examples}, or 0 for "
      "the number on disk."
    )
  if bool(source.label_shape) != kind.multilabel:
    labels = "any number of classes" if source.label_shape else "one class"
    raise UserError(
      f"The label {options.label!r} of {name} is {labels} an image: evaluators "
      "of the type 'real' need any number, training and other types need one."
    )
  if source.num_classes == 1 and not kind.multilabel:
    layout = image_folder.EXPECTED if is_folder else "Take another label."
    raise UserError(
      f"{name} has one class, {source.class_names[0]}, so there is nothing to"
      f" learn. {layout}"
    )
  if not kind.own_classes and source.num_classes != width:
    raise UserError(
      f"{name} has {source.num_classes} classes, the model {width}: set "
      f"config.model.num_classes = {source.num_classes}."
    )
  _try_examples(source, options.ops)
  return source


def _try_examples(source: Source, ops: str | None):
  """Raises UserError if the ops fail on all of ten examples.

  If only on some, or if one cannot be decoded, `data.on_bad_image` decides.
  """
  try:
    transform = preprocess.parse(ops or "")
  except UserError:
    return  # reported with the image size
  fault = None
  for i in sorted({*np.linspace(0, len(source) - 1, 10, dtype=int).tolist()}):
    [(data, _)] = source.read([i])
    try:
      image = decode(data, source.max_pixels)
    except ValueError:
      continue
    try:
      transform(image, np.random.default_rng(0))
      return
    except ValueError as error:
      fault = fault or UserError(
        f"The ops fail on example {i} of {source.name}, split {source.split}"
        f" ({printable(source.locate(i))}): {error}"
      )
  if fault:
    raise fault


def check_classes(source: Source, trained: Sequence[str], where: str) -> None:
  """Raises UserError if a folder's labels stand for other classes.

  TFDS data sets are not compared: some spell class names differently.
  """
  is_folder = source.name.startswith(image_folder.PREFIX)
  if is_folder and source.class_names != tuple(trained):
    ours, theirs = {*source.class_names}, {*trained}
    different = {"only here": ours - theirs, "only there": theirs - ours}
    listed = "; ".join(
      f"{side} {format_list(sorted(names))}"
      for side, names in different.items()
      if names
    )
    raise UserError(
      f"{source.name} has other classes than {where}, or in another order"
      f"{listed and f' ({listed})'}: give both the same "
      "file, one class a line, with config.data.classes, such as a run's "
      "classes.txt."
    )


def known_results(
  evals: dict[str, EvalPlan], num_classes: int
) -> dict[str, str]:
  """Maps each result, such as "eval/test/loss", to its evaluator's name."""
  return {
    result_name(each.options.type, name, result): name
    for name, each in evals.items()
    for result in each.type.results(each.options, num_classes)
  }


def _leave_out_missing(
  evals: dict[str, EvalPlan], complaints: Complaints
) -> tuple[dict[str, EvalPlan], str]:
  """Drops the evaluators whose data are missing, unless none would be left."""
  opened = {name: x for name, x in evals.items() if x.source is not None}
  if not complaints.missing or not opened:
    return evals, ""
  names = ", ".join(name for name in evals if name not in opened)
  reasons = "\n  ".join(complaints.missing)
  complaints.missing.clear()
  return opened, f"Leaves out {names}:\n  {reasons}"
