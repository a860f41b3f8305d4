# SPDX-License-Identifier: Apache-2.0
"""Images in folders, one for each class: folder:DIR."""

import bisect
import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from mixer.data.sources import DatasetNotFoundError, Source, split_error
from mixer.data.sources.file_io import is_remote, read_file
from mixer.errors import UserError, format_list, nearest, notify

SUFFIXES = frozenset(
  ".jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff .gif".split()
)

# Folders that systems leave among the user's.
_IGNORED = frozenset({"@eaDir", "__MACOSX", "lost+found"})

PREFIX = "folder:"

EXPECTED = (
  "Expected is DIR/SPLIT/CLASS/IMAGE (train/cat/1.jpg, test/cat/2.jpg), or"
  " DIR/CLASS/IMAGE (cat/1.jpg), which is one split, train."
)

_THREADS = 32


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
    return [
      (read_file(self.locate(i)), int(self.labels[i])) for i in map(int, ids)
    ]

  def read_labels(self, ids: Sequence[int]) -> list[int]:
    """Returns only the labels, which needs no file."""
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
  splits = find_splits(root)
  class_names = _class_names(splits, classes)
  label_of = {class_name: i for i, class_name in enumerate(class_names)}
  windows = _windows(splits, name, split)
  listings = {}
  for part in {window.splitname for window in windows}:
    _check_known(splits[part], class_names, classes or "train")
    files, numbers = splits[part].listing()
    labels = [label_of[class_name] for class_name in splits[part].classes]
    listings[part] = files, np.array(labels, np.int32)[numbers]
  parts = [
    [column[window.from_ : window.to] for column in listings[window.splitname]]
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


def is_image(name: str) -> bool:
  """Returns whether a visible file has the suffix of an image."""
  return os.path.splitext(name)[1].lower() in SUFFIXES and not is_hidden(name)


def is_hidden(name: str) -> bool:
  """Returns whether a file or folder is hidden or the system's."""
  return name.startswith(".") or name in _IGNORED


class Entries(NamedTuple):
  """Contents of a folder: names of its folders, images and others, sorted."""

  folders: list[str]
  images: list[str]
  others: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSplit:
  """The class folders in one folder, listed when they are first needed.

  TFDS's split syntax is resolved against `num_examples` and `shard_lengths`.

  Attributes:
    folder: path.
    classes: names of the class folders, sorted.
    listed: their contents, where they have been listed already.
  """

  folder: str
  classes: tuple[str, ...]
  listed: Sequence[Entries] | None = None

  @property
  def num_examples(self) -> int:
    return sum(len(entries.images) for entries in self.entries)

  @property
  def shard_lengths(self) -> list[int]:
    return [self.num_examples]

  @functools.cached_property
  def entries(self) -> Sequence[Entries]:
    """Contents of each class folder."""
    folders = [f"{self.folder}/{name}" for name in self.classes]
    listed = self.listed or _scan_all(folders)
    for folder, entries in zip(folders, listed, strict=True):
      if entries.folders:
        raise UserError(
          f"The images of a class must lie directly in its folder, but {folder}"
          f" holds folders as well: {format_list(entries.folders)}. {EXPECTED}"
        )
    return listed

  def listing(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns file names, bytes [n], and the number of each one's class, int32.

    They are in the order of a hash of class and file name, so that a part of a
    split is a random sample, and the same on every machine.

    Raises:
      UserError: a class has no images.
    """
    if others := tuple(x for e in self.entries for x in e.others):
      _report_others(self.folder, others)
    pairs = [
      (name, entries.images)
      for name, entries in zip(self.classes, self.entries, strict=True)
    ]
    if empty := [name for name, images in pairs if not images]:
      raise UserError(
        f"{len(empty)} of {len(pairs)} class folders in {self.folder} hold no"
        f" images: {format_list(empty)}. Images are files with the suffixes"
        f" {' '.join(sorted(SUFFIXES))}. Fill these folders or remove them."
      )
    names = np.array([os.fsencode(x) for _, images in pairs for x in images])
    counts = [len(images) for _, images in pairs]
    classes = np.repeat(np.arange(len(pairs), dtype=np.int32), counts)
    keys = b"".join(
      hashlib.blake2b(os.fsencode(f"{name}/{x}"), digest_size=8).digest()
      for name, images in pairs
      for x in images
    )
    order = np.argsort(np.frombuffer(keys, ">u8"), kind="stable")
    return names[order], classes[order]


def find_splits(root: str) -> dict[str, FolderSplit]:
  """Returns the splits of a folder of images by name.

  Raises:
    DatasetNotFoundError: there is no such folder.
    UserError: it is not laid out as DIR/SPLIT/CLASS/IMAGE or DIR/CLASS/IMAGE.
  """
  if not epath.Path(root).is_dir():
    raise DatasetNotFoundError(_no_such_folder(root))
  top = scan(root)
  if top.images:
    raise UserError(
      f"Images lie loose in {root}: {format_list(top.images)}. {EXPECTED}"
    )
  inside = _scan_all([f"{root}/{name}" for name in top.folders])
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
      name: FolderSplit(f"{root}/{name}", tuple(entries.folders))
      for name, entries in inside.items()
    }
  if flat:
    listed = list(inside.values())
    return {"train": FolderSplit(root, tuple(inside), listed)}
  others = format_list([*(f"{name}/" for name in top.folders), *top.others])
  raise UserError(
    f"There are no class folders with images in {root}, but"
    f" {others or 'nothing at all'}. {EXPECTED}"
  )


def scan(folder: str) -> Entries:
  """Lists a folder, without what systems hide or leave in it."""
  folders, images, others, dangling = [], [], [], []
  try:
    is_local = not is_remote(folder)
    for entry in (
      os.scandir(folder) if is_local else epath.Path(folder).iterdir()
    ):
      if is_hidden(entry.name):
        continue
      if is_local and entry.is_symlink() and not os.path.exists(entry.path):
        dangling.append(entry.name)
      # A bucket takes long to tell folders from files.
      elif is_image(entry.name) and not (is_local and entry.is_dir()):
        images.append(entry.name)
      elif entry.is_dir():
        folders.append(entry.name)
      else:
        others.append(entry.name)
  except OSError as error:
    raise UserError(
      f"Cannot list {folder}: {error.strerror or error}. Check its permissions."
    ) from error
  if dangling:
    raise UserError(
      f"Links in {folder} lead nowhere: {format_list(sorted(dangling))}. Mend"
      " or remove them."
    )
  return Entries(sorted(folders), sorted(images), sorted(others))


def _scan_all(folders: Sequence[str]) -> list[Entries]:
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(scan, folders))


@functools.cache  # once, although evaluators open the same folders
def _report_others(folder: str, names: tuple[str, ...]) -> None:
  """Prints how many files of a split are no images, by their suffix."""
  suffixes = [os.path.splitext(x)[1].lower() or "no suffix" for x in names]
  counts = collections.Counter(suffixes).most_common()
  notify(
    f"{len(names):,} files in the class folders of {folder} are left out,"
    f" because their suffix is not one of {' '.join(sorted(SUFFIXES))}:"
    f" {format_list([f'{n:,} {suffix}' for suffix, n in counts])}.",
  )


def _no_such_folder(root: str) -> str:
  folder = epath.Path(root)
  message = f"There is no folder {root}"
  if not folder.parent.is_dir():
    return f"{message}, nor {folder.parent}."
  siblings = scan(str(folder.parent)).folders
  shown = nearest(folder.name, siblings, most=3) or siblings
  names = format_list(shown) or "no folder at all"
  return f"{message}. In {folder.parent} there is {names}."


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
    text = epath.Path(file).expanduser().read_text("utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"Cannot read the classes from {file}: {error}.") from error
  names = [line.strip() for line in text.splitlines() if line.strip()]
  twice = [name for name, n in collections.Counter(names).items() if n > 1]
  if twice:
    raise UserError(
      f"{file} names classes more than once: {format_list(twice)}. Leave one"
      " line for each."
    )
  return names


def _check_known(split: FolderSplit, names: Sequence[str], place: str) -> None:
  """Raises UserError if a split has class folders that are no classes."""
  if unknown := sorted({*split.classes} - {*names}):
    near = nearest(unknown[0], names, most=3)
    hint = f" (nearest to the first: {', '.join(near)})" if near else ""
    raise UserError(
      f"Class folders of {split.folder} are not in {place}:"
      f" {format_list(unknown)}{hint}. Add them there, or remove the folders."
    )
