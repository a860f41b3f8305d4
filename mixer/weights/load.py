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

from mixer.errors import UserError, notify
from mixer.models import flops
from mixer.models.base import IMAGENET_PIXELS, TokenModel
from mixer.models.infer import (
  create_from_config,
  infer,
  infer_image_size,
  infer_model,
)
from mixer.storage import storage_errors, storage_path
from mixer.weights import download, io, zoo
from mixer.weights.merge_params import merge_params
from mixer.weights.zoo import Published

RUN_FILE = "weights.npz"  # in a run's folder, written at the end of the run
CLASSES = "classes.txt"  # in the same folder, in the order of the labels
_RUN_FILES = (RUN_FILE, "weights.safetensors")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder of timm's
_OTHER_FOLDERS = {
  "sweep.json": "holds a sweep: name one of the final runs, folders in it",
  "_CHECKPOINT_METADATA": "is a checkpoint: name the folder of a finished run",
}
_SUFFIXES = (".npz", ".safetensors", ".pth", ".pt", ".bin", ".tar")
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
    class_names: in the order of the head's outputs; None if neither the file
      nor its folder tells.
    image_size: height and width in pixels. If the source does not say, those
      of the square image with as many tokens; None for a BiT, or no square.
    name: argument of `read`.
    config: the run's config.json; {} for weights that are not a run's.
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
      UserError: not a run's, and not a Mixer, a ViT or a BiT.
    """
    return infer_model(
      self.params, config=self.config.get("model"), gelu=self.gelu, **fields
    )


def load(init: str | os.PathLike) -> dict:
  """Loads parameters.

  Args:
    init: a file (.npz, .safetensors, .pth), the name of published weights such
      as "imagenet21k/Mixer-B_16", which are downloaded if needed, the folder of
      a finished run or of timm's hub, or a repository of the Hugging Face Hub
      ("hf:OWNER/NAME"). File and folder may be in a bucket (gs://).

  Returns:
    Nested dict of float32 NumPy arrays, as `model.apply({"params": ...})`
    takes it.

  Raises:
    UserError: there are no such weights, they cannot be downloaded, or the file
      is damaged or incomplete.
  """
  return read(init).params


def read(init: str | os.PathLike) -> LoadedWeights:
  """Loads parameters with their properties; see `load`."""
  with storage_errors(init):
    return _read_file(locate(init), os.fspath(init))


def locate(init: str | os.PathLike) -> Path:
  """Returns the file of weights, downloaded if needed; see `load`."""
  name = os.fspath(init)
  if name.startswith(download.HUB):
    return _find_file(download.fetch_from_hub(name))
  path = storage_path(name) if "://" in name else Path(name).expanduser()
  with storage_errors(name):
    if path.is_dir():
      return _find_file(path)
    if path.exists():
      return path
  if path.is_absolute() or path.suffix in _SUFFIXES:
    raise UserError(
      f"There are no weights at {name}: give a file, the folder of a finished "
      "run, or a published name (python -m mixer weights list)."
    )
  return download.fetch(zoo.find(name))


def _find_file(folder: epath.Path) -> epath.Path:
  """Returns the file of weights in a folder."""
  for file in (*_RUN_FILES, *_HUB_FILES):
    if (folder / file).exists():
      return folder / file
  for file, words in _OTHER_FOLDERS.items():
    if (folder / file).exists():
      raise UserError(f"{folder} {words}.")
  raise UserError(
    f"{folder} holds no {RUN_FILE}, which a run writes at its end: let it "
    "finish (the same command continues it), or name a file."
  )


def _read_file(path: Path, name: str) -> LoadedWeights:
  # Files in the cache, by their folder and name.
  cached = "/".join(path.absolute().parts[-2:]).removesuffix(path.suffix)
  published = zoo.REGISTRY.get(cached)
  params, record = io.read_file(path)
  config, class_names = record.get("config"), record.get("class_names")
  gelu, about, model, image_size = record.get("gelu"), {}, None, None
  if path.name in _RUN_FILES:
    config = read_json(path.parent / "config.json") or config
    class_names = trained_classes(path.parent) or class_names
  elif path.name in _HUB_FILES and gelu is None:
    about = read_json(path.parent / "config.json")
    class_names = about.get("label_names")
  if config:
    model, image_size = _parse_config(config, path)
    gelu = config["model"].get("gelu") or gelu
  model = model or infer(params)
  if model is not None:
    _check_complete(params, model, image_size, path)
  elif gelu is None:
    raise UserError(
      f"{path}: a part of a Mixer's stem or first block is missing: take the "
      "whole file."
    )
  if gelu is None:
    gelu = _convert_from_timm(params["stem"], path, about, published)
  if config and config["model"].pop("pixels", None):
    stem = params["stem" if "stem" in params else "embedding"]
    _absorb_pixels(stem, *np.float32(IMAGENET_PIXELS))
  image_size = image_size or infer_image_size(params, model)
  if published is not None and published.model.startswith("BiT"):
    image_size = published.image_size
  names = class_names and tuple(class_names)
  return LoadedWeights(params, gelu, names, image_size, name, config or {})


def _check_complete(
  params: dict, model: nn.Module, image_size: tuple[int, int] | None, path: Path
) -> None:
  """Raises UserError if parameters are missing, left over or misshapen."""
  if image_size is None and isinstance(model, TokenModel):  # tokens in a row
    image_size = model.patch, model.patch * (model.trained_tokens(params) or 1)
  try:
    expected = flops.abstract_params(model, image_size or (64, 64))
    merge_params(params, expected, head="keep")
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  except ValueError:
    return  # it takes no such image; whoever applies the model explains


def _convert_from_timm(
  stem: dict, path: Path, about: dict, published: Published | None
) -> str:
  """Converts the stem to pixels in [-1, 1], and returns the form of GELU.

  It was trained for (pixels in [0, 1] - mean) / std. The file records neither
  this nor the GELU: the hub's config.json (`about`) does, or its path.
  """
  defaults = about.get("pretrained_cfg", about)
  origin = str(path.absolute())
  if "architecture" in about:
    origin = f"{about['architecture']}.{defaults.get('tag')}"
  is_googles = published is not None or re.search(_TIMMS_OF_GOOGLE, origin)
  gelu = "tanh" if is_googles else "exact"
  is_miils = re.search(_TIMMS_OF_MIIL, origin)
  mean = np.float32(defaults.get("mean", 0 if is_miils else 0.5))
  std = np.float32(defaults.get("std", 1 if is_miils else 0.5))
  _absorb_pixels(stem, mean, std)
  if published is None:
    notify(
      f"{path} records neither GELU nor range of pixels; its "
      f"{'config.json' if about else 'path'} implies the {gelu} GELU, and "
      f"(pixels in [0, 1] - {mean}) / {std}."
    )
  return gelu


def _absorb_pixels(stem: dict, mean: np.ndarray, std: np.ndarray) -> None:
  """Converts a stem for (pixels in [0, 1] - mean) / std to pixels in [-1, 1].

  The same function of the pixels, but for rounding.
  """
  kernel = stem["kernel"]  # h w c o
  shift = np.broadcast_to((0.5 - mean) / std, kernel.shape[2])
  stem["bias"] = stem["bias"] + np.einsum("hwco,c->o", kernel, shift)
  stem["kernel"] = kernel / (2 * std)[..., None]


def trained_classes(folder: epath.Path) -> list[str] | None:
  """Returns the classes of the run in a folder, in the order of the labels."""
  file = folder / CLASSES
  if not file.is_file():
    return None
  return unicodedata.normalize("NFC", file.read_text()).splitlines()


def read_json(file: epath.Path) -> dict:
  """Returns the JSON object in a file; {} if there is no such file."""
  try:
    return dict(json.loads(file.read_text())) if file.is_file() else {}
  except (TypeError, ValueError) as error:
    raise UserError(
      f"{file} is damaged: bring it back from where it is whole."
    ) from error


def _parse_config(
  config: dict, path: Path
) -> tuple[nn.Module, tuple[int, int] | None]:
  """Returns the model of a run's config and the size of its images."""
  from mixer.data import preprocess  # other weights do not need its imports

  try:
    spec, model = config["data"]["ops"], create_from_config(config["model"])
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{path}: the config of its run describes no model that is known here: "
      "bring config.json back from where it is whole, or add the model."
    ) from error
  try:
    return model, preprocess.output_size(spec)
  except UserError:  # ops that the recipe defines itself
    return model, None
