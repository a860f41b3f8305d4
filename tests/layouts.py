# SPDX-License-Identifier: Apache-2.0
"""Writes tiny data sets and archives, laid out as the real ones."""

import dataclasses
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping

import cv2
import numpy as np
import tensorflow_datasets as tfds

from mixer.data.sources import Source
from mixer.data.sources.tfds import builder_class


@dataclasses.dataclass(frozen=True)
class Damaged(Source):
  """A source of which some images are not images, or others.

  It lies here because worker processes import its module.
  """

  source: Source
  bad: tuple[int, ...]
  image: bytes = b"broken"

  def __len__(self):
    return len(self.source)

  def read(self, ids):
    examples = zip(ids, self.source.read(ids), strict=True)
    return [
      (self.image if i in self.bad else image, label)
      for i, (image, label) in examples
    ]

  def locate(self, i):
    return f"record {i}"


def tar_of(members: Iterable[tuple[str, bytes]], folder: str = "") -> bytes:
  """Returns a tar of files, behind the entry of a folder if one is named."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w") as tar:
    if folder:
      entry = tarfile.TarInfo(folder)
      entry.type = tarfile.DIRTYPE
      tar.addfile(entry)
    for name, data in members:
      entry = tarfile.TarInfo(name)
      entry.size = len(data)
      tar.addfile(entry, io.BytesIO(data))
  return file.getvalue()


def write_tfds(
  data_dir: str | os.PathLike,
  name: str,
  examples: Mapping[str, int],
  size: int = 32,
  file_format: str = "array_record",
  fixed: Mapping[str, Callable[[int], object]] | None = None,
) -> None:
  """Writes random images with the official features, version and config.

  Args:
    data_dir: the folder of data sets.
    name: a name of TFDS or of this project, with or without config.
    examples: number of examples by split.
    size: side of the images in pixels, where the features leave it open.
    file_format: `array_record` or `tfrecord`.
    fixed: values of features by key, functions of the example's number.
  """
  dataset, _, config = name.partition("/")
  official = builder_class(name)(data_dir=data_dir, config=config or None)
  version, features = str(official.version), official.info.features
  configs = list(official.BUILDER_CONFIGS)
  config = official.builder_config_name

  class Miniature(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)
    BUILDER_CONFIGS = configs

    def _info(self) -> tfds.core.DatasetInfo:
      return tfds.core.DatasetInfo(
        builder=self, features=features, disable_shuffling=True
      )

    def _split_generators(self, dl_manager):
      return {
        split: self._generate_examples(split, number)
        for split, number in examples.items()
      }

    def _generate_examples(
      self, split: str, number: int
    ) -> Iterator[tuple[int, dict[str, object]]]:
      rng = np.random.default_rng(sum(map(ord, dataset + split)))
      for i in range(number):
        yield (
          i,
          {
            key: _random_value(key, feature, i, size, rng)
            for key, feature in features.items()
          }
          | {key: value(i) for key, value in (fixed or {}).items()},
        )

  Miniature.name = dataset
  builder = Miniature(data_dir=data_dir, config=config)
  builder.download_and_prepare(file_format=file_format)


def _random_value(
  key: str,
  feature: tfds.features.FeatureConnector,
  i: int,
  size: int,
  rng: np.random.Generator,
) -> object:
  if isinstance(feature, tfds.features.Image):
    h, w, channels = (length or size for length in feature.shape)
    channels = feature.shape[-1] or 3
    image = rng.integers(256, size=(h, w, channels), dtype=np.uint8)
    suffix = "." + (getattr(feature, "_encoding_format", None) or "png")
    # Encoded here: TFDS would import TensorFlow for it, which takes seconds.
    return cv2.imencode(suffix, image)[1].tobytes()
  if isinstance(feature, tfds.features.ClassLabel):
    return int(rng.integers(feature.num_classes))
  if isinstance(feature, tfds.features.BBoxFeature):
    return tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
  if isinstance(feature, tfds.features.Text):
    return f"{key}_{i}"
  if isinstance(feature, tfds.features.FeaturesDict):
    return {
      k: _random_value(k, inner, i, size, rng) for k, inner in feature.items()
    }
  if isinstance(feature, tfds.features.Sequence):
    number = rng.integers(3, 11)  # as many as CLEVR has objects
    return [
      _random_value(key, feature.feature, i, size, rng) for _ in range(number)
    ]
  if isinstance(feature, tfds.features.Tensor):
    return rng.uniform(6, 25, feature.shape).astype(np.float32)
  raise TypeError(f"No random value for a {type(feature).__name__}.")
