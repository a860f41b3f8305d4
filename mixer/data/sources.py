# SPDX-License-Identifier: Apache-2.0
"""Where examples come from: TFDS data sets on disk, read at random.

Everything is read from the prepared folder alone, so a data set whose builder
is unknown here works as well, and TensorFlow is never imported.
"""

import dataclasses
import difflib
import importlib
import json
import os
from collections.abc import Sequence

from etils import epath

from mixer.errors import UserError

INFO = "dataset_info.json"


class NotPrepared(UserError):
  """The data set is known, but not on disk in a form that can be read."""


@dataclasses.dataclass(frozen=True)
class Source:
  """One split of a data set; examples are numbered from 0.

  Attributes:
    name: as asked for, such as `imagenet2012`.
    split: as asked for, such as `train[:99%]`.
    class_names: one for each label, in order.
    image_key: the feature that holds the image.
    label_key: the feature that holds the label.
    records: serialized examples, tf.train.Example, by id.
  """

  name: str
  split: str
  class_names: tuple[str, ...]
  image_key: str
  label_key: str
  records: Sequence[bytes] = dataclasses.field(repr=False)

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def __len__(self) -> int:
    return len(self.records)

  def read(self, ids: Sequence[int]) -> list[tuple[bytes, int]]:
    """Returns (encoded image, label) for each id in 0..len-1, in order."""
    from tensorflow_datasets.proto import tf_example_pb2

    examples = []
    # One by one: the batched read starts a pool of threads at every call.
    for i in map(int, ids):
      try:
        record = self.records[i]
      except RuntimeError as error:  # of the reader of ArrayRecord
        reason = str(error).partition(";")[0].partition("\n")[0]
        raise UserError(
          f"Cannot read example {i} of {self.name} {self.split} ({reason}): a"
          " file of the data set is missing or damaged. Delete its folder and"
          " prepare it again."
        ) from error
      # Parsed here because TFDS would decode the features that nobody asked
      # for as well: pets, for one, have a mask with every image.
      example = tf_example_pb2.Example.FromString(record)
      feature = example.features.feature
      image = feature[self.image_key].bytes_list.value[0]
      label = feature[self.label_key].int64_list.value[0]
      examples.append((image, label))
    return examples


def open_source(
  name: str,
  split: str,
  data_dir: str | None = None,
  *,
  image_key: str = "image",
  label_key: str = "label",
) -> Source:
  """Opens a prepared data set for random access.

  Args:
    name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION of TFDS.
    split: TFDS's syntax, such as `train[:99%]` or `train+validation`.
    data_dir: where data sets lie; None means $TFDS_DATA_DIR, and without it
      ~/tensorflow_datasets.
    image_key: the feature that holds the image.
    label_key: the feature that holds the label.

  Raises:
    NotPrepared: there is no such data set on disk, or not as ArrayRecord.
    UserError: the name, the split or a key does not exist.
  """
  builder = _open_builder(name, data_dir)
  return Source(
    name=name,
    split=split,
    class_names=_class_names(builder, name, image_key, label_key),
    image_key=image_key,
    label_key=label_key,
    records=_open_split(builder, name, split),
  )


def resolve_data_dir(data_dir: str | None = None) -> epath.Path:
  """Returns the folder of data sets that `data_dir` stands for."""
  # TFDS reads the variable once, when it is imported; this reads it now.
  default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return epath.Path(data_dir or default).expanduser()


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
    versions = [found for found in versions if found.name == version]
  return versions[-1] if versions else None


def split_name(name: str) -> tuple[str, str | None, str | None]:
  """Splits `NAME/CONFIG:VERSION` into its parts; None for what is not there."""
  path, _, version = name.partition(":")
  dataset, _, config = path.partition("/")
  return dataset, config or None, version or None


def formats(folder: epath.Path) -> set[str]:
  """Returns the record formats in a version folder, such as `tfrecord`."""
  info = json.loads((folder / INFO).read_text())
  return {
    info.get("fileFormat", "tfrecord"),
    *info.get("alternativeFileFormats", ()),
  }


def prepare_command(name: str, data_dir: str | None) -> str:
  suffix = f" --data_dir={data_dir}" if data_dir else ""
  return f"python -m mixer.data prepare {name}{suffix}"


