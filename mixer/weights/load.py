# SPDX-License-Identifier: Apache-2.0
"""Loads weights from a file, a run or the cache, with their properties."""

import dataclasses
import json
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
from etils import epath
from flax import linen as nn

from mixer.errors import UserError
from mixer.models.infer import (
  create_from_config,
  infer_image_size,
  infer_model,
)
from mixer.storage import storage_errors, storage_path
from mixer.weights import download, io, zoo
from mixer.weights.zoo import Published

RUN_FILE = "weights.npz"  # in a run's folder, written at the end of the run
CLASSES = "classes.txt"  # in the same folder, in the order of the labels
_RUN_FILES = (RUN_FILE, "weights.safetensors")
# timm's names, on its hub and in its releases, for weights from Google.
_TIMMS_OF_GOOGLE = r"mixer_[sbl]\d+_224\.goog|jx_mixer_[bl]\d+_224"
# timm's weights by other authors, for pixels in [0, 1].
_TIMMS_OF_MIIL = r"mixer_b16_224[._]miil"


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
  """Parameters and their origin.

  Attributes:
    params: nested dict of float32 NumPy arrays, under the published names.
    gelu: the form that they were trained with, "tanh" or "exact".
    class_names: in the order of the head's outputs; None if not known.
    image_size: height and width in pixels. If the source does not say, those
      of the square image with as many tokens; None for a BiT, or no square.
    name: argument of `read`.
    config: the run's config.json; {} for weights that are not in a run's
      folder.
  """

  params: dict = dataclasses.field(repr=False)
  gelu: str
  class_names: tuple[str, ...] | None
  image_size: tuple[int, int] | None
  name: str
  config: dict = dataclasses.field(default_factory=dict, repr=False)

  def create_model(self, **fields) -> nn.Module:
    """Creates the model: the run's, else inferred from the parameters.

    Args:
      **fields: override any field of the model.

    Raises:
      UserError: not in a run's folder, and not a Mixer, a ViT or a BiT.
    """
    return infer_model(
      self.params, config=self.config.get("model"), gelu=self.gelu, **fields
    )


def load(init: str | os.PathLike) -> dict:
  """Loads parameters.

  Args:
    init: a file (.npz, .safetensors, .pth), the name of published weights such
      as "imagenet21k/Mixer-B_16", which are downloaded if needed, or the folder
      of a finished run. File and folder may be in a bucket (gs://).

  Returns:
    Nested dict of float32 NumPy arrays, as `model.apply({"params": ...})`
    takes it.

  Raises:
    UserError: there are no such weights, they cannot be downloaded, or the file
      is damaged.
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
      f"There are no weights at {name}: give a file, the folder of a finished "
      "run, or a published name (python -m mixer weights list)."
    )
  published = zoo.find(name)
  return _read_file(download.fetch(published), name, published)


def _published_at(path: Path) -> Published | None:
  """Returns the entry of a file in the cache, by its folder and name."""
  name = "/".join(path.absolute().parts[-2:]).removesuffix(path.suffix)
  return zoo.REGISTRY.get(name)


def _read_file(
  path: Path, name: str, published: Published | None
) -> LoadedWeights:
  params, gelu = io.read_file(path)
  if re.search(_TIMMS_OF_MIIL, str(path.absolute())):
    _convert_pixel_range(params)
  if gelu is None:
    is_googles = (
      path.suffix == ".npz"
      or published is not None
      or re.search(_TIMMS_OF_GOOGLE, str(path.absolute()))
    )
    gelu = "tanh" if is_googles else "exact"
  class_names = None
  if published is not None and _has_head(params, published):
    class_names = _read_class_names(published.classes)
  image_size = infer_image_size(params)
  if published is not None and published.model.startswith("BiT"):
    image_size = published.image_size
  return LoadedWeights(params, gelu, class_names, image_size, name)


def _convert_pixel_range(params: dict):
  """Converts a stem for pixels in [0, 1] to an equivalent for [-1, 1]."""
  stem = params["stem"]
  stem["bias"] = stem["bias"] + stem["kernel"].sum((0, 1, 2)) / 2
  stem["kernel"] = stem["kernel"] / 2


def _has_head(params: dict, published: Published) -> bool:
  bias = params.get("head", {}).get("bias", np.zeros(0))
  return len(bias) == published.num_classes


def _read_class_names(classes: str) -> tuple[str, ...]:
  from mixer.datasets import class_names

  return getattr(class_names, classes)()


def _read_run(folder: epath.Path, name: str) -> LoadedWeights:
  path = next((folder / f for f in _RUN_FILES if (folder / f).exists()), None)
  if path is None and (folder / "sweep.json").is_file():
    raise UserError(
      f"{folder} holds a sweep: name one of the final runs, which are folders "
      "in it."
    )
  if path is None:
    raise UserError(
      f"{folder} holds no {RUN_FILE}, which a run writes at its end: let it "
      "finish (the same command continues it), or name a file."
    )
  params, gelu = io.read_file(path)
  file, config, model, image_size = folder / "config.json", {}, None, None
  if file.is_file():
    config, model, image_size = _read_config(file)
    gelu = config["model"].get("gelu") or gelu
  if image_size is None:
    image_size = infer_image_size(params, model)
  names = trained_classes(folder)
  return LoadedWeights(
    params, gelu or "tanh", names and tuple(names), image_size, name, config
  )


def trained_classes(folder: epath.Path) -> list[str] | None:
  """Returns the classes of the run in a folder, in the order of the labels."""
  file = folder / CLASSES
  if not file.is_file():
    return None
  return unicodedata.normalize("NFC", file.read_text()).splitlines()


def _read_config(
  file: epath.Path,
) -> tuple[dict, nn.Module, tuple[int, int] | None]:
  """Returns a run's config, its model and the size of its images."""
  from mixer.data import preprocess  # other weights do not need its imports

  try:
    config = json.loads(file.read_text())
    spec, model = config["data"]["ops"], create_from_config(config["model"])
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{file} is damaged: name the file of weights next to it."
    ) from error
  try:
    return config, model, preprocess.output_size(spec)
  except UserError:  # ops that the recipe defines itself
    return config, model, None
