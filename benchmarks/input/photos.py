# SPDX-License-Identifier: Apache-2.0
"""TFDS data sets for the measurements, made on the way."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds
from skimage import data

NAME = "photos"
VERSION = "1.0.0"
SHARDS = 4


def photographs() -> dict[str, np.ndarray]:
  """Returns the colour photographs without download, uint8 RGB [h, w, 3]."""
  left, right, _ = data.stereo_motorcycle()
  return {
    "astronaut": data.astronaut(),
    "chelsea": data.chelsea(),
    "coffee": data.coffee(),
    "hubble": data.hubble_deep_field(),
    "ihc": data.immunohistochemistry(),
    "motorcycle_left": left,
    "motorcycle_right": right,
    "retina": data.retina(),
    "rocket": data.rocket(),
  }


def encode(image: np.ndarray, suffix: str) -> bytes:
  """Encodes an RGB image as .jpg (of ImageNet's usual quality) or .png."""
  quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix == ".jpg" else []
  return cv2.imencode(suffix, image[..., ::-1], quality)[1].tobytes()


def write_photos(folder: Path, examples: int, file_format: str) -> str:
  """Writes a data set of 500 x 375 JPEGs from scikit-image's photographs.

  Every example is another part of a photograph, at ImageNet's usual size.

  Args:
    folder: parent of a folder of data sets for each size and format.
    examples: number of examples.
    file_format: "array_record" or "tfrecord".

  Returns:
    The folder of data sets, which may be there already.
  """
  root = folder / f"{NAME}_{examples}_{file_format}"
  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(encoding_format="jpeg"),
      "label": tfds.features.ClassLabel(names=list(photographs())),
    }
  )
  if not (root / NAME / VERSION).exists():
    records = list(_serialize_parts(features, examples))
    shards = (records[i::SHARDS] for i in range(SHARDS))
    write_dataset(root, NAME, file_format, features, shards, SHARDS)
  return str(root)


def write_dataset(
  data_dir: Path,
  name: str,
  file_format: str,
  features: tfds.features.FeaturesDict,
  shards: Iterable[list[bytes]],
  num_shards: int,
):
  """Writes a split "train" of serialized examples with TFDS's own writers."""
  target = data_dir / name / VERSION
  unfinished = data_dir / "incomplete" / name / VERSION
  unfinished.mkdir(parents=True, exist_ok=True)
  template = tfds.core.ShardedFileTemplate(
    data_dir=unfinished,
    dataset_name=name,
    split="train",
    filetype_suffix=file_format,
  )
  kind = tfds.core.FileFormat(file_format)
  adapter = tfds.core.file_adapters.ADAPTER_FOR_FORMAT[kind]
  lengths, num_bytes = [], 0
  for i, shard in enumerate(shards):
    path = template.sharded_filepath(shard_index=i, num_shards=num_shards)
    adapter.write_examples(path, enumerate(shard))
    lengths.append(len(shard))
    num_bytes += sum(map(len, shard))
  split = tfds.core.SplitInfo(
    name="train",
    shard_lengths=lengths,
    num_bytes=num_bytes,
    filename_template=template,
  )
  tfds.folder_dataset.write_metadata(
    data_dir=str(unfinished),
    features=features,
    split_infos=[split],
    filename_template=template,
    check_data=False,  # which would read it with TensorFlow
  )
  target.parent.mkdir(parents=True, exist_ok=True)
  unfinished.rename(target)


def _serialize_parts(
  features: tfds.features.FeaturesDict, examples: int
) -> Iterator[bytes]:
  photos = list(photographs().values())
  rng = np.random.default_rng(0)
  serializer = tfds.core.example_serializer.ExampleSerializer(
    features.get_serialized_info()
  )
  for i in range(examples):
    label = i % len(photos)
    h, w = photos[label].shape[:2]
    side = rng.uniform(0.6, 1) * min(h / 375, w / 500)
    part_h, part_w = int(375 * side), int(500 * side)
    y, x = rng.integers(h - part_h + 1), rng.integers(w - part_w + 1)
    part = photos[label][y : y + part_h, x : x + part_w]
    image = cv2.resize(part, (500, 375), interpolation=cv2.INTER_AREA)
    yield serializer.serialize_example(
      {"image": encode(image, ".jpg"), "label": np.int64(label)}
    )
