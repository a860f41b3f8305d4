# SPDX-License-Identifier: Apache-2.0
"""The contact sheet shows the images of the step."""

import cv2
import numpy as np
import pytest
import recipes

from mixer.data import preprocess
from mixer.data.input_pipeline import train_batches
from mixer.data.sources import open_source
from mixer.errors import UserError
from mixer.plan import make_plan
from mixer.tools import show_batch


@pytest.fixture
def config(digits_dir):
  config = recipes.load("digits")
  config.data.data_dir = digits_dir
  return config


def third_batch(config, digits_dir):
  source = open_source("digits", "train", digits_dir)
  batches = train_batches(
    source,
    preprocess.parse(config.data.ops),
    batch=config.batch,
    seed=config.seed,
    start_step=3,
  )
  return next(batches)


def test_without_mixing_it_has_the_images_of_the_loader(config, digits_dir):
  config.mixup = 0.0

  pixels, labels = show_batch.fed_examples(make_plan(config), 3, np.arange(20))

  batch = third_batch(config, digits_dir)
  np.testing.assert_array_equal(pixels, batch["image"][:20])
  np.testing.assert_array_equal(labels, np.eye(10)[batch["label"][:20]])


def test_cutmix_shows_pixels_of_two_images_and_their_shares(config, digits_dir):
  config.mixup, config.cutmix = 0.0, 1.0

  pixels, labels = show_batch.fed_examples(make_plan(config), 3, np.arange(20))

  batch = third_batch(config, digits_dir)
  own, other = batch["image"], np.roll(batch["image"], 1, axis=0)
  is_own = np.all(pixels == own[:20], axis=(0, 3))
  is_other = np.all(pixels == other[:20], axis=(0, 3))
  assert np.all(is_own | is_other)
  assert 0 < is_own.sum() < 64
  rows, share = np.eye(10)[batch["label"]], is_own.mean()
  expected = share * rows + (1 - share) * np.roll(rows, 1, axis=0)
  np.testing.assert_allclose(labels, expected[:20], atol=1e-6)


def test_a_label_lists_its_classes_by_share():
  names = ["cat", "dog", "owl"]

  assert show_batch.describe(np.array([0, 1, 0]), names) == "dog"
  both = show_batch.describe(np.array([0.3, 0, 0.7]), names)
  assert both == "0.70 owl\n0.30 cat"


def test_the_sheet_is_a_picture_of_that_many_images(config, tmp_path):
  out = tmp_path / "sheet.png"

  show_batch.draw(config, str(out), images=8)

  sheet = cv2.imread(str(out))
  # Two rows: two of the eight images are in the second.
  h, w = sheet.shape[:2]
  dark = sheet.max(axis=2) < 100
  assert dark[h // 2 :, : w // 3].mean() > 0.2
  assert dark[h // 2 :, w // 2 :].mean() == 0


def test_missing_data_and_an_unknown_picture_format_are_explained(
  config, tmp_path
):
  with pytest.raises(UserError, match="sheet.xyz must end in .png or"):
    show_batch.draw(config, str(tmp_path / "sheet.xyz"), images=1)

  config.data.data_dir = str(tmp_path)
  with pytest.raises(UserError, match="digits is not prepared"):
    show_batch.draw(config, str(tmp_path / "sheet.png"))
