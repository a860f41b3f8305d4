# SPDX-License-Identifier: Apache-2.0
"""Prepares data sets: python -m mixer.data prepare NAME [--data_dir=DIR]."""

import argparse
import json
import logging
import os
import sys

from etils import epath

from mixer.data import sources
from mixer.errors import UserError


def main(arguments: list[str] | None = None) -> int:
  """Returns the exit code: 0 done, 2 the user must change something."""
  parser = argparse.ArgumentParser(prog="python -m mixer.data")
  commands = parser.add_subparsers(dest="command", required=True)
  prepare_parser = commands.add_parser(
    "prepare", help="download a data set and store it as ArrayRecord"
  )
  prepare_parser.add_argument(
    "name", help="a name of TFDS, or digits; NAME/CONFIG picks a config"
  )
  prepare_parser.add_argument(
    "--data_dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets"
  )
  given = parser.parse_args(arguments)
  try:
    folder = prepare(given.name, given.data_dir)
  except (UserError, OSError) as error:
    # What the system refuses, such as a folder, says which in its message.
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(describe(given.name, folder))
  return 0


def prepare(name: str, data_dir: str | None = None) -> epath.Path:
  """Brings a data set to disk as ArrayRecord, and returns its folder.

  Raises:
    UserError: there is no such data set, or files that only the user can
      fetch are missing.
  """
  folder = sources.find_prepared(name, data_dir)
  if folder is None:
    _generate(name, data_dir)
    return sources.find_prepared(name, data_dir)
  if "array_record" in sources.formats(folder):
    print(f"{name} is already prepared.")
  else:
    _add_array_record(folder)
  return folder


def describe(name: str, folder: epath.Path) -> str:
  """Returns where a data set is, and the size of each split."""
  import tensorflow_datasets as tfds

  splits = tfds.builder_from_directory(folder).info.splits
  sizes = [
    f"  {split}: {splits[split].num_examples} examples" for split in splits
  ]
  return "\n".join([f"{name} is in {folder}", *sizes])


def _generate(name: str, data_dir: str | None) -> None:
  dataset, config, version = sources.split_name(name)
  builder_class = sources.builder_class(name)
  root = sources.resolve_data_dir(data_dir)
  manual = sources.manual_instructions(name)
  if manual and not any((root / "downloads" / "manual").glob("*")):
    raise sources.NotPrepared(
      f"{dataset} cannot be downloaded by a program. Put the files into"
      f" {root / 'downloads' / 'manual'} ({manual}), then run this again."
    )
  try:
    builder = builder_class(config=config, version=version, data_dir=root)
  except (ValueError, AssertionError) as error:
    raise UserError(f"Cannot prepare {name}: {error}") from error
  try:
    builder.download_and_prepare(file_format="array_record")
  except (AssertionError, FileNotFoundError) as error:
    # TFDS says so when one of the user's own files is not there; without such
    # files, the fault lies elsewhere.
    if not manual:
      raise
    raise sources.NotPrepared(
      f"{dataset} needs files that are not in"
      f" {root / 'downloads' / 'manual'} ({manual}). {error}"
    ) from error


def _add_array_record(folder: epath.Path) -> None:
  """Copies each TFRecord file of a data set to an ArrayRecord beside it.

  TFDS's own conversion needs Apache Beam.
  """
  files = sorted(folder.glob("*.tfrecord-*"))
  if not files:
    raise UserError(
      f"{folder} holds neither ArrayRecord nor TFRecord files: delete it, and"
      " prepare the data set again."
    )
  for file in files:
    print(f"Copying {file.name} to ArrayRecord.")
    _copy_records(file)
  info = json.loads((folder / sources.INFO).read_text())
  info.setdefault("alternativeFileFormats", []).append("array_record")
  _replace(folder / sources.INFO, json.dumps(info, indent=2))


def _copy_records(file: epath.Path) -> None:
  import tensorflow as tf
  from array_record.python import array_record_module

  target = file.parent / file.name.replace(".tfrecord-", ".array_record-")
  unfinished = target.parent / f"incomplete.{target.name}"
  # One record a group, as TFDS writes it: groups are read and unpacked whole.
  writer = array_record_module.ArrayRecordWriter(
    str(unfinished), "group_size:1"
  )
  for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
    writer.write(record)
  writer.close()
  unfinished.replace(target)


def _replace(path: epath.Path, text: str) -> None:
  """Writes a file such that it is never seen half written."""
  unfinished = path.parent / f"incomplete.{path.name}"
  unfinished.write_text(text)
  unfinished.replace(path)


if __name__ == "__main__":
  # TFDS encodes with TensorFlow, which is talkative.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  logging.getLogger().setLevel(logging.ERROR)
  sys.exit(main())
