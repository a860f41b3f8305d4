# SPDX-License-Identifier: Apache-2.0
"""Images in folders, one for each class: folder:DIR."""

import bisect
import collections
import concurrent.futures
import dataclasses
import difflib
import functools
import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from mixer.data.sources.base import DatasetNotFoundError, Source, split_error
from mixer.data.sources.file_io import is_remote
from mixer.errors import UserError, format_list

SUFFIXES = frozenset(
  {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"}
  | {".gif"}
)

# Formats as they begin; WebP has its length in between.
_BEGINNINGS = (
  b"\xff\xd8\xff",
  b"\x89PNG\r\n\x1a\n",
  b"BM",
  b"II*\0",
  b"MM\0*",
  b"GIF8",
)

# Folders that systems leave among the user's own.
_IGNORED = frozenset({"@eaDir", "__MACOSX", "lost+found"})

_THREADS = 32


def is_hidden(name: str) -> bool:
  """Returns whether a file or folder is hidden or the system's."""
  return name.startswith(".") or name in _IGNORED


@dataclasses.dataclass(frozen=True)
class Entries:
  """Contents of a folder: names of its folders and images, sorted."""

  folders: list[str]
  images: list[str]
  others: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSplit:
  """The class folders in one folder; they are listed when first asked for.

  TFDS's split syntax is resolved against `num_examples` and `shard_lengths`.
  """

  folder: str
  classes: tuple[str, ...]

  @property
  def num_examples(self) -> int:
    return sum(len(entries.images) for entries in self.entries)

  @property
  def shard_lengths(self) -> list[int]:
    return [self.num_examples]

  @functools.cached_property
  def entries(self) -> list[Entries]:
    """Returns the images of each class folder."""
    folders = [f"{self.folder}/{name}" for name in self.classes]
    entries = _scan_all(folders)
    for folder, found in zip(folders, entries, strict=True):
      if found.folders:
        raise UserError(
          f"The images of a class must lie directly in its folder, but {folder}"
          f" holds folders as well: {format_list(found.folders)}. {_expected()}"
        )
    return entries

  def listing(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns file names, bytes [n], and the place of each one's class, int32.

    They are in an order that depends on nothing but the names of class and
    file, and is else as good as random: a part of it is a random sample.
    """
    images = [entries.images for entries in self.entries]
    names = np.array([os.fsencode(name) for part in images for name in part])
    places = np.repeat(
      np.arange(len(images), dtype=np.int32), [*map(len, images)]
    )
    keys = (
      hashlib.blake2b(os.fsencode(f"{kind}/{name}"), digest_size=8).digest()
      for kind, part in zip(self.classes, images, strict=True)
      for name in part
    )
    keys = np.frombuffer(b"".join(keys), ">u8")
    order = np.argsort(keys, kind="stable")
    return names[order], places[order]

  def check(self) -> None:
    """Raises UserError if a class has no image that begins like one."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      sound = pool.map(self._has_image, self.classes, self.entries)
      empty = [
        name for name, fine in zip(self.classes, sound, strict=True) if not fine
      ]
    if empty:
      raise UserError(
        f"{len(empty)} of {len(self.classes)} class folders in {self.folder}"
        f" hold no image that can be read: {format_list(empty)}. Images are"
        f" files with the suffixes {' '.join(sorted(SUFFIXES))}. Fill these"
        " folders or remove them."
      )

  def _has_image(self, name: str, entries: Entries) -> bool:
    paths = (f"{self.folder}/{name}/{image}" for image in entries.images)
    return any(map(_begins_like_an_image, paths))


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
      f"Images lie loose in {root}: {format_list(top.images)}. {_expected()}"
    )
  inside = _scan_all([f"{root}/{name}" for name in top.folders])
  inside = dict(zip(top.folders, inside, strict=True))
  nested = [name for name, entries in inside.items() if entries.folders]
  flat = [name for name, entries in inside.items() if entries.images]
  if nested and flat:
    raise UserError(
      f"{root} mixes images with class folders: {format_list(flat)} hold"
      f" images, {format_list(nested)} hold folders. {_expected()} Move what"
      " does not belong there out of it."
    )
  if nested:
    return {
      name: FolderSplit(f"{root}/{name}", tuple(entries.folders))
      for name, entries in inside.items()
    }
  if flat:
    split = FolderSplit(root, tuple(inside))
    # It is all listed already.
    split.__dict__["entries"] = list(inside.values())
    return {"train": split}
  found = format_list([*(f"{name}/" for name in top.folders), *top.others])
  raise UserError(
    f"There are no class folders with images in {root}, but"
    f" {found or 'nothing at all'}. {_expected()}"
  )


def scan(folder: str) -> Entries:
  """Lists a folder, without what systems hide or leave in it."""
  folders, images, others = [], [], []
  try:
    for entry in _entries(folder):
      if is_hidden(entry.name):
        continue
      # By name first: a bucket takes long to tell folders from files.
      if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
        images.append(entry.name)
      elif entry.is_dir():
        folders.append(entry.name)
      else:
        others.append(entry.name)
  except OSError as error:
    raise UserError(
      f"Cannot list {folder}: {error.strerror or error}. Check its permissions."
    ) from error
  if dangling := sorted(_dangling(folder)):
    raise UserError(
      f"Links in {folder} lead nowhere: {format_list(dangling)}. Mend or"
      " remove them."
    )
  return Entries(sorted(folders), sorted(images), sorted(others))


def _dangling(folder: str) -> list[str]:
  if is_remote(folder):
    return []
  with os.scandir(folder) as entries:
    return [
      entry.name
      for entry in entries
      if entry.is_symlink() and not os.path.exists(entry.path)
    ]


def _entries(folder: str):
  if is_remote(folder):
    return list(epath.Path(folder).iterdir())
  with os.scandir(folder) as entries:
    return list(entries)


def _scan_all(folders: Sequence[str]) -> list[Entries]:
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(scan, folders))


def _begins_like_an_image(path: str) -> bool:
  try:
    opened = (
      epath.Path(path).open("rb") if is_remote(path) else open(path, "rb")
    )
    with opened as file:
      head = file.read(12)
  except OSError:
    return False
  webp = head[:4] == b"RIFF" and head[8:] == b"WEBP"
  return webp or head.startswith(_BEGINNINGS)


def _no_such_folder(root: str) -> str:
  parent = epath.Path(root).parent
  said = f"There is no folder {root}"
  if not parent.is_dir():
    return f"{said}, nor {parent}."
  siblings = scan(str(parent)).folders
  near = difflib.get_close_matches(epath.Path(root).name, siblings)
  shown = near or siblings
  return (
    f"{said}. In {parent} there is {format_list(shown) or 'no folder at all'}."
  )


def _expected() -> str:
  return (
    "What is expected is DIR/SPLIT/CLASS/IMAGE, such as train/cat/1.jpg and"
    " test/cat/2.jpg, or DIR/CLASS/IMAGE, such as cat/1.jpg, which is one split"
    " train."
  )


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
  splits = find_splits(root)
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
    wrong = split_error(name, split, sizes)
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
