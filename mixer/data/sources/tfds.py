# SPDX-License-Identifier: Apache-2.0
"""Prepared TFDS data sets: finds their folders, and opens a split."""

import contextlib
import dataclasses
import importlib
import json
import os
import re
from collections.abc import Sequence

import numpy as np
from etils import epath

from mixer.data.labels import Label, find_label
from mixer.data.sources import COPY_AGAIN, Source, split_error
from mixer.data.sources.records import ArrayRecords, Records, TFRecords
from mixer.errors import DatasetNotFoundError, UserError, nearest
from mixer.storage import is_in_bucket, storage_path

INFO, FEATURES = "dataset_info.json", "features.json"
# Of versions; other folders are copies, or left over from a preparation that
# was interrupted, in forms that differ between the versions of TFDS.
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True)
class TfdsSource(Source):
  """One split of a prepared TFDS data set.

  Attributes:
    image_key: the feature that holds the image.
    label: how the label is read.
    records: serialized examples, tf.train.Example, by id.
  """

  image_key: str
  label: Label
  records: Records = dataclasses.field(repr=False)

  def __len__(self) -> int:
    return len(self.records)

  @property
  def label_shape(self) -> tuple[int, ...]:
    return self.label.shape

  def read(self, ids: Sequence[int]) -> list[tuple[bytes, int | np.ndarray]]:
    """Returns (encoded image, label) for each id in 0..len-1, in order."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    examples = []
    for i in map(int, ids):
      record = self.records[i]
      try:
        # TFDS would decode all features: pets, for one, have a mask with every
        # image.
        example = tf_example_pb2.Example.FromString(record)
        feature = example.features.feature
        image = feature[self.image_key].bytes_list.value[0]
        label = self.label.read(feature)
      except (DecodeError, IndexError) as error:
        raise UserError(
          f"{self.locate(i)}, is not an example with {self.image_key!r} and a"
          f" label in {' and '.join(map(repr, self.label.keys))}: the file is"
          " damaged, or the split has no labels: take another split."
          f" {COPY_AGAIN}"
        ) from error
      examples.append((image, label))
    return examples

  def locate(self, i: int) -> str:
    """Returns the file and the number of the record in it."""
    return self.records.locate(i)


def open_split(
  name: str, split: str, data_dir: str | None, *, image_key: str, label_key: str
) -> TfdsSource:
  """See `mixer.data.sources.open_source`."""
  folder = find_prepared(name, data_dir)
  if folder is None:
    raise DatasetNotFoundError(install_hint(name, data_dir))
  file_format = _readable_format(folder, name, data_dir)
  builder = read_builder(folder, name, file_format)
  features = builder.info.features
  image = dict(features.items()).get(image_key)
  info = image and image.get_serialized_info()
  # TFDS stores the bits of floats as if they were colours.
  if getattr(info, "np_dtype", 0) != np.object_ or image.np_dtype == np.float32:
    raise UserError(
      f"{name} has no feature {image_key!r} that is an encoded image of whole"
      f" numbers. There are: {', '.join(sorted(features))}."
    )
  label = find_label(features, name, label_key)
  instructions = _split_info(builder, name, split).file_instructions
  if file_format == "array_record":
    records = ArrayRecords(instructions)
  else:
    records = TFRecords(instructions, builder.info.splits.values())
  return TfdsSource(
    name=name,
    split=split,
    class_names=label.class_names,
    image_key=image_key,
    label=label,
    records=records,
  )


def resolve_data_dir(data_dir: str | None = None) -> epath.Path:
  """Returns the folder of data sets that `data_dir` stands for."""
  # TFDS reads the variable once, when it is imported; this reads it now.
  default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return storage_path(data_dir or default)


def find_prepared(name: str, data_dir: str | None = None) -> epath.Path | None:
  """Returns the version folder of a prepared data set, in any format."""
  dataset, config, version = split_name(name)
  folder = resolve_data_dir(data_dir) / dataset
  if config:
    folder = folder / config
  elif not _versions(folder):
    folder = _default_config(folder, dataset)
  versions = _versions(folder)
  if version:
    versions = [each for each in versions if each.name == version]
  return versions[-1] if versions else None


def read_builder(folder: epath.Path, name: str, file_format: str | None = None):
  """Returns a TFDS builder for the files in a version folder.

  Args:
    folder: of one version.
    name: of the data set, for a folder without it in its files.
    file_format: of the records, if there are several; None means the first.

  Raises:
    UserError: the metadata are damaged, or another version of TFDS wrote them.
  """
  import tensorflow_datasets as tfds
  from google.protobuf.json_format import ParseError

  try:
    if (folder / FEATURES).exists():
      builder = tfds.builder_from_directory(folder)
    else:
      # TFDS before 4.0 did not write down the features.
      dataset, _, _ = split_name(name)
      config = folder.parent.name if folder.parent.name != dataset else None
      root = folder.parents[2 if config else 1]
      builder = builder_class(dataset)(
        config=config, version=folder.name, data_dir=root
      )
    if file_format:
      # Chooses the files of the splits.
      builder.info.set_file_format(
        file_format, override=True, override_if_initialized=True
      )
    return builder
  except (AssertionError, LookupError, ParseError, ValueError) as error:
    # The class of a feature; TFDS imports it by this name.
    kind = re.search(r"FeatureConnector type: ([\w.]+)\.", str(error))
    if kind and not kind[1].startswith("tensorflow_datasets."):
      raise UserError(
        f"{folder / FEATURES} needs {kind[1]}: install or import it."
      ) from error
    raise UserError(
      f"{INFO} or {FEATURES} in {folder} was written by another version of"
      f" tensorflow-datasets (here {tfds.__version__}), or is damaged: upgrade"
      " that, or copy both again."
    ) from error


def _versions(folder: epath.Path) -> list[epath.Path]:
  """Returns the version folders in `folder`, the oldest first."""
  versions = [
    child
    for child in (folder.iterdir() if folder.is_dir() else ())
    if _VERSION.fullmatch(child.name) and (child / INFO).exists()
  ]
  return sorted(versions, key=lambda child: [*map(int, child.name.split("."))])


def _default_config(folder: epath.Path, dataset: str) -> epath.Path:
  """Returns the folder of the config that a bare name means."""
  if not folder.exists():
    return folder
  with contextlib.suppress(FileNotFoundError, UserError):  # if damaged
    content = _read_json(folder / ".config" / "metadata.json")
    if config := content.get("default_config_name"):
      return folder / config
  configs = [child for child in folder.iterdir() if _versions(child)]
  if len(configs) > 1:
    names = ", ".join(sorted(f"{dataset}/{child.name}" for child in configs))
    raise UserError(f"{dataset} has several configs, write one of: {names}.")
  return configs[0] if configs else folder


def _read_json(path: epath.Path) -> dict:
  try:
    content = json.loads(path.read_text())
  except ValueError:
    content = None
  if not isinstance(content, dict):
    raise UserError(f"{path} is damaged. {COPY_AGAIN}")
  return content


def _readable_format(
  folder: epath.Path, name: str, data_dir: str | None
) -> str:
  """Picks the record format to read."""
  info = _read_json(folder / INFO)
  stored = {
    info.get("fileFormat", "tfrecord"),
    *info.get("alternativeFileFormats", ()),
  }
  # ArrayRecord first, where it can be read.
  for file_format in sorted(stored, reverse=is_in_bucket(folder)):
    if file_format in ("array_record", "tfrecord"):
      return file_format
  raise DatasetNotFoundError(
    f"{name} is in {folder} as {'/'.join(sorted(stored))}, which cannot be read"
    " in random order: ArrayRecord or TFRecord is needed. Move that folder"
    f" away, and run: {prepare_command(name, data_dir)}"
  )


def install_hint(name: str, data_dir: str | None) -> str:
  """Returns in which folder a data set is missing, and how to get it there."""
  root = resolve_data_dir(data_dir)
  folder = root.joinpath(*filter(None, split_name(name)))
  missing = f"{name} is not prepared: there is no data set in {folder}."
  check_config(name)
  manual = manual_instructions(name)
  command = prepare_command(name, data_dir)
  if manual:
    return (
      f"{missing} It cannot be downloaded by a program. Put the files into"
      f" {root / 'downloads' / 'manual'} ({manual}), then run: {command}"
    )
  return f"{missing} Prepare it with: {command}"


def _split_info(builder, name: str, split: str):
  splits = builder.info.splits
  try:
    info = splits[split]
    # A slice beyond the end is only noticed when it is resolved.
    num_examples = info.num_examples
  except (AssertionError, KeyError, NotImplementedError, ValueError) as error:
    sizes = {each: splits[each].num_examples for each in splits}
    raise split_error(name, split, sizes) from error
  if num_examples < 1:
    raise UserError(
      f"The split {split!r} of {name} holds no examples: take a larger "
      "part, or leave its evaluator out with --config.skip_evals=NAME."
    )
  return info


# With a dot or a slash in other places it would lead to other folders.
_NAME = re.compile(
  r"(?P<dataset>\w+)(/(?P<config>\w[\w.+-]*))?(:(?P<version>\w[\w.]*))?"
)


def split_name(name: str) -> tuple[str, str | None, str | None]:
  """Splits `NAME/CONFIG:VERSION` into its parts; None for a missing one.

  Raises:
    UserError: it is no such name.
  """
  match = _NAME.fullmatch(name)
  if not match:
    raise UserError(
      f"{name!r} is not the name of a data set: write NAME, NAME/CONFIG,"
      " NAME:VERSION or NAME/CONFIG:VERSION. For images in folders, write"
      " folder:DIR."
    )
  return match["dataset"], match["config"], match["version"]


def prepare_command(name: str, data_dir: str | None) -> str:
  suffix = f" --data_dir={data_dir}" if data_dir else ""
  return f"python -m mixer data prepare {name}{suffix}"


def builder_class(name: str):
  """Returns the TFDS builder class that prepares a data set.

  Raises:
    UserError: neither TFDS nor this project has one; shows the nearest names.
  """
  import tensorflow_datasets as tfds

  dataset, _, _ = split_name(name)
  ours = our_builders()
  if dataset in ours:
    return importlib.import_module(ours[dataset]).Builder
  try:
    return tfds.builder_cls(dataset)
  except tfds.core.DatasetNotFoundError:
    known = {*ours, *tfds.list_builders(with_community_datasets=False)}
    near = nearest(dataset, sorted(known), most=3)
    hint = "https://www.tensorflow.org/datasets/catalog lists the known ones"
    if near:
      hint = f"the nearest names are {', '.join(near)}"
    raise UserError(f"There is no data set {dataset!r}: {hint}.") from None


def our_builders() -> dict[str, str]:
  """Returns the module of each builder that this project ships, by name."""
  folder = epath.Path(__file__).parent.parent.parent / "datasets"
  return {
    module.parent.name: f"mixer.datasets.{module.parent.name}.{module.stem}"
    for module in folder.glob("*/*_dataset_builder.py")
  }


def check_config(name: str) -> None:
  """Raises UserError if the builder of a data set has no such config."""
  dataset, config, _ = split_name(name)
  names = {known.name for known in builder_class(name).builder_configs.values()}
  # TFDS's message is long, and names no config where there are none.
  if not config or config in names:
    return
  near = sorted(names)
  if len(near) > 10:
    near = nearest(config, near, most=10, cutoff=0)
  hint = f"write one of {', '.join(near)}" if near else f"write just {dataset}"
  raise UserError(f"{dataset} has no config {config!r}: {hint}.")


def manual_instructions(name: str) -> str | None:
  """Returns in one line which files the user must fetch, if there are any."""
  text = getattr(builder_class(name), "MANUAL_DOWNLOAD_INSTRUCTIONS", None)
  return " ".join(text.split()).rstrip(".") if text else None
