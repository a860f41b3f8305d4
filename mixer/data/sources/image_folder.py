# SPDX-License-Identifier: Apache-2.0
"""Images in folders, one for each class: folder:DIR."""

import bisect
import collections
import dataclasses
import difflib
import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from mixer.data.sources import folder_layout
from mixer.data.sources.base import Source, no_such_split
from mixer.data.sources.folder_layout import FolderSplit
from mixer.data.sources.record_files import is_remote
from mixer.errors import UserError, format_list

PREFIX = "folder:"


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource(Source):
  """One split of a folder of images; every class is a folder with its name.

  Attributes:
    folders: that hold the class folders, one for each part of the split.
    ends: examples up to the end of each part.
    files: names without folder, bytes [n].
    labels: int32 [n].
  """

  folders: tuple[str, ...]
  ends: tuple[int, ...]
  files: np.ndarray = dataclasses.field(repr=False)
  labels: np.ndarray = dataclasses.field(repr=False)

  def __len__(self) -> int:
    return len(self.files)

  def read(self, ids: Sequence[int]) -> list[tuple[bytes, int]]:
    """Returns (encoded image, label) for each id in 0..len-1, in order."""
    return [(_read(self.locate(i)), int(self.labels[i])) for i in map(int, ids)]

  def read_labels(self, ids: Sequence[int]) -> list[int]:
    """Returns the labels alone, which needs no file."""
    return self.labels[ids].tolist()

  def locate(self, i: int) -> str:
    """Returns the path of the image."""
    if not 0 <= i < len(self):
      raise IndexError(f"There is no example {i} of {len(self)}.")
    folder = self.folders[bisect.bisect_right(self.ends, i)]
    name = self.class_names[self.labels[i]]
    return f"{folder}/{name}/{os.fsdecode(self.files[i].item())}"


def open_split(
  name: str, split: str, *, classes: str | None = None
) -> FolderSource:
  """See `mixer.data.sources.open_source`."""
  root = os.path.expanduser(name.removeprefix(PREFIX)).rstrip("/")
  if not root:
    raise UserError(f"{name!r} names no folder: write {PREFIX}DIR.")
  splits = folder_layout.find_splits(root)
  windows = _windows(splits, name, split)
  used = {window.splitname: splits[window.splitname] for window in windows}
  class_names = _class_names(splits, classes)
  _check_known(used, class_names, classes)
  labels = {class_name: label for label, class_name in enumerate(class_names)}

  listed = {}
  for part, folder in used.items():
    folder.check()
    files, places = folder.listing()
    of_place = np.array([labels[each] for each in folder.classes], np.int32)
    listed[part] = files, of_place[places]
  parts = [
    [column[window.from_ : window.to] for column in listed[window.splitname]]
    for window in windows
  ]
  return FolderSource(
    name=name,
    split=split,
    class_names=tuple(class_names),
    folders=tuple(splits[window.splitname].folder for window in windows),
    ends=tuple(itertools.accumulate(len(files) for files, _ in parts)),
    files=np.concatenate([files for files, _ in parts]),
    labels=np.concatenate([labels for _, labels in parts]),
  )


def _windows(splits: Mapping[str, FolderSplit], name: str, split: str) -> list:
  """Returns TFDS's absolute instructions: splitname, from_ and to of each."""
  import tensorflow_datasets as tfds

  try:
    windows = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
  except UserError:
    raise
  except (AssertionError, NotImplementedError, ValueError) as error:
    sizes = {each: splits[each].num_examples for each in splits}
    wrong = no_such_split(name, split, sizes)
    raise UserError(
      f"{wrong} If these are classes, their images must lie directly in them,"
      " for a split train of all."
    ) from error
  windows = [
    window
    for window in windows
    if range(splits[window.splitname].num_examples)[window.from_ : window.to]
  ]
  if not windows:
    raise UserError(f"The split {split!r} of {name} holds no examples.")
  return windows


def _class_names(
  splits: Mapping[str, FolderSplit], file: str | None
) -> list[str]:
  """Returns the classes of a file; else of train; else of all splits."""
  if not file:
    parts = [splits["train"]] if "train" in splits else splits.values()
    return sorted({*itertools.chain(*(part.classes for part in parts))})
  try:
    lines = (
      epath.Path(os.path.expanduser(file)).read_text("utf-8-sig").splitlines()
    )
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"Cannot read the classes from {file}: {error}.") from error
  names = [line.strip() for line in lines if line.strip()]
  twice = [name for name, n in collections.Counter(names).items() if n > 1]
  if twice:
    raise UserError(
      f"{file} names classes more than once: {format_list(twice)}. Leave one"
      " line for each."
    )
  return names


def _check_known(
  used: Mapping[str, FolderSplit], names: Sequence[str], file: str | None
) -> None:
  """Raises UserError if a split has class folders that are no classes."""
  for part in used.values():
    strange = sorted({*part.classes} - {*names})
    if strange:
      near = difflib.get_close_matches(strange[0], names)
      hint = f" (nearest to the first: {', '.join(near)})" if near else ""
      raise UserError(
        f"Class folders of {part.folder} are not in {file or 'train'}:"
        f" {format_list(strange)}{hint}. Add them there, or remove the folders."
      )


def _read(path: str) -> bytes:
  try:
    if is_remote(path):
      return epath.Path(path).read_bytes()
    with open(path, "rb") as file:
      return file.read()
  except OSError as error:
    raise UserError(
      f"Cannot read {path}: {error.strerror or error}. Mend its permissions, or"
      " bring it back: files must stay as they are while they are in use."
    ) from error
