# SPDX-License-Identifier: Apache-2.0
"""Data sets with random access: TFDS data sets and folders of images.

Only the data set's folder is read, so that its builder may be unknown here, and
TensorFlow is never imported.
"""

from mixer.data.sources import image_folder, tfds
from mixer.data.sources.base import DatasetNotFoundError, Source, Subset
from mixer.errors import UserError

__all__ = ["DatasetNotFoundError", "Source", "Subset", "open_source"]


def open_source(
  name: str,
  split: str,
  data_dir: str | None = None,
  *,
  image_key: str = "image",
  label_key: str = "label",
  classes: str | None = None,
) -> Source:
  """Opens one split of a data set for random access.

  Args:
    name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION of TFDS, or
      folder:DIR for images in folders.
    split: TFDS's syntax, such as `train[:99%]` or `train+validation`.
    data_dir: where TFDS's data sets lie; None means $TFDS_DATA_DIR, and without
      it ~/tensorflow_datasets.
    image_key: the feature of a TFDS data set that holds the image.
    label_key: the feature that holds the label, or a rule of
      mixer.data.labels.
    classes: a file with the class folders of folder:DIR in the order of their
      labels, one a line; None means in sorted order.

  Raises:
    DatasetNotFoundError: there is no such data set on disk.
    UserError: the name, the split or a key does not exist.
  """
  if name.startswith(image_folder.PREFIX):
    return image_folder.open_split(name, split, classes=classes)
  if classes:
    raise UserError(
      f"classes={classes} is for images in folders; {name} of TFDS brings its"
      " own."
    )
  return tfds.open_split(
    name, split, data_dir, image_key=image_key, label_key=label_key
  )
