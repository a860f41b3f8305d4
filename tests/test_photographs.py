# SPDX-License-Identifier: Apache-2.0
"""The tiles of scikit-image's photographs."""

import sys

import numpy as np
import pytest

from mixer.data.decode import decode
from mixer.data.sources import open_source
from mixer.datasets.photographs import photographs_dataset_builder as builder
from mixer.errors import UserError
from mixer.tools.data import prepare


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
  """Images uint8 [n, 40, 40, 3] and labels [n] by order and split."""
  folder = str(tmp_path_factory.mktemp("data"))
  found = {}
  for name in "photographs", "photographs/even":
    prepare(name, folder)
    for split in builder.SPLITS:
      source = open_source(name, split, folder)
      data, labels = zip(*source.read(range(len(source))), strict=True)
      images = np.stack([decode(x) for x in data])
      found.setdefault(name, {})[split] = images, np.array(labels)
  return found


@pytest.fixture(scope="module")
def splits(orders):
  return orders["photographs"]


def test_every_split_has_every_photograph(splits):
  sizes = {name: len(labels) for name, (_, labels) in splits.items()}
  assert sizes == {"train": 1_160, "validation": 385, "test": 389}
  for _, labels in splits.values():
    assert np.bincount(labels).size == len(builder.NAMES)
    assert np.bincount(labels).min() >= 10


def test_brightness_and_contrast_tell_no_tile_from_another(splits):
  images, _ = splits["train"]

  assert (images == images[..., :1]).all()  # grey
  values = images[..., 0].astype(float)
  assert np.abs(values.mean((1, 2)) - builder.MEAN).max() < 15
  assert values.std((1, 2)).max() < 1.02 * builder.DEVIATION
  assert np.median(values.std((1, 2))) > 0.98 * builder.DEVIATION


def test_no_tile_is_in_two_splits(splits):
  tiles = [set(map(bytes, images)) for images, _ in splits.values()]

  assert len(set.union(*tiles)) == sum(len(images) for images in tiles)


def test_the_first_tiles_of_a_split_are_a_sample_of_all_photographs(splits):
  _, labels = splits["train"]

  assert len(set(labels[:116].tolist())) == len(builder.NAMES)


def test_the_other_order_has_the_same_tiles(splits, orders):
  for split, (images, labels) in splits.items():
    others, of_others = orders["photographs/even"][split]
    one, other = (
      sorted(zip(map(bytes, x), y, strict=True))
      for x, y in ((images, labels), (others, of_others))
    )
    assert one == other


def test_any_few_in_the_even_order_are_of_all_photographs(orders):
  _, labels = orders["photographs/even"]["train"]

  for begin in range(len(labels)):
    some = np.take(labels, range(begin, begin + 35), mode="wrap")
    assert len({*some}) == len(builder.NAMES)


def test_classes_lie_at_equal_distances():
  order = builder.evenly([0] * 6 + [1] * 2)

  assert order.tolist() == [0, 1, 6, 2, 3, 4, 7, 5]


def test_without_scikit_image_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "skimage", None)

  with pytest.raises(UserError, match="pip install -r requirements-dev.txt"):
    builder.photograph("astronaut")
