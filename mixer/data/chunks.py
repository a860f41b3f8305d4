# SPDX-License-Identifier: Apache-2.0
"""Some examples of a batch: read, decoded and augmented by one worker."""

from collections.abc import Callable

import numpy as np

from mixer.data.decoding import decode
from mixer.data.order import GlobalOrder, augmentation_rng
from mixer.data.sources import Source
from mixer.errors import UserError

Ops = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Arrays = dict[str, np.ndarray]

# Stands in where a chunk has no image of its own, to learn the shape of one.
UNSEEN = np.zeros((512, 512, 3), np.uint8)

# So many broken images in a row are no accident.
MOST_BAD_IN_A_ROW = 100


def train_chunk(
  source: Source,
  ops: Ops,
  order: GlobalOrder,
  positions: np.ndarray,
  replaces: bool,
) -> Arrays:
  """Reads, decodes and augments the examples at some positions."""
  ids = order(positions)
  images, labels, bad = [], [], []
  for i, position, (data, label) in zip(
    ids, positions, source.read(ids), strict=True
  ):
    image = _decode(source, i, data, passes=replaces)
    if image is None:
      bad.append(i)
      i, image, label = _next_image(source, order, position)
    rng = augmentation_rng(order.seed, int(position))
    images.append(_augment(source, i, ops, image, rng))
    labels.append(label)
  return _stack(source, images, labels, positions, bad)


def _next_image(
  source: Source, order: GlobalOrder, position: int
) -> tuple[int, np.ndarray, int | np.ndarray]:
  """Returns id, image and label of the next example that can be decoded."""
  for i in order(position + np.arange(1, MOST_BAD_IN_A_ROW)):
    [(data, label)] = source.read([i])
    image = _decode(source, i, data, passes=True)
    if image is not None:
      return i, image, label
  raise UserError(
    f"{MOST_BAD_IN_A_ROW} images in a row of {source.name}, split"
    f" {source.split}, cannot be decoded: prepare the data set again."
  )


def eval_chunk(
  source: Source, ops: Ops, positions: np.ndarray, skips: bool
) -> Arrays:
  """Reads and decodes the examples of some numbers, as far as there are any."""
  ids = positions[positions < len(source)]
  images, labels, bad = [], [], []
  for i, (data, label) in zip(ids, source.read(ids), strict=True):
    image = _decode(source, i, data, passes=skips)
    if image is None:
      bad.append(i)
    else:
      image = _augment(source, i, ops, image, augmentation_rng(0, int(i)))
    images.append(image)
    labels.append(label)
  missing = len(positions) - len(ids)
  images += [None] * missing
  labels += [np.zeros(source.label_shape, np.int32)] * missing
  mask = np.array([image is not None for image in images])
  filler = np.zeros_like(
    images[mask.argmax()] if mask.any() else ops(UNSEEN, augmentation_rng(0, 0))
  )
  images = [filler if image is None else image for image in images]
  return _stack(source, images, labels, positions, bad) | {"mask": mask}


def _decode(
  source: Source, i: int, data: bytes, *, passes: bool
) -> np.ndarray | None:
  """Decodes an image; None if it is broken and such `passes`."""
  try:
    return decode(data)
  except ValueError as error:
    if passes:
      return None
    raise UserError(
      f"{_describe(source, i)}: {error} Mend or remove the image, or leave out"
      " such images with --config.data.on_bad_image=replace."
    ) from error


def _augment(
  source: Source,
  i: int,
  ops: Ops,
  image: np.ndarray,
  rng: np.random.Generator,
) -> np.ndarray:
  try:
    return ops(image, rng)
  except ValueError as error:
    raise UserError(f"{_describe(source, i)}: {error}") from error


def _describe(source: Source, i: int) -> str:
  return (
    f"Example {i} of {source.name}, split {source.split} ({source.locate(i)})"
  )


def _stack(
  source: Source,
  images: list[np.ndarray],
  labels: list[int | np.ndarray],
  positions: np.ndarray,
  bad: list[int],
) -> Arrays:
  check_shapes(source, {image.shape for image in images})
  return {
    "image": np.stack(images),
    "label": np.array(labels, np.int32),
    "position": positions,
    "bad": np.array(bad, np.int64),
  }


def check_shapes(source: Source, shapes: set[tuple[int, ...]]) -> None:
  if len(shapes) > 1:
    raise UserError(
      f"The ops leave images of {source.name} {source.split} in different"
      f" sizes, {' and '.join(map(str, sorted(shapes)[:2]))}: end them with a"
      " crop or a resize to a fixed size."
    )
