# SPDX-License-Identifier: Apache-2.0
"""Resized images have the pixels that tf.image.resize gives."""

import numpy as np
import pytest
import tensorflow as tf
from photographs import PHOTOGRAPHS

from mixer.data.resize import resize

SIZES = [(224, 224), (256, 341), (213, 320), (448, 448), (500, 700)]

EXACT = [
  ("area", False),
  ("bicubic", False),
  ("bilinear", True),
  ("bicubic", True),
]


def noise(height, width):
  shape = (height, width, 3)
  return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def as_tensorflow_resizes(image, height, width, method, antialias=False):
  size = (height, width)
  resized = tf.image.resize(image, size, method, antialias=antialias)
  return tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8).numpy()


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("method, antialias", EXACT)
def test_photographs_have_tensorflows_pixels(method, antialias, height, width):
  for photograph in PHOTOGRAPHS.values():
    resized = resize(photograph, height, width, method, antialias)

    expected = as_tensorflow_resizes(
      photograph, height, width, method, antialias
    )
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, expected)


@pytest.mark.parametrize("height, width", SIZES)
def test_fast_bilinear_resizing_is_nearly_tensorflows(height, width):
  for photograph in PHOTOGRAPHS.values():
    resized = resize(photograph, height, width)

    expected = as_tensorflow_resizes(photograph, height, width, "bilinear")
    difference = resized.astype(int) - expected
    assert np.abs(difference).max() <= 1
    assert np.abs(difference).mean() < 0.03


ODD = {
  "dot": noise(1, 1),
  "wide": noise(2, 7),
  "high": noise(97, 3),
  "part": noise(60, 70)[3:45, 9:58],  # not contiguous
  # Bicubic throws it beyond the range.
  "black and white": noise(61, 83) // 128 * 255,
  "step": np.array([[[0] * 3, [1] * 3]], np.uint8),  # fractions are cut off
  "white": np.full((333, 257, 3), 255, np.uint8),
  "grey": np.full((31, 77, 3), 200, np.uint8),
}


@pytest.mark.parametrize("method, antialias", [*EXACT, ("bilinear", False)])
@pytest.mark.parametrize("name", ODD)
def test_odd_images_have_tensorflows_pixels(name, method, antialias):
  image = ODD[name]
  for height, width in (1, 1), (5, 3), (64, 64), (33, 258), (97, 101):
    resized = resize(image, height, width, method, antialias)

    expected = as_tensorflow_resizes(image, height, width, method, antialias)
    difference = np.abs(resized.astype(int) - expected)
    assert difference.max() <= (method == "bilinear" and not antialias)


def test_the_same_size_leaves_an_image_as_it_is():
  image = noise(37, 53)

  for method, antialias in (*EXACT, ("bilinear", False)):
    resized = resize(image, 37, 53, method, antialias)

    np.testing.assert_array_equal(resized, image)
