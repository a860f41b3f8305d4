# SPDX-License-Identifier: Apache-2.0
"""Records of ArrayRecord files by random access; they bring their own index."""

import functools

from mixer.data.sources.record_files import (
  MAX_OPEN,
  fingerprint,
  is_remote,
  stat_files,
)
from mixer.data.sources.shards import Records, Shards
from mixer.errors import UserError


class ArrayRecords(Records):
  """The records of a split.

  array_record's own data source keeps every file open, which fails with a
  thousand shards where the system does not allow for so many.
  """

  def __init__(self, shards: Shards):
    """Raises UserError where files are missing or out of reach."""
    super().__init__(shards)
    for file in shards.files:
      if is_remote(file):
        raise UserError(
          f"{file} is ArrayRecord, which cannot be read from a bucket. Mount"
          " the bucket as a folder (gs:// with gcsfuse), or prepare the data"
          " set as TFRecord."
        )
    self._fingerprint = fingerprint(stat_files(shards.files))

  def _read(self, file: int, record: int) -> bytes:
    path = self.shards.files[file]
    try:
      return _open(path, self._fingerprint).read([record])[0]
    except (RuntimeError, IndexError) as error:
      reason = str(error).partition(";")[0].partition("\n")[0]
      raise UserError(
        f"Cannot read {path}, record {record} ({reason}): the file is missing"
        " or damaged. Copy it again, or delete the folder and prepare the data"
        " set again."
      ) from error


@functools.lru_cache(MAX_OPEN)
def _open(path: str, version: str):
  """Opens a file; it is closed when nobody reads it any more."""
  from array_record.python import array_record_module

  del version  # The same path may stand for another file later.
  # No reading ahead: the next record asked for is somewhere else.
  return array_record_module.ArrayRecordReader(
    path,
    options="readahead_buffer_size:0,max_parallelism:0",
    file_reader_buffer_size=32768,
  )
