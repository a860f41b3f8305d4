# SPDX-License-Identifier: Apache-2.0
"""Reads a hierarchy of classes, for the semantic softmax."""

import os
from collections.abc import Sequence

import numpy as np

from mixer.data.sources import Source
from mixer.errors import UserError, printable
from mixer.storage import read_lines
from mixer.training.semantic_softmax import Hierarchy

MAX_WEIGHT = 20.0
_MAX_DEPTH = 100  # WordNet has about 20; ends at circles


def plan_hierarchy(
  file: str, loss: str, sources: Sequence[Source | None]
) -> Hierarchy | None:
  """Returns the hierarchy of the classes of `sources`, if the loss needs one.

  Raises:
    UserError: one of file and loss is for the other; see `read_hierarchy`.
  """
  is_semantic = loss == "semantic_softmax"
  if file and not is_semantic:
    raise UserError(
      f"{file} counts with config.loss = 'semantic_softmax', not {loss!r}: set "
      "that, or leave the file out."
    )
  if not is_semantic:
    return None
  if not file:
    raise UserError(
      "is not set: config.loss = 'semantic_softmax' needs a file with a line "
      "PARENT CHILD for each class, such as ImageNet's wordnet.is_a.txt."
    )
  source = next(filter(None, sources), None)
  if source is None:
    raise UserError("needs the data set's classes: prepare the data set first.")
  return read_hierarchy(file, source.class_names)


def read_hierarchy(
  file: str | os.PathLike, class_names: Sequence[str]
) -> Hierarchy:
  """Reads lines of PARENT CHILD, as ImageNet's wordnet.is_a.txt has them.

  A class without such a line has no ancestors. Of several parents the first
  counts, and ancestors that are no classes are passed over.

  Raises:
    UserError: the file cannot be read, has another line, has a circle, or has
      nothing about these classes.
  """
  parent_of = {}
  for line in read_lines(file, f"the hierarchy from {file}"):
    names = line.split("\t" if "\t" in line else None)
    if len(names) != 2:
      raise UserError(
        f"{file} has the line {printable(line)!r}: every line is PARENT CHILD, "
        "with a tab between names that have spaces."
      )
    parent_of.setdefault(names[1], names[0])
  index = {name: i for i, name in enumerate(class_names)}
  above = [_class_above(name, parent_of, index) for name in class_names]
  levels, parents, places = [], [], {None: 0}
  while classes := [i for i, parent in enumerate(above) if parent in places]:
    levels.append(np.array(classes, np.int32))
    parents.append(np.array([places[above[i]] for i in classes], np.int32))
    places = {i: place for place, i in enumerate(classes)}
  counts = np.array([len(level) for level in levels])
  if counts.sum() < len(class_names):
    raise UserError(f"{file} has a circle of parents: correct its lines.")
  if len(levels) == 1:
    raise UserError(
      f"{file} has no class above another one, such as above "
      f"{printable(class_names[0])}: give the hierarchy of these classes, in "
      "which parents are classes too, or set config.loss = 'softmax'."
    )
  here_and_below = counts[::-1].cumsum()[::-1]
  weights = np.minimum(len(class_names) / here_and_below, MAX_WEIGHT)
  return Hierarchy(tuple(levels), tuple(parents), tuple(weights.tolist()))


def _class_above(
  name: str, parent_of: dict[str, str], index: dict[str, int]
) -> int | None:
  """Returns the nearest ancestor that is a class; None if there is none."""
  for _ in range(_MAX_DEPTH):
    name = parent_of.get(name)
    if name is None or name in index:
      break
  return index.get(name)
