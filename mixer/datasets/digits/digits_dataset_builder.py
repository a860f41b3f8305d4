# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits: small, real, and part of scikit-learn.

Needs no network and a second of work. The first run and the tests train on it.
"""

import dataclasses
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

TRAIN_EXAMPLES = 1437


@dataclasses.dataclass
class Digits(tfds.core.BuilderConfig):
  """A subset of the digits, such as "01234"."""

  digits: str = "0123456789"


class Builder(tfds.core.GeneratorBasedBuilder):
  """Splits train (1,437) and test (360), in the same order everywhere.

  The other two configs hold the images of five digits each, in both splits: one
  to pre-train on, the other to transfer to.
  """

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [
    Digits(name="all"),
    Digits(name="0to4", digits="01234"),
    Digits(name="5to9", digits="56789"),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="The 8 x 8 grey digits of scikit-learn's load_digits.",
      homepage="https://archive.ics.uci.edu/dataset/80",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
          "label": tfds.features.ClassLabel(
            names=list(self.builder_config.digits)
          ),
        }
      ),
      supervised_keys=("image", "label"),
      # Shuffled by the permutation below; TFDS would shuffle again by key.
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
    order = np.random.RandomState(0).permutation(1797)
    return {
      "train": self._generate_examples(order[:TRAIN_EXAMPLES]),
      "test": self._generate_examples(order[TRAIN_EXAMPLES:]),
    }

  def _generate_examples(
    self, ids: np.ndarray
  ) -> Iterator[tuple[int, dict[str, object]]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(255 * digits.images / 16).astype(np.uint8)[..., None]
    names = list(self.builder_config.digits)
    ids = [i for i in ids if str(digits.target[i]) in names]
    for key, i in enumerate(ids):
      # Encoded here: TFDS would import TensorFlow for it, which takes seconds.
      image = cv2.imencode(".png", images[i])[1].tobytes()
      yield key, {"image": image, "label": str(digits.target[i])}
