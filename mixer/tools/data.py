# SPDX-License-Identifier: Apache-2.0
"""Prepares data sets, hashes their images, and draws a step's images.

python -m mixer data prepare NAME [--data_dir=DIR]
python -m mixer data hash NAME --split=SPLIT --out=FILE [--data_dir=DIR]
python -m mixer data show --config=FILE --out=sheet.png [--step=N] [--images=N]
"""

import argparse
import importlib.util
import inspect
import logging
import os
import sys

from etils import epath

from mixer import cli
from mixer.data.sources import image_folder, open_source, tfds
from mixer.datasets import dedup
from mixer.errors import DatasetNotFoundError, RetryableError, UserError
from mixer.storage import check_output, is_in_bucket, storage_errors

TENSORFLOW = "2.21.0"  # as in requirements-dev.txt
# Raised by TFDS for refused or changed downloads and missing packages, and by
# it or TensorFlow if one of the user's own files is missing.
_CANNOT_PREPARE = {"DownloadError", "NonMatchingChecksumError", "ImportError"}
_MISSING_FILE = {"AssertionError", "FileNotFoundError", "NotFoundError"}


def main(arguments: list[str] | None = None) -> int:
  """Returns the exit code: 0 done, 2 the user must change something."""
  options = vars(_parser().parse_args(arguments))
  return cli.run_cli(options.pop("run"), **options)


def _parser() -> argparse.ArgumentParser:
  parser = cli.create_parser("mixer data", __doc__)
  commands = parser.add_subparsers(required=True)
  shared = argparse.ArgumentParser(add_help=False)
  shared.add_argument(
    "--data_dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets"
  )

  command = commands.add_parser(
    "prepare",
    parents=[shared],
    help="download a data set and store it as ArrayRecord",
  )
  command.set_defaults(run=_prepare)
  command.add_argument(
    "name",
    help="a name of TFDS, digits, photographs or imagenet21k; NAME/CONFIG"
    " picks a config",
  )
  command.add_argument(
    "--workers",
    type=int,
    help="processes, for imagenet21k; default: one a core",
  )
  command.add_argument(
    "--exclude",
    action="append",
    metavar="FILE",
    help="leave out images that resemble one in this list, which the command"
    " hash wrote; for imagenet21k; may be repeated",
  )

  command = commands.add_parser(
    "hash", parents=[shared], help="write a list for prepare --exclude"
  )
  command.set_defaults(run=_hash)
  command.add_argument("name", help="a prepared data set, or folder:DIR")
  command.add_argument("--split", required=True, help="such as test")
  command.add_argument("--out", required=True, metavar="FILE")

  # Its flags are those of train.py; see the end of this file.
  commands.add_parser("show", help="draw the training images of a step")
  return parser


def _prepare(name: str, data_dir: str | None, **options) -> str:
  options = {key: x for key, x in options.items() if x is not None}
  return describe(name, prepare(name, data_dir, **options))


def _hash(name: str, data_dir: str | None, split: str, out: str) -> str:
  file = check_output(out, "--out", dedup.HEADER.encode())
  source = open_source(name, split, data_dir)
  images, plain, unreadable = dedup.write(source, file)
  return (
    f"{images:,} images of {name} {split} are in {out}; {plain:,} too plain for"
    f" a hash and {unreadable:,} that cannot be decoded."
  )


