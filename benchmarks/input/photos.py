# SPDX-License-Identifier: Apache-2.0
"""A TFDS data set of 500 x 375 JPEGs, made from scikit-image's photographs."""

from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from skimage import data

NAME = "photos"
VERSION = "1.0.0"
FORMATS = ("array_record", "tfrecord")
SHARDS = 4


def photographs() -> dict[str, np.ndarray]:
  """The colour photographs that need no download, uint8 RGB [h, w, 3]."""
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


def write(folder: Path, examples: int, file_format: str) -> str:
  """Writes the data set, unless it is there already.

  Every example is another part of a photograph, at ImageNet's usual size and
  JPEG quality.

  Args:
    folder: for a folder of data sets for each size and format.
    examples: number of them.
    file_format: "array_record" or "tfrecord".

  Returns:
    The folder of data sets.
  """
  root = folder / f"{NAME}_{examples}_{file_format}"
  version = root / NAME / VERSION
  if (version / "dataset_info.json").exists():
    return str(root)
  version.mkdir(parents=True, exist_ok=True)
  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(encoding_format="jpeg"),
      "label": tfds.features.ClassLabel(names=list(photographs())),
    }
  )
  template = tfds.core.ShardedFileTemplate(
    data_dir=version,
    dataset_name=NAME,
    split="train",
    filetype_suffix=file_format,
  )
  records = list(_records(features, examples))
  shards = [records[i::SHARDS] for i in range(SHARDS)]
  for i, shard in enumerate(shards):
    _write_shard(
      template.sharded_filepath(shard_index=i, num_shards=SHARDS), shard
    )
  tfds.folder_dataset.write_metadata(
    data_dir=str(version),
    features=features,
    split_infos=[
      tfds.core.SplitInfo(
        name="train",
        shard_lengths=[len(shard) for shard in shards],
        num_bytes=sum(map(len, records)),
        filename_template=template,
      )
    ],
    filename_template=template,
    check_data=False,  # which would read it with TensorFlow
  )
  return str(root)


def _records(features: tfds.features.FeaturesDict, examples: int):
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
    jpeg = cv2.imencode(
      ".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95]
    )[1]
    yield serializer.serialize_example(
      {"image": jpeg.tobytes(), "label": np.int64(label)}
    )


def _write_shard(path: Path, records: list[bytes]) -> None:
  if "array_record" in path.name:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  else:
    import tensorflow as tf

    writer = tf.io.TFRecordWriter(str(path))
  for record in records:
    writer.write(record)
  writer.close()
