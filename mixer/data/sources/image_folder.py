# SPDX-License-Identifier: Apache-2.0
"""Images in folders, one for each class: folder:DIR."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import os
import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from mixer.data.sources import Source, split_error
from mixer.data.sources.file_io import (
  KNOWN,
  Entries,
  compose,
  count_suffixes,
  describe_missing,
  read_file,
  report_left_out,
  scan,
  scan_all,
)
from mixer.errors import DatasetNotFoundError, UserError, format_list, nearest
from mixer.storage import read_lines

PREFIX = "folder:"

EXPECTED = (
  "Expected is DIR/SPLIT/CLASS/IMAGE (train/cat/1.jpg, test/cat/2.jpg), or"
  " DIR/CLASS/IMAGE (cat/1.jpg), which is one split, train."
)

# Split folders to evaluate on, the first that exists.
HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")

# Line breaks and bytes that are not UTF-8 cannot stand in a classes.txt.
_UNWRITABLE = re.compile("[\n\v\f\r\x1c-\x1e\x85\u2028\u2029\ud800-\udfff]")


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource(Source):
  """One split of a folder of images; every class is a folder with its name.

  Attributes:
    split_folders: all that the data set has.
    class_folders: paths of those that are read.
    folder_labels: label of each class folder, int32 [class folders].
    files: names without folder, bytes [n].
    numbers: index of each file's class folder, int32 [n].
  """

  split_folders: tuple[str, ...] = dataclasses.field(repr=False)
  class_folders: tuple[str, ...] = dataclasses.field(repr=False)
  folder_labels: np.ndarray = dataclasses.field(repr=False)
  files: np.ndarray = dataclasses.field(repr=False)
  numbers: np.ndarray = dataclasses.field(repr=False)

  def __len__(self) -> int:
    return len(self.files)

  @property
  def checksum(self) -> int:
    """CRC-32 of the names of all files, in order, and of their labels."""
    labels = self.folder_labels[self.numbers]
    return zlib.crc32(labels.tobytes(), zlib.crc32(self.files.tobytes()))

  def read(self, ids: Sequence[int]) -> list[tuple[bytes, int]]:
    """Returns (encoded image, label) for each id in 0..len-1, in order."""
    images = [read_file(self.locate(i)) for i in ids]
    return list(zip(images, self.read_labels(ids), strict=True))

  def read_labels(self, ids: Sequence[int]) -> list[int]:
    """Returns only the labels, which needs no file."""
    return self.folder_labels[self.numbers[ids]].tolist()

  def locate(self, i: int) -> str:
    """Returns the path of the image."""
    assert 0 <= i < len(self), i
    folder = self.class_folders[self.numbers[i]]
    return f"{folder}/{os.fsdecode(self.files[i].item())}"


def open_split(
  name: str, split: str, *, classes: str | None = None
) -> FolderSource:
  """See `mixer.data.sources.open_source`."""
  root = os.path.expanduser(name.removeprefix(PREFIX)).rstrip("/")
  if not root:
    raise UserError(f"{name!r} names no folder: write {PREFIX}DIR.")
  splits = find_splits(root)
  class_names = _class_names(splits, classes)
  label_of = {class_name: i for i, class_name in enumerate(class_names)}
  windows = _windows(splits, name, split)
  listings, class_folders, folder_labels = {}, [], []
  for part in dict.fromkeys(window.splitname for window in windows):
    folder, names = splits[part].folder, splits[part].class_names
    if unknown := sorted({*names} - {*class_names}):
      near = nearest(unknown[0], class_names, most=3)
      hint = f" (nearest to the first: {', '.join(near)})" if near else ""
      raise UserError(
        f"Class folders of {folder} are not in {classes or 'train'}:"
        f" {format_list(unknown)}{hint}. Add them there, or move the folders"
        " out."
      )
    files, numbers = splits[part].listing()
    listings[part] = files, numbers + np.int32(len(class_folders))
    class_folders += [f"{folder}/{name}" for name in splits[part].classes]
    folder_labels += [label_of[class_name] for class_name in names]
  parts = [
    [column[window.from_ : window.to] for column in listings[window.splitname]]
    for window in windows
  ]
  files, numbers = map(np.concatenate, zip(*parts, strict=True))
  return FolderSource(
    name=name,
    split=split,
    class_names=tuple(class_names),
    split_folders=tuple(split.folder for split in splits.values()),
    class_folders=tuple(class_folders),
    folder_labels=np.array(folder_labels, np.int32),
    files=files,
    numbers=numbers,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSplit:
  """The class folders in one folder, listed when they are first needed.

  TFDS's split syntax is resolved against `num_examples` and `shard_lengths`.

  Attributes:
    folder: path.
    classes: names of the class folders, sorted.
    others: files next to them.
    listed: their contents, where they have been listed already.
  """

  folder: str
  classes: tuple[str, ...]
  others: Sequence[str]
  listed: Sequence[Entries] | None = None

  @property
  def class_names(self) -> list[str]:
    """Names of the classes in Unicode's composed form (macOS has another)."""
    return [compose(name) for name in self.classes]

  @property
  def num_examples(self) -> int:
    return sum(len(entries.images) for entries in self.entries.values())

  @property
  def shard_lengths(self) -> list[int]:
    return [self.num_examples]

  @functools.cached_property
  def entries(self) -> Mapping[str, Entries]:
    """Contents of each class folder.

    Raises:
      UserError: there are faults in the names or contents.
    """
    listed = self.listed or scan_all(
      [f"{self.folder}/{x}" for x in self.classes]
    )
    entries = dict(zip(self.classes, listed, strict=True))
    for name, each in entries.items():
      if each.folders:
        raise UserError(
          "The images of a class must lie directly in its folder, but"
          f" {self.folder}/{name} holds folders as well:"
          f" {format_list(each.folders)}. {EXPECTED}"
        )
    if odd := [repr(x) for x in self.classes if _UNWRITABLE.search(x)]:
      raise UserError(
        f"Class folders of {self.folder} have a line break or bytes that are"
        f" not UTF-8 in their name: {format_list(odd)}. Rename them."
      )
    if twice := _repeated(self.class_names):
      raise UserError(
        f"{self.folder} has two folders each for {format_list(twice)}, whose"
        " names differ only in their Unicode form. Put their images into one."
      )
    if empty := [name for name, each in entries.items() if not each.images]:
      others = [x for name in empty for x in entries[name].others]
      raise UserError(
        f"{len(empty)} of {len(entries)} class folders in {self.folder} hold no"
        f" images{others and f' (but {count_suffixes(others)})' or ''}:"
        f" {format_list(empty)}. {KNOWN} Convert or add the images, or take"
        " these folders out."
      )
    return entries

  def listing(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns file names, bytes [n], and the number of each one's class, int32.

    They are in the order of a hash of class and file name, so that a part of a
    split is a random sample, and the same on every machine.
    """
    contents = self.entries.values()
    others = [*self.others, *(x for each in contents for x in each.others)]
    total = self.num_examples + len(others)
    report_left_out(self.folder, tuple(others), total)
    names = np.array([os.fsencode(x) for each in contents for x in each.images])
    counts = [len(each.images) for each in contents]
    classes = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    keys = b"".join(
      hashlib.blake2b(os.fsencode(f"{name}/{x}"), digest_size=8).digest()
      for name, each in self.entries.items()
      for x in each.images
    )
    order = np.argsort(np.frombuffer(keys, ">u8"), kind="stable")
    return names[order], classes[order]


def find_splits(root: str) -> dict[str, FolderSplit]:
  """Returns the splits of a folder of images by name.

  Raises:
    DatasetNotFoundError: there is no such folder.
    UserError: it is not laid out as DIR/SPLIT/CLASS/IMAGE or DIR/CLASS/IMAGE.
  """
  if not epath.Path(root).exists():
    raise DatasetNotFoundError(describe_missing(f"folder {root}", root))
  top = scan(root)
  if top.images:
    raise UserError(
      f"Images lie loose in {root}: {format_list(top.images)}. {EXPECTED}"
    )
  inside = scan_all([f"{root}/{name}" for name in top.folders])
  inside = dict(zip(top.folders, inside, strict=True))
  nested = [name for name, entries in inside.items() if entries.folders]
  flat = [name for name, entries in inside.items() if entries.images]
  if nested and flat:
    raise UserError(
      f"{root} mixes images with class folders: {format_list(flat)} hold"
      f" images, {format_list(nested)} hold folders. {EXPECTED} Move what"
      " does not belong there out of it."
    )
  if nested:
    return {
      name: FolderSplit(
        f"{root}/{name}", tuple(entries.folders), entries.others
      )
      for name, entries in inside.items()
    }
  if {name.lower() for name in flat} <= {"train", *HELD_OUT} and flat:
    raise UserError(
      f"The images in {root} lie in {format_list(flat)} without class folders."
      f" {EXPECTED}"
    )
  if flat:
    listed = list(inside.values())
    return {"train": FolderSplit(root, tuple(inside), top.others, listed)}
  there = format_list([*(f"{name}/" for name in top.folders), *top.others])
  others = [x for entries in inside.values() for x in entries.others]
  raise UserError(
    f"There are no class folders with images in {root}, but"
    f" {there or 'nothing at all'}"
    f"{others and f' with {count_suffixes(others)}' or ''}. {KNOWN} {EXPECTED}"
  )


def find_name(names: Sequence[str], splits: Sequence[str]) -> str | None:
  """Returns the first split with one of these names, in upper or lower case."""
  by_lower = {split.lower(): split for split in splits}
  return next((by_lower[name] for name in names if name in by_lower), None)


def _windows(splits: Mapping[str, FolderSplit], name: str, split: str) -> list:
  """Returns TFDS's absolute instructions: splitname, from_ and to of each."""
  import tensorflow_datasets as tfds

  try:
    windows = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
  except UserError:
    raise
  except (AssertionError, NotImplementedError, ValueError) as error:
    sizes = {each: splits[each].num_examples for each in splits}
    raise UserError(
      f"{split_error(name, split, sizes)} If these are classes, their images"
      " must lie directly in them, for a split train of all."
    ) from error
  windows = [
    window
    for window in windows
    if range(splits[window.splitname].num_examples)[window.from_ : window.to]
  ]
  if not windows:
    raise UserError(
      f"The split {split!r} of {name} holds no examples: take a larger "
      "part, or leave its evaluator out with --config.skip_evals=NAME."
    )
  return windows


def _class_names(
  splits: Mapping[str, FolderSplit], file: str | None
) -> list[str]:
  """Returns the classes of a file; else of train; else of all splits."""
  if not file:
    train = find_name(["train"], splits)
    parts = [splits[train]] if train else splits.values()
    names = sorted({*itertools.chain(*(part.classes for part in parts))})
    return list(dict.fromkeys(map(compose, names)))
  lines = read_lines(file, f"the classes from {file}")
  names = [compose(line) for line in lines]
  if twice := _repeated(names):
    raise UserError(
      f"{file} names classes more than once: {format_list(twice)}. Leave one"
      " line for each."
    )
  return names


def _repeated(names: Sequence[str]) -> list[str]:
  return [name for name, n in collections.Counter(names).items() if n > 1]