def builder_class(name: str):
  """Returns the TFDS builder class that prepares a data set.

  Raises:
    NotPrepared: the data set exists, but no program can prepare it.
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
    if dataset == "imagenet21k":
      raise NotPrepared(
        "TFDS has no imagenet21k and no command here can make it: put a copy"
        " prepared elsewhere, as ArrayRecord with a split `full`, into"
        " imagenet21k/1.0.0 in the folder of data sets."
      ) from None
    known = {*ours, *tfds.list_builders(with_community_datasets=False)}
    near = difflib.get_close_matches(dataset, sorted(known))
    hint = "https://www.tensorflow.org/datasets/catalog lists what there is"
    if near:
      hint = f"the nearest names are {', '.join(near)}"
    raise UserError(f"There is no data set {dataset!r}: {hint}.") from None


def our_builders() -> dict[str, str]:
  """Returns the module of each builder that this project ships, by name."""
  folder = epath.Path(__file__).parent.parent / "datasets"
  return {
    module.parent.name: f"mixer.datasets.{module.parent.name}.{module.stem}"
    for module in folder.glob("*/*_dataset_builder.py")
  }


def manual_instructions(name: str) -> str | None:
  """Returns in one line which files the user must fetch, if there are any."""
  text = getattr(builder_class(name), "MANUAL_DOWNLOAD_INSTRUCTIONS", None)
  return " ".join(text.split()).rstrip(".") if text else None


def _versions(folder: epath.Path) -> list[epath.Path]:
  """Returns the version folders in `folder`, the oldest first."""
  if not folder.exists():
    return []
  found = [child for child in folder.iterdir() if (child / INFO).exists()]
  return sorted(found, key=_version_order)


def _version_order(folder: epath.Path) -> tuple[tuple[int, ...], str]:
  numbers = [int(part) for part in folder.name.split(".") if part.isdigit()]
  return tuple(numbers), folder.name


def _default_config(folder: epath.Path, dataset: str) -> epath.Path:
  """Returns the folder of the config that a bare name means."""
  if not folder.exists():
    return folder
  metadata = folder / ".config" / "metadata.json"
  if metadata.exists():
    return folder / json.loads(metadata.read_text())["default_config_name"]
  configs = [child for child in folder.iterdir() if _versions(child)]
  if len(configs) > 1:
    names = ", ".join(sorted(f"{dataset}/{child.name}" for child in configs))
    raise UserError(f"{dataset} has several configs, write one of: {names}.")
  return configs[0] if configs else folder


def _open_builder(name: str, data_dir: str | None):
  folder = find_prepared(name, data_dir)
  if folder is None:
    raise NotPrepared(_what_to_do(name, data_dir))
  if "array_record" not in formats(folder):
    raise NotPrepared(
      f"{name} is in {folder} as {'/'.join(sorted(formats(folder)))}, which"
      " cannot be read in random order; ArrayRecord is needed. Add it beside"
      f" what is there with: {prepare_command(name, data_dir)}"
    )
  import tensorflow_datasets as tfds

  return tfds.builder_from_directory(folder)


def _what_to_do(name: str, data_dir: str | None) -> str:
  """Says where a data set was looked for, and how to get it there."""
  root = resolve_data_dir(data_dir)
  folder = root.joinpath(*filter(None, split_name(name)))
  missing = f"{name} is not prepared: there is no data set in {folder}."
  try:
    manual = manual_instructions(name)
  except NotPrepared as error:
    return f"{missing} {error}"
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
  except (AssertionError, KeyError, ValueError) as error:
    sizes = ", ".join(f"{s} ({splits[s].num_examples})" for s in splits)
    raise UserError(
      f"{name} has no split {split!r}. There are: {sizes}; parts are written"
      " as train[:99%] or train[1000:], sums as train+test."
    ) from error
  if not num_examples:
    raise UserError(f"The split {split!r} of {name} holds no examples.")
  return info


def _open_split(builder, name: str, split: str) -> Sequence[bytes]:
  import tensorflow_datasets as tfds

  _split_info(builder, name, split)
  return builder.as_data_source(
    split,
    deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
    file_format="array_record",
  )


def _class_names(
  builder, name: str, image_key: str, label_key: str
) -> tuple[str, ...]:
  features = builder.info.features
  for key in (image_key, label_key):
    if key not in features:
      raise UserError(
        f"{name} has no feature {key!r}. There are:"
        f" {', '.join(sorted(features))}."
      )
  label = features[label_key]
  if getattr(label, "num_classes", None) is None:
    raise UserError(
      f"The feature {label_key!r} of {name} is not one class per image."
    )
  # Without names, TFDS shows the number.
  return tuple(label.int2str(i) for i in range(label.num_classes))