def prepare(
  name: str, data_dir: str | None = None, **options: object
) -> epath.Path:
  """Writes a data set to disk as ArrayRecord, and returns its folder.

  Args:
    name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION.
    data_dir: the folder of data sets.
    **options: for the builder: workers, exclude.

  Raises:
    UserError: there is no such data set, or files that only the user can
      fetch are missing.
  """
  if name.startswith(image_folder.PREFIX):
    raise UserError(
      f"{name} needs no preparation: images are read as they are."
    )
  _check_options(name, options)
  dataset, _, version = tfds.split_name(name)
  if dataset in tfds.our_builders() and not version:
    # An older version on disk does not do.
    name = f"{name}:{tfds.builder_class(name).VERSION}"
  with storage_errors(tfds.resolve_data_dir(data_dir)):
    folder = tfds.find_prepared(name, data_dir)
  if folder is None:
    _generate(name, data_dir, options)
    return tfds.find_prepared(name, data_dir)
  if "exclude" in options:
    raise UserError(
      f"{name} is already in {folder}, and --exclude does not change it"
      " (excluded.txt there lists the images that were left out): move the"
      " folder away to prepare it again."
    )
  print(f"{name} is already prepared.")
  return folder


def _check_options(name: str, options: dict[str, object]) -> None:
  known = inspect.signature(tfds.builder_class(name).__init__).parameters
  for option in options:
    if option not in known:
      raise UserError(
        f"--{option} is for imagenet21k; the preparation of {name} has no such"
        " option."
      )


def describe(name: str, folder: epath.Path) -> str:
  """Returns lines of text: the folder, and the size of each split."""
  splits = tfds.read_builder(folder, name).info.splits
  sizes = [
    f"  {split}: {splits[split].num_examples} examples" for split in splits
  ]
  return "\n".join([f"{name} is in {folder}", *sizes])


def _generate(
  name: str, data_dir: str | None, options: dict[str, object]
) -> None:
  dataset, config, version = tfds.split_name(name)
  builder_class = tfds.builder_class(name)
  tfds.check_config(name)
  import tensorflow_datasets

  root = tfds.resolve_data_dir(data_dir)
  if is_in_bucket(root):
    raise UserError(
      f"{root}: data sets are prepared in a local folder. Mount the bucket"
      " as one, for instance with gcsfuse."
    )
  manual = tfds.manual_instructions(name)
  if manual and not any((root / "downloads" / "manual").glob("*")):
    raise DatasetNotFoundError(tfds.install_hint(name, data_dir))
  # TFDS's builders encode with it, some of them after hours of reading.
  if (
    dataset not in tfds.our_builders()
    and importlib.util.find_spec("tensorflow") is None
  ):
    raise UserError(
      f"The preparation of {dataset} needs TensorFlow, which training does not:"
      f" pip install tensorflow-cpu=={TENSORFLOW}, then run this again."
    )
  try:
    builder = builder_class(
      config=config, version=version, data_dir=root, **options
    )
  except (ValueError, AssertionError) as error:
    raise UserError(f"Cannot prepare {name}: {error}") from error
  if builder.data_path.exists():  # TFDS would take it for prepared
    raise UserError(
      f"{builder.data_path} is not complete, perhaps left over from an"
      " interruption: move it away, then run this again."
    )
  if not sys.stderr.isatty():
    tensorflow_datasets.disable_progress_bar()
  try:
    builder.download_and_prepare(file_format="array_record")
  except Exception as error:
    # Compared by name, because TensorFlow is not imported.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "RequestException" in kinds:
      raise RetryableError(
        f"{dataset} cannot be downloaded, because a host does not answer. Check"
        " the network, and give the same command again."
      ) from error
    if kinds & _CANNOT_PREPARE:
      reason = _first_line(error).rstrip(".:")
      raise UserError(f"Cannot prepare {name}: {reason}.") from error
    if not manual or not kinds & _MISSING_FILE:
      raise
    raise DatasetNotFoundError(
      f"{dataset} needs files that are not in"
      f" {root / 'downloads' / 'manual'} ({manual}). {_first_line(error)}"
    ) from error


def _first_line(error: Exception) -> str:
  return str(error).partition("\n")[0]


if __name__ == "__main__":
  # TFDS encodes with TensorFlow, which logs a lot.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  logging.getLogger().setLevel(logging.ERROR)
  if sys.argv[1:2] == ["show"]:
    from mixer.tools import show_batch

    sys.argv[:2] = [f"{sys.argv[0]} show"]
    show_batch.main()
  sys.exit(main())
