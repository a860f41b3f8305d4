# SPDX-License-Identifier: Apache-2.0
"""Tiles of scikit-image's photographs, classified by photograph.

  python -m mixer data prepare photographs

photographs/even holds the same tiles in another order: the tiles of each
photograph at equal distances, so that any 35 in a row cover all fifteen.

Needs no network and a few seconds of work. The images are natural ones, whose
class depends on the arrangement of pixels: tiles are grey and have the same
brightness and contrast, so that neither colours nor histograms tell them apart.
Tiles do not overlap. Needs scikit-image, which requirements-dev.txt installs.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds

from mixer.errors import UserError

NAMES = (
  "astronaut",
  "brick",
  "camera",
  "cell",
  "chelsea",
  "coffee",
  "coins",
  "grass",
  "gravel",
  "hubble_deep_field",
  "immunohistochemistry",
  "moon",
  "retina",
  "rocket",
  "stereo_motorcycle",
)
TILE = 40  # px
MOST = 200  # tiles per photograph
# Smallest standard deviation of a tile's grey levels (0..255); skies and the
# borders of slides lie below.
LEAST_CONTRAST = 4.0
MEAN, DEVIATION = 128, 50  # of every tile, before clipping to 0..255
# Ends of the splits, as shares of each photograph's tiles.
SPLITS = {"train": 0.6, "validation": 0.8, "test": 1.0}


@dataclasses.dataclass
class Order(tfds.core.BuilderConfig):
  """Order of the tiles in a split."""

  is_even: bool = False


class Builder(tfds.core.GeneratorBasedBuilder):
  """Splits train, validation and test, in the same order everywhere."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [Order(name="shuffled"), Order(name="even", is_even=True)]

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=f"Grey tiles of {TILE} x {TILE} px, a class a photograph.",
      homepage="https://scikit-image.org",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(
            shape=(TILE, TILE, 1), encoding_format="png"
          ),
          "label": tfds.features.ClassLabel(names=list(NAMES)),
        }
      ),
      supervised_keys=("image", "label"),
      disable_shuffling=True,  # done below
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
    examples = {split: [] for split in SPLITS}
    for label, name in enumerate(NAMES):
      order = np.random.RandomState(label)
      tiles = cut(photograph(name))
      tiles = [tiles[i] for i in order.permutation(len(tiles))[:MOST]]
      begin = 0
      for split, share in SPLITS.items():
        end = round(share * len(tiles))
        examples[split] += [(tile, label) for tile in tiles[begin:end]]
        begin = end
    return {
      split: self._generate_examples(tiles) for split, tiles in examples.items()
    }

  def _generate_examples(
    self, examples: list[tuple[np.ndarray, int]]
  ) -> Iterator[tuple[int, dict[str, object]]]:
    # Any slice of a split is a random sample of all photographs.
    if self.builder_config.is_even:
      order = evenly([label for _, label in examples])
    else:
      order = np.random.RandomState(0).permutation(len(examples))
    for key, i in enumerate(order):
      tile, label = examples[i]
      # Encoded here: TFDS would import TensorFlow for it, which takes seconds.
      image = cv2.imencode(".png", tile)[1].tobytes()
      yield key, {"image": image, "label": label}


def evenly(labels: Sequence[int]) -> np.ndarray:
  """Orders examples so that those of each class lie at equal distances.

  The distances also hold around the end: slices may wrap to the beginning.

  Args:
    labels: int [n]. Examples of one class keep their order.

  Returns:
    int [n], indices of the examples.
  """
  labels = np.asarray(labels)
  places = np.empty(len(labels))
  classes = np.unique(labels)
  for i, label in enumerate(classes):
    of_class = labels == label
    count = of_class.sum()
    # Classes start at different places, so that they alternate.
    places[of_class] = (np.arange(count) + i / len(classes)) / count
  return np.argsort(places, kind="stable")


def photograph(name: str) -> np.ndarray:
  """Returns a photograph of scikit-image in grey, float64 [h, w] of 0..255."""
  try:
    from skimage import data
  except ModuleNotFoundError as error:
    raise UserError(
      "photographs are those of scikit-image, which is not installed: pip "
      "install -r requirements-dev.txt"
    ) from error
  image = getattr(data, name)()
  if isinstance(image, tuple):  # a stereo pair and its disparity map
    image = image[0]
  return image.mean(axis=-1) if image.ndim == 3 else image.astype(float)


def cut(grey: np.ndarray) -> list[np.ndarray]:
  """Cuts float [h, w] into uint8 [TILE, TILE] of equal brightness and contrast.

  Leaves out tiles of low contrast.
  """
  h, w = grey.shape
  corners = (
    (y, x)
    for y in range(0, h - TILE + 1, TILE)
    for x in range(0, w - TILE + 1, TILE)
  )
  tiles = (grey[y : y + TILE, x : x + TILE] for y, x in corners)
  return [even_out(tile) for tile in tiles if tile.std() > LEAST_CONTRAST]


def even_out(tile: np.ndarray) -> np.ndarray:
  """Normalizes a tile to the common mean and deviation, as uint8."""
  tile = MEAN + DEVIATION * (tile - tile.mean()) / tile.std()
  return np.clip(np.round(tile), 0, 255).astype(np.uint8)
