# SPDX-License-Identifier: Apache-2.0
"""What the classes of the published heads are called, for people to read."""

import collections
import importlib.resources
from collections.abc import Sequence

from mixer.datasets.imagenet21k.imagenet21k_dataset_builder import synsets

# The one class of ImageNet that ImageNet-21k does not have.
TEDDY = {"n04399382": "teddy, teddy bear"}


def imagenet2012() -> tuple[str, ...]:
  """The names of ImageNet's 1,000 classes, in the order of the labels."""
  labels = importlib.resources.files("tensorflow_datasets").joinpath(
    "datasets", "imagenet2012", "labels.txt"
  )
  return readable(labels.read_text("utf-8").split())


def imagenet21k() -> tuple[str, ...]:
  """The names of the 21,843 classes, in the order of the published heads."""
  return readable(tuple(synsets()))


def readable(classes: Sequence[str]) -> tuple[str, ...]:
  """Puts names in the place of WordNet's ids, by which TFDS calls classes.

  Args:
    classes: such as "n02123045", or what is no such id, which stays.

  Returns:
    Such as "tabby, tabby cat"; with the id behind it, "crane (n02012849)",
    where several of the classes have the same name.
  """
  known = synsets() | TEDDY
  names = [known.get(each, each) for each in classes]
  uses = collections.Counter(names)
  return tuple(
    f"{name} ({each})" if uses[name] > 1 and name != each else name
    for each, name in zip(classes, names, strict=True)
  )
