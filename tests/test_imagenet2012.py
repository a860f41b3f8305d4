# SPDX-License-Identifier: Apache-2.0
"""TFDS's own preparation of ImageNet, on a miniature of the official files."""

import io

import numpy as np
import PIL.Image
import pytest
from layouts import tar_of
from photographs import encoded
from tensorflow_datasets.proto import tf_example_pb2

from mixer.data import decode
from mixer.data.sources import open_source
from mixer.tools.data import main

# Two that TFDS knows by name: the one is CMYK, the other a PNG.
CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"
# Places in the sorted list of the 1,000 classes.
CLASSES = {"n01440764": 0, "n01739381": 59, "n02105855": 230, "n15075141": 999}
# Of the first five: sea snake, alp, Shetland sheepdog, soup bowl, cradle.
VALIDATION_LABELS = [65, 970, 230, 809, 516]


def picture(seed):
  """A smooth image, which JPEG keeps well."""
  corners = np.random.default_rng(seed).integers(40, 216, (3, 3, 3), np.uint8)
  return np.array(PIL.Image.fromarray(corners).resize((48, 40)))


def file_of(seed, name=""):
  image = PIL.Image.fromarray(picture(seed))
  if name == PNG:
    return encoded(image, "PNG")
  return encoded(image.convert("CMYK" if name == CMYK else "RGB"), "JPEG")


def images():
  """The bytes of each image and its label, by its file name, by split."""
  names = [f"{synset}_{i}.JPEG" for synset in CLASSES for i in range(3)]
  names = sorted([*names, CMYK, PNG])
  return {
    "train": {
      name: (file_of(seed, name), CLASSES[name.partition("_")[0]])
      for seed, name in enumerate(names)
    },
    "validation": {
      f"ILSVRC2012_val_{i + 1:08}.JPEG": (file_of(100 + i), label)
      for i, label in enumerate(VALIDATION_LABELS)
    },
  }


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """The folder in which the command wrote the data set."""
  folder = tmp_path_factory.mktemp("imagenet")
  manual = folder / "downloads" / "manual"
  manual.mkdir(parents=True)
  train, validation = (
    {name: data for name, (data, _) in split.items()}
    for split in images().values()
  )
  inner = {
    f"{synset}.tar": tar_of(
      item for item in train.items() if item[0].startswith(synset)
    )
    for synset in CLASSES
  }
  (manual / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner.items()))
  # Not in the order of their names, which the labels follow.
  data = tar_of(reversed(validation.items()))
  (manual / "ILSVRC2012_img_val.tar").write_bytes(data)
  assert main(["prepare", "imagenet2012", f"--data_dir={folder}"]) == 0
  return str(folder)


def records(data_dir, split):
  """(image, label) of each example by its file name."""
  source = open_source("imagenet2012", split, data_dir)
  found = {}
  for i, example in enumerate(source.read(range(len(source)))):
    record = tf_example_pb2.Example.FromString(source.records[i])
    [name] = record.features.feature["file_name"].bytes_list.value
    found[name.decode()] = example
  return found


@pytest.mark.parametrize("split", ["train", "validation"])
def test_images_keep_their_bytes_and_classes(data_dir, split):
  expected = images()[split]

  found = records(data_dir, split)

  assert found.keys() == expected.keys()
  for name in found.keys() - {CMYK, PNG}:
    assert found[name] == expected[name]


def test_the_cmyk_and_the_png_image_become_rgb_jpegs(data_dir):
  expected = images()["train"]
  seeds = {name: seed for seed, name in enumerate(expected)}
  found = records(data_dir, "train")

  for name in CMYK, PNG:
    data, label = found[name]
    with PIL.Image.open(io.BytesIO(data)) as image:
      assert (image.format, image.mode) == ("JPEG", "RGB")
    difference = decode.decode(data).astype(int) - picture(seeds[name])
    assert label == expected[name][1]
    assert np.abs(difference).mean() < 4
