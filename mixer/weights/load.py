# SPDX-License-Identifier: Apache-2.0
"""Weights from a file, a run's folder or the cache, with their properties."""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np

from mixer.errors import UserError
from mixer.models.infer import infer_image_size
from mixer.storage import storage_errors, storage_path
from mixer.weights import download, io, zoo
from mixer.weights.published import Published

RUN_FILE = "weights.npz"  # in a run's folder, written when the run is done
CLASSES = "classes.txt"  # there too, in the order of the labels
_RUN_FILES = (RUN_FILE, "weights.safetensors")
# timm's names, on its hub and in its releases, for weights from Google.
_TIMMS_OF_GOOGLE = r"mixer_[sbl]\d+_224\.goog|jx_mixer_[bl]\d+_224"
# Weights of others in timm, which take pixels in [0, 1].
_TIMMS_OF_MIIL = r"mixer_b16_224[._]miil"


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
  """Parameters and where they come from.

  Attributes:
    params: nested dict of float32 NumPy arrays, under the published names.
    gelu: the form that they were trained with, "tanh" or "exact".
    class_names: in the order of the head's outputs; None if not known.
    image_size: height and width in pixels; of a file that says nothing, of the
      square image that makes so many tokens; None if not known, as of a BiT's.
    name: as asked for.
  """

  params: dict = dataclasses.field(repr=False)
  gelu: str
  class_names: tuple[str, ...] | None
  image_size: tuple[int, int] | None
  name: str


def load(init: str | os.PathLike) -> dict:
  """Loads parameters.

  Args:
    init: a file (.npz, .safetensors, .pth), the name of published weights such
      as "imagenet21k/Mixer-B_16", which are fetched if need be, or the folder
      of a run that is done. File and folder may be in a bucket (gs://).

  Returns:
    Nested dict of float32 NumPy arrays, as `model.apply({"params": ...})`
    takes it.

  Raises:
    UserError: there is nothing there, it cannot be had, or it is damaged.
  """
  return read(init).params


def read(init: str | os.PathLike) -> LoadedWeights:
  """Loads parameters with their properties; see `load`."""
  name = os.fspath(init)
  path = storage_path(name) if "://" in name else Path(name).expanduser()
  with storage_errors(name):
    if path.is_dir():
      return _read_run(path, name)
    if path.exists():
      return _read_file(path, name, _published_at(path))
  if path.is_absolute() or path.suffix in (*io.SUFFIXES, *io.PICKLES):
    raise UserError(
      f"There are no weights at {name}: give a file, the folder of a run that "
      "is done, or a published name (python -m mixer.weights list)."
    )
  published = zoo.find(name)
  return _read_file(download.fetch(published), name, published)


def _published_at(path: Path) -> Published | None:
  """Returns the published weights that a file in the cache is."""
  place = "/".join(path.absolute().parts[-2:]).removesuffix(path.suffix)
  return zoo.REGISTRY.get(place)


def _read_file(
  path: Path, name: str, published: Published | None
) -> LoadedWeights:
  content = io.read_file(path)
  if re.search(_TIMMS_OF_MIIL, str(path.absolute())):
    _take_symmetric_pixels(content.params)
  gelu = content.gelu
  if gelu is None:
    of_google = (
      path.suffix == ".npz"
      or published is not None
      or re.search(_TIMMS_OF_GOOGLE, str(path.absolute()))
    )
    gelu = "tanh" if of_google else "exact"
  class_names = None
  if published is not None and _has_head(content.params, published):
    class_names = _names_of(published.classes)
  image_size = infer_image_size(content.params)
  if published is not None and published.model.startswith("BiT"):
    image_size = published.image_size
  return LoadedWeights(content.params, gelu, class_names, image_size, name)


def _take_symmetric_pixels(params: dict):
  """Changes a stem for pixels in [0, 1] to one for [-1, 1], exactly."""
  stem = params["stem"]
  stem["bias"] = stem["bias"] + stem["kernel"].sum((0, 1, 2)) / 2
  stem["kernel"] = stem["kernel"] / 2


def _has_head(params: dict, published: Published) -> bool:
  bias = params.get("head", {}).get("bias", np.zeros(0))
  return len(bias) == published.num_classes


def _names_of(classes: str) -> tuple[str, ...]:
  from mixer.datasets import class_names

  return getattr(class_names, classes)()


def _read_run(folder: Path, name: str) -> LoadedWeights:
  path = next((folder / f for f in _RUN_FILES if (folder / f).exists()), None)
  if path is None and (folder / "sweep.json").is_file():
    raise UserError(
      f"{folder} holds a sweep, whose runs are the folders in it: name one of "
      "the final ones."
    )
  if path is None:
    raise UserError(
      f"{folder} holds no {RUN_FILE}, which a run writes when it is done: let "
      "it finish (the same command goes on), or name a file."
    )
  content = io.read_file(path)
  config = folder / "config.json"
  gelu, image_size = content.gelu, None
  if config.is_file():
    gelu, image_size = _recorded(config, gelu)
  if image_size is None:
    image_size = infer_image_size(content.params)
  names = trained_classes(folder)
  return LoadedWeights(
    content.params, gelu or "tanh", names and tuple(names), image_size, name
  )


def trained_classes(folder: Path) -> list[str] | None:
  """The classes of the run in a folder, in the order of their labels."""
  file = folder / CLASSES
  return file.read_text().splitlines() if file.is_file() else None


def _recorded(
  config: Path, gelu: str | None
) -> tuple[str | None, tuple[int, int] | None]:
  """The form of GELU and the image size of a run's config."""
  from mixer.data import preprocess  # which loads more than other weights need

  try:
    said = json.loads(config.read_text())
    spec, gelu = said["data"]["ops"], said["model"].get("gelu") or gelu
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{config} is damaged: name the file of weights beside it."
    ) from error
  try:
    return gelu, preprocess.output_size(spec)
  except UserError:  # with ops of a recipe's own
    return gelu, None
