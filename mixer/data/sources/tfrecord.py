# SPDX-License-Identifier: Apache-2.0
"""Records of TFRecord files by random access, through an index."""

import functools
from collections.abc import Iterable

from mixer.data.sources import tfrecord_index
from mixer.data.sources.record_files import (
  MAX_OPEN,
  LocalFile,
  RemoteFile,
  open_file,
)
from mixer.data.sources.shards import Records, Shards
from mixer.data.sources.tfrecord_index import FOOTER, HEADER, SplitFiles
from mixer.errors import UserError


class TFRecords(Records):
  """The records of a split.

  The checksum of the contents is not looked at: nothing at hand computes it
  fast enough. A file that was replaced or cut short is noticed by the length
  that stands before each record.
  """

  def __init__(self, shards: Shards, splits: Iterable[SplitFiles]):
    """Takes every base split that has files in `shards`.

    Raises:
      UserError: a file is missing, damaged or not as TFDS describes it.
    """
    super().__init__(shards)
    splits = list(splits)
    self._indexes = [tfrecord_index.open_index(split) for split in splits]
    places = {
      file: (which, first)
      for which, split in enumerate(splits)
      for file, first in zip(split.files, split.firsts(), strict=True)
    }
    # Which index, and where in it a file begins.
    self._places = [places[file] for file in shards.files]

  def _read(self, file: int, record: int) -> memoryview:
    path = self.shards.files[file]
    which, first = self._places[file]
    index = self._indexes[which]
    begin, end = index.span(first + record)
    length = end - begin - HEADER - FOOTER
    try:
      data = _open(path, index.fingerprint).read(begin, end - begin)
    except OSError as error:
      raise UserError(
        f"Cannot read {path}, record {record}: {error.strerror or error}. Copy"
        " the file again, or prepare the data set again."
      ) from error
    if data[:8] != length.to_bytes(8, "little") or len(data) != end - begin:
      raise UserError(
        f"{path} is not what it was when it was opened: there is no record of"
        f" {length} bytes at byte {begin} any more (record {record}). Start"
        " again; if that does not help, copy the file again or prepare the"
        " data set again."
      )
    # A view, because a copy costs more than parsing.
    return memoryview(data)[HEADER:-FOOTER]


@functools.lru_cache(MAX_OPEN)
def _open(path: str, version: str) -> LocalFile | RemoteFile:
  del version  # The same path may stand for another file later.
  return open_file(path)
