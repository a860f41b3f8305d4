# SPDX-License-Identifier: Apache-2.0
"""The data sets of a config, opened and compared with what it says of them."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from mixer.data import ops as image_ops
from mixer.data.decoding import decode
from mixer.data.sources import Source, image_folder, open_source
from mixer.errors import UserError, some


def check_classes(source: Source, trained: Sequence[str], where: str) -> None:
  """Raises UserError if a folder's labels stand for other classes.

  Data sets of TFDS are not looked at: some spell the same classes otherwise.
  """
  is_folder = source.name.startswith(image_folder.PREFIX)
  if is_folder and source.class_names != tuple(trained):
    strange = sorted({*source.class_names} ^ {*trained})
    raise UserError(
      f"{source.name} has other classes than {where}, or in another order"
      f"{strange and f' ({some(strange)})'}: give both the same file, one class"
      " a line, with config.data.classes, such as a run's classes.txt."
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
  """Opens a split and compares it with what the config says of it.

  Args:
    config: the whole.
    name: of the data set.
    options: the part of the config that is about this split.
    where: that part's name, such as "data".
    classes: file with the classes of a folder of images.
    has_several: whether an example's label is a row of any number of classes.

  Raises:
    NotPrepared: there is no such data set on disk.
    UserError: it is not what the config says, or the ops fail on its images.
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
    there = "any number of classes" if source.label_shape else "one class"
    raise UserError(
      f"The label {options.label!r} of {name} is {there} an image, which is "
      + (
        "not what the type 'real' is for: take 'classification'."
        if has_several
        else "for evaluators of the type 'real' alone."
      )
    )
  _try_examples(source, options.ops)
  return source


def _try_examples(source: Source, ops: str | None):
  """Prepares the first and the last example: what fails there, fails soon."""
  try:
    transform = image_ops.parse(ops or "")
  except UserError:
    return  # is complained of with the image size
  for i in {0, len(source) - 1}:
    [(data, _)] = source.read([i])
    try:
      image = decode(data)
    except ValueError:
      continue  # which data.on_bad_image may let pass
    try:
      transform(image, np.random.default_rng(0))
    except ValueError as error:
      raise UserError(
        f"The ops fail on example {i} of {source.name}, split {source.split}"
        f" ({source.locate(i)}): {error}"
      ) from error
