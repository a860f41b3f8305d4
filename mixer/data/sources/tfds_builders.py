# SPDX-License-Identifier: Apache-2.0
"""The programs that prepare TFDS data sets, by the data sets' names."""

import difflib
import importlib
import re

from etils import epath

from mixer.errors import UserError

# With a dot or a slash in other places it would lead to other folders.
_NAME = re.compile(
  r"(?P<dataset>\w+)(/(?P<config>\w[\w.+-]*))?(:(?P<version>\w[\w.]*))?"
)


def split_name(name: str) -> tuple[str, str | None, str | None]:
  """Splits `NAME/CONFIG:VERSION` into its parts; None for what is not there.

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
  return f"python -m mixer.data prepare {name}{suffix}"


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
    near = difflib.get_close_matches(dataset, sorted(known))
    hint = "https://www.tensorflow.org/datasets/catalog lists what there is"
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
  # TFDS's own words are many, and name no config where there are none.
  if not config or config in names:
    return
  near = sorted(names)
  if len(near) > 10:
    near = difflib.get_close_matches(config, near, n=10, cutoff=0)
  hint = f"write one of {', '.join(near)}" if near else f"write just {dataset}"
  raise UserError(f"{dataset} has no config {config!r}: {hint}.")


def manual_instructions(name: str) -> str | None:
  """Returns in one line which files the user must fetch, if there are any."""
  text = getattr(builder_class(name), "MANUAL_DOWNLOAD_INSTRUCTIONS", None)
  return " ".join(text.split()).rstrip(".") if text else None
