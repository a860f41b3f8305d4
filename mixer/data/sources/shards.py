# SPDX-License-Identifier: Apache-2.0
"""Which record of which file an example of a split is."""

import abc
import bisect
import dataclasses
import itertools
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Shards:
  """The files that hold a split, and the window of records in each.

  Attributes:
    files: paths; one that a sum of splits names twice is there twice.
    skips: records of each file before the first one that belongs to the split.
    ends: examples up to the end of each window.
  """

  files: tuple[str, ...]
  skips: tuple[int, ...]
  ends: tuple[int, ...]

  @classmethod
  def of(cls, instructions: Iterable) -> "Shards":
    """Takes the file_instructions of a split of TFDS."""
    instructions = list(instructions)
    return cls(
      files=tuple(each.filename for each in instructions),
      skips=tuple(each.skip for each in instructions),
      ends=tuple(itertools.accumulate(each.take for each in instructions)),
    )

  def find(self, i: int) -> tuple[int, int]:
    """Returns (which of `files`, record in it) for an example."""
    if not 0 <= i < self.ends[-1]:
      raise IndexError(f"There is no example {i} of {self.ends[-1]}.")
    file = bisect.bisect_right(self.ends, i)
    begin = self.ends[file - 1] if file else 0
    return file, self.skips[file] + i - begin


class Records(Sequence[bytes], abc.ABC):
  """The serialized examples of a split, by id; safe for many threads."""

  def __init__(self, shards: Shards):
    self.shards = shards

  def __len__(self) -> int:
    return self.shards.ends[-1]

  def __getitem__(self, i: int) -> bytes | memoryview:
    return self._read(*self.shards.find(i))

  def locate(self, i: int) -> str:
    """Returns the file and the number of an example's record, from 0."""
    file, record = self.shards.find(i)
    return f"{self.shards.files[file]}, record {record}"

  @abc.abstractmethod
  def _read(self, file: int, record: int) -> bytes | memoryview:
    """Reads a record of one of the shards' files."""
