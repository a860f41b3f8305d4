# SPDX-License-Identifier: Apache-2.0
"""Resized images have the pixels that tf.image.resize gives."""

import numpy as np
import pytest
import tensorflow as tf
from photographs import PHOTOGRAPHS

from mixer.data.resize import LARGEST_RESULT, resize
from mixer.errors import UserError

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


@pytest.mark.parametrize("method, antialias", [*EXACT, ("bilinear", False)])
@pytest.mark.parametrize(
  "image",
  [
    noise(1, 1),
    noise(2, 7),
    noise(97, 3),
    noise(61, 83) // 128 * 255,
    np.full((333, 257, 3), 255, np.uint8),
    np.full((31, 77, 3), 200, np.uint8),
    np.zeros((40, 30, 3), np.uint8),
  ],
  ids=["dot", "wide", "high", "black and white", "white", "grey", "black"],
)
def test_odd_images_have_tensorflows_pixels(image, method, antialias):
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


@pytest.mark.parametrize("method, antialias", [*EXACT, ("bilinear", False)])
def test_fractions_are_cut_off(method, antialias):
  image = np.array([[0, 1]], np.uint8)[..., None].repeat(3, axis=-1)

  resized = resize(image, 1, 1, method, antialias)

  assert resized.tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("antialias", [False, True])
def test_what_bicubic_throws_beyond_the_range_is_clipped(antialias):
  step = np.zeros((4, 8, 3), np.uint8)
  step[:, 4:] = 255

  resized = resize(step, 16, 32, "bicubic", antialias)

  # The darkest lies beside the step, the brightest beyond it.
  assert (resized[:, 8:14] == 0).all()
  assert (resized[:, 18:24] == 255).all()


def test_a_part_of_an_image_is_resized_like_a_copy_of_it():
  part = noise(60, 70)[3:45, 9:58]

  for method, antialias in (*EXACT, ("bilinear", False)):
    resized = resize(part, 20, 30, method, antialias)

    expected = resize(part.copy(), 20, 30, method, antialias)
    np.testing.assert_array_equal(resized, expected)


def test_an_enormous_result_is_refused():
  with pytest.raises(UserError, match=f"8193 x 8192 .* {LARGEST_RESULT} that"):
    resize(noise(2, 2), 8193, 8192)
