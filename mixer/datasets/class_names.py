# SPDX-License-Identifier: Apache-2.0
"""Readable class names of ImageNet and ImageNet-21k."""

import collections
import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixer.data.sources.file_io import compose

# The one class of ImageNet that ImageNet-21k does not have.
TEDDY = {"n04399382": "teddy, teddy bear"}


def synsets() -> dict[str, str]:
  """Returns the names of ImageNet-21k's classes by synset, in heads' order."""
  path = Path(__file__).parent / "imagenet21k" / "synsets.txt"
  return dict(line.split("\t") for line in path.read_text("utf-8").splitlines())


def imagenet2012() -> tuple[str, ...]:
  """Returns the names of ImageNet's 1,000 classes, in the labels' order."""
  labels = importlib.resources.files("tensorflow_datasets").joinpath(
    "datasets", "imagenet2012", "labels.txt"
  )
  return readable(labels.read_text("utf-8").split())


def imagenet21k() -> tuple[str, ...]:
  """Returns the names of the 21,843 classes, in the published heads' order."""
  return readable(tuple(synsets()))


def readable(classes: Sequence[str]) -> tuple[str, ...]:
  """Replaces WordNet ids, which TFDS uses for classes, by names.

  Args:
    classes: ids such as "n02123045"; other text is unchanged.

  Returns:
    Names such as "tabby, tabby cat"; where several classes have the same name,
    followed by the id: "crane (n02012849)".
  """
  known = synsets() | TEDDY
  names = [known.get(each, each) for each in classes]
  uses = collections.Counter(names)
  return tuple(
    f"{name} ({each})" if uses[name] > 1 and name != each else name
    for each, name in zip(classes, names, strict=True)
  )


def folder_classes(names: Sequence[str]) -> dict[str, int]:
  """Maps folder names to classes: names themselves, and their WordNet ids."""
  classes = {compose(name): i for i, name in enumerate(names)}
  known = synsets() | TEDDY
  ids = {key: classes[name] for key, name in known.items() if name in classes}
  return ids | classes


def true_class(path: str, folders: Mapping[str, int]) -> int | None:
  """Returns the class that the nearest folder of a file names, if any does."""
  parts = compose(Path(path).absolute().parent.as_posix()).split("/")
  return next((folders[x] for x in reversed(parts) if x in folders), None)
