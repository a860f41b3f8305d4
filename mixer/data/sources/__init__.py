# SPDX-License-Identifier: Apache-2.0
"""Data sets with random access: TFDS data sets and folders of images.

`Source` is the interface to the input pipeline. Only the data set's folder is
read, so that its builder may be unknown here, and TensorFlow is never imported.
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from mixer.data.decode import MAX_PIXELS
from mixer.errors import DatasetNotFoundError, UserError
from mixer.storage import storage_errors, storage_path

# The way out where a data set's files are damaged.
COPY_AGAIN = (
  "Copy the file again, or move the folder away and prepare the data set again."
)


def split_error(name: str, split: str, sizes: Mapping[str, int]) -> UserError:
  """Returns an error that lists the splits and the syntax of parts."""
  listed = ", ".join(f"{each} ({size})" for each, size in sizes.items())
  return UserError(
    f"{name} has no split {split!r}, or not so much in it. There are: {listed};"
    " parts are written as train[:99%] or train[1000:], sums as train+test."
  )


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
  """One split of a data set; examples are numbered from 0.

  Every worker process is sent a copy; many threads read it at once.

  Attributes:
    name: as requested, such as `imagenet2012`.
    split: as requested, such as `train[:99%]`.
    class_names: one for each label, in order.
    max_pixels: the most that an image may have, see `decode`.
  """

  name: str
  split: str
  class_names: tuple[str, ...] = dataclasses.field(repr=False)
  max_pixels: int = dataclasses.field(
    default=MAX_PIXELS, repr=False, kw_only=True
  )

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @abc.abstractmethod
  def __len__(self) -> int:
    """Number of examples."""

  @property
  def label_shape(self) -> tuple[int, ...]:
    """() for one class an example, (num_classes,) for a row of 0 and 1."""
    return ()

  @property
  def checksum(self) -> int:
    """A number that other files or labels change; 0 where these are fixed."""
    return 0

  @abc.abstractmethod
  def read(self, ids: Sequence[int]) -> list[tuple[bytes, int | np.ndarray]]:
    """Returns (encoded image, label) for each id in 0..len-1, in order.

    Raises:
      UserError: an example's file is missing or damaged.
    """

  def read_labels(self, ids: Sequence[int]) -> list[int | np.ndarray]:
    """Returns only the labels."""
    return [label for _, label in self.read(ids)]

  @abc.abstractmethod
  def locate(self, i: int) -> str:
    """Returns an example's file, and its record if the file has several."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subset(Source):
  """Some examples of a source, renumbered.

  Attributes:
    source: the whole one.
    ids: their numbers there, int64 [n].
  """

  source: Source
  ids: np.ndarray = dataclasses.field(repr=False)

  @classmethod
  def of(cls, source: Source, ids: np.ndarray) -> "Subset":
    described = source.name, source.split, source.class_names
    return cls(*described, source, ids, max_pixels=source.max_pixels)

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def label_shape(self) -> tuple[int, ...]:
    return self.source.label_shape

  def read(self, ids: Sequence[int]) -> list[tuple[bytes, int | np.ndarray]]:
    return self.source.read(self.ids[ids])

  def locate(self, i: int) -> str:
    return self.source.locate(int(self.ids[i]))


@dataclasses.dataclass(frozen=True, eq=False)
class Concatenation(Source):
  """Several sources of the same classes, one after the other."""

  parts: tuple[Source, ...] = dataclasses.field(repr=False)

  @functools.cached_property
  def ends(self) -> np.ndarray:
    """Examples up to the end of each part, int64 [parts]."""
    return np.cumsum([len(part) for part in self.parts])

  def __len__(self) -> int:
    return int(self.ends[-1])

  def read(self, ids: Sequence[int]) -> list[tuple[bytes, int | np.ndarray]]:
    found = [self._find(i) for i in ids]
    return [example for part, i in found for example in part.read([i])]

  def locate(self, i: int) -> str:
    part, i = self._find(i)
    return part.locate(i)

  def _find(self, i: int) -> tuple[Source, int]:
    """Maps an example's number to (its part, its number there)."""
    part = int(np.searchsorted(self.ends, i, side="right"))
    begin = self.ends[part] - len(self.parts[part])
    return self.parts[part], int(i - begin)


def open_source(
  name: str,
  split: str,
  data_dir: str | None = None,
  *,
  image_key: str = "image",
  label_key: str = "label",
  configs: Sequence[str] = (),
  classes: str | None = None,
) -> Source:
  """Opens one split of a data set for random access.

  Args:
    name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION of TFDS, or
      folder:DIR for images in folders.
    split: TFDS's syntax, such as `train[:99%]` or `train+validation`.
    data_dir: where TFDS's data sets lie; None means $TFDS_DATA_DIR, and without
      it ~/tensorflow_datasets.
    image_key: the feature of a TFDS data set that holds the image.
    label_key: the feature that holds the label, or a rule of
      mixer.data.labels.
    configs: of the TFDS data set `name`, to open one after the other.
    classes: a file with the class folders of folder:DIR in the order of their
      labels, one a line; None means in sorted order.

  Raises:
    DatasetNotFoundError: there is no such data set on disk.
    RetryableError: its bucket cannot be reached.
    UserError: the name, the split or a key does not exist.
  """
  from mixer.data.sources import image_folder, tfds  # which import this file

  if configs:
    keys = {"image_key": image_key, "label_key": label_key}
    try:
      parts = [
        open_source(f"{name}/{each}", split, data_dir, **keys)
        for each in configs
      ]
    except DatasetNotFoundError as error:
      raise DatasetNotFoundError(
        f"All {len(configs)} configs of {name} are needed. {error}"
      ) from error
    return Concatenation(name, split, parts[0].class_names, tuple(parts))
  is_folder = name.startswith(image_folder.PREFIX)
  if is_folder and (image_key, label_key) != ("image", "label"):
    raise UserError(
      f"label={label_key} and image={image_key} are features of TFDS data"
      f" sets; in {name} the folders are the labels: leave such keys out."
    )
  if classes and not is_folder:
    raise UserError(
      f"classes={classes} is for images in folders; {name} of TFDS brings its"
      " own."
    )
  if is_folder:
    root = storage_path(name.removeprefix(image_folder.PREFIX))
  else:
    root = tfds.resolve_data_dir(data_dir)
  try:
    with storage_errors(root):
      if is_folder:
        return image_folder.open_split(name, split, classes=classes)
      return tfds.open_split(
        name, split, data_dir, image_key=image_key, label_key=label_key
      )
  except OSError as error:
    raise UserError(
      f"Cannot read {error.filename or root}: {error.strerror or error}. Check"
      " its permissions."
    ) from error
