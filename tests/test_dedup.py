# SPDX-License-Identifier: Apache-2.0
"""Duplicates of photographs: recompressed, resized, mirrored, cropped."""

import importlib.resources

import cv2
import numpy as np
import PIL.Image
import pytest
import skimage.data
from photographs import encoded
from sklearn.datasets import load_sample_image

from mixer.data import decode
from mixer.data.sources import open_source
from mixer.datasets import dedup
from mixer.tools.data import main

# Those that come with the package itself; for others it asks the network.
IN_THE_PACKAGE = (
  *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png"),
  *("clock_motion.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
  *("hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png"),
  *("retina.jpg", "rocket.jpg", "microaneurysms.png", "page.png", "text.png"),
)


@pytest.fixture(scope="module")
def photographs():
  folder = importlib.resources.files(skimage.data)
  images = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
  for name in IN_THE_PACKAGE:
    with PIL.Image.open(folder / name) as image:
      # Fewer pixels, less work; some are small enough.
      factor = max(min(image.size) // 200, 1)
      images.append(np.array(image.convert("RGB").reduce(factor)))
  return images


def hashes_of(images):
  codes = [dedup.difference_hash(image) for image in images]
  names = [str(i) for i in range(len(images))]
  return dedup.Hashes(np.array(codes, np.uint64).T, names)


@pytest.mark.parametrize("quality", [50, 70, 95])
@pytest.mark.parametrize("scale", [0.5, 0.8, 1, 1.5])
def test_recompressed_and_resized_photographs_are_found(
  photographs, quality, scale
):
  known = hashes_of(photographs)

  for image, name in zip(photographs, known.names, strict=True):
    resized = cv2.resize(image, None, fx=scale, fy=scale)
    recompressed = encoded(resized, "JPEG", quality=quality)
    assert known.find(decode.decode(recompressed)) == name


def test_other_photographs_and_their_parts_are_not_found(photographs):
  rng = np.random.default_rng(0)

  for i, image in enumerate(photographs):
    known = hashes_of([*photographs[:i], *photographs[i + 1 :]])
    for _ in range(20):
      h, w = (rng.integers(side // 4, side) for side in image.shape[:2])
      y = rng.integers(image.shape[0] - h)
      x = rng.integers(image.shape[1] - w)
      part = image[y : y + h, x : x + w]
      assert known.find(part) is None
      assert known.find(np.ascontiguousarray(part[:, ::-1])) is None


def test_mirrored_turned_and_cropped_photographs_are_other_images(photographs):
  known = hashes_of(photographs)

  for image in photographs:
    h, w = image.shape[:2]
    assert known.find(np.ascontiguousarray(image[:, ::-1])) is None
    assert known.find(np.ascontiguousarray(np.rot90(image))) is None
    assert known.find(image[: int(0.7 * h), : int(0.7 * w)]) is None


def test_the_hash_of_an_image_never_changes():
  """Lists of earlier versions stay valid."""
  y, x = np.mgrid[:72, :72]
  grey = ((x * 7919 + y * 104729 + x * y * 31) % 251).astype(np.uint8)

  code = dedup.difference_hash(np.stack([grey] * 3, axis=-1))

  assert code.tolist() == [0x92C4753A06514955, 0xB60C817E039C7229]


def plain_images():
  rng = np.random.default_rng(0)
  white = np.full((64, 64, 3), 255, np.uint8)
  noise = rng.integers(250, 253, (64, 64, 3)).astype(np.uint8)
  sky = np.repeat(np.linspace(90, 200, 64)[:, None, None], 64, 1)
  sky = np.repeat(sky + rng.normal(0, 1, (64, 64, 1)), 3, 2).astype(np.uint8)
  return {"white": white, "noise": noise, "sky": sky}


@pytest.mark.parametrize("name", plain_images())
def test_plain_images_are_nobodys_duplicates(name):
  image = plain_images()[name]

  assert dedup.difference_hash(image) is None
  some = dedup.Hashes(np.zeros((2, 1), np.uint64), ["some"])
  assert some.find(image) is None


def test_of_several_the_nearest_is_named_and_far_ones_are_not(photographs):
  code = dedup.difference_hash(photographs[0])
  seven, ten = 2**7 - 1, 2**10 - 1

  def find(**flipped):
    codes = code ^ np.array([*flipped.values()], np.uint64)
    return dedup.Hashes(codes.T, [*flipped]).find(photographs[0])

  assert find(by_7=(seven, 0), by_1=(0, 1 << 63), by_20=(ten, ten)) == "by_1"
  assert find(by_10=(ten, 0)) == "by_10"
  assert find(by_11=(ten, 1)) is None


def test_the_command_writes_a_line_for_each_image(
  photographs, tmp_path, capsys
):
  folder = tmp_path / "images" / "test" / "things"
  folder.mkdir(parents=True)
  images = [*photographs[:3], plain_images()["white"]]
  for i, image in enumerate(images):
    PIL.Image.fromarray(image).save(folder / f"{i}.png")
  (folder / "4.png").write_bytes(b"no image")
  name, out = f"folder:{tmp_path / 'images'}", tmp_path / "hashes.txt"

  code = main(["hash", name, "--split=test", f"--out={out}"])

  assert code == 0
  said = capsys.readouterr().out
  assert "5 images" in said and "1 too plain" in said
  assert "1 that cannot be decoded" in said
  lines = [line.split("\t") for line in out.read_text().splitlines()]
  assert [line[1:] for line in lines[1:]] == [
    [name, "test", str(i)] for i in range(5)
  ]
  assert [line[0] for line in lines].count("-") == 2
  source = open_source(name, "test")
  loaded = dedup.load([out, out])
  assert len(loaded.names) == 6
  for image in images[:3]:
    [(data, _)] = source.read([int(loaded.find(image).split()[-1])])
    np.testing.assert_array_equal(decode.decode(data), image)
  assert loaded.find(images[3]) is None


def test_any_split_of_a_tfds_data_set_can_be_hashed(digits_dir, tmp_path):
  out = tmp_path / "hashes.txt"
  flags = "--split=test[:70]", f"--out={out}", f"--data_dir={digits_dir}"

  assert main(["hash", "digits", *flags]) == 0

  assert len(out.read_text().splitlines()) == 71
  known = dedup.load([out])
  [(data, _)] = open_source("digits", "test", digits_dir).read([69])
  assert known.find(decode.decode(data)) == "digits test[:70] 69"
