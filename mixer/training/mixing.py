# SPDX-License-Identifier: Apache-2.0
"""What the model and the loss are fed: images in [-1, 1], mixed with partners.

Imports with jax, flax and optax alone.
"""

import jax
import jax.numpy as jnp
from flax import struct

from mixer.training.losses import soft_labels

AXIS = "batch"


@struct.dataclass
class Mixing:
  """How much of itself an example keeps; the same for the whole global batch.

  pixels: float32 [] or [h, w, 1], the share of each pixel.
  label: float32 [], the share of the label.
  """

  pixels: jax.Array
  label: jax.Array


def normalise(images: jax.Array) -> jax.Array:
  """uint8 0..255 to float32 -1..1, the authors' value range."""
  return images.astype(jnp.float32) / 127.5 - 1


def draw_mixing(
  key: jax.Array,
  size: tuple[int, int],
  *,
  mixup: float,
  cutmix: float,
  cutmix_share: float,
) -> Mixing | None:
  """Draws a step's mixing, where there is one.

  Args:
    key: of this step.
    size: height and width of the images.
    mixup: p of Beta(p, p) of mixup; 0 is off.
    cutmix: p of Beta(p, p) of CutMix; 0 is off.
    cutmix_share: of the steps that take CutMix, where both are on.
  """
  if not mixup and not cutmix:
    return None
  if not cutmix:
    return _mixup(key, mixup)
  box_key, choice_key = jax.random.split(jax.random.fold_in(key, 1))
  cut = _cutmix(box_key, size, cutmix)
  if not mixup:
    return cut
  is_cut = jax.random.uniform(choice_key) < cutmix_share
  return jax.tree.map(
    lambda a, b: jnp.where(is_cut, a, b), cut, _mixup(key, mixup)
  )


def _mixup(key: jax.Array, p: float) -> Mixing:
  """Of everything the same share, the larger one (arXiv 1710.09412)."""
  share = jax.random.beta(key, p, p)
  share = jnp.maximum(share, 1 - share)
  return Mixing(pixels=share, label=share)


def _cutmix(key: jax.Array, size: tuple[int, int], p: float) -> Mixing:
  """All but a box (arXiv 1905.04899), whose true area the label follows.

  The box has the image's aspect, a share 1 - Beta(p, p) of its area and its
  centre anywhere; what sticks out is cut off.
  """
  share_key, centre_key = jax.random.split(key)
  side = jnp.sqrt(1 - jax.random.beta(share_key, p, p))
  outside = []
  for n, centre in zip(size, jax.random.split(centre_key), strict=True):
    half = jnp.floor(n * side).astype(jnp.int32) // 2
    distance = jnp.arange(n) - jax.random.randint(centre, (), 0, n)
    outside.append((distance < -half) | (distance >= half))
  rows, columns = outside
  pixels = (rows[:, None, None] | columns[None, :, None]).astype(jnp.float32)
  return Mixing(pixels=pixels, label=pixels.mean())


def add_partners(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Adds the example before each in the global batch; inside axis "batch"."""
  return batch | {
    "partner_image": roll_by_one(batch["image"]),
    "partner_label": roll_by_one(batch["label"]),
  }


def roll_by_one(x: jax.Array) -> jax.Array:
  """numpy.roll(x, 1, axis=0) of the global batch, whose parts the devices hold.

  The authors roll inside each device's part, which makes the result depend on
  the number of devices.
  """
  devices = jax.lax.axis_size(AXIS)
  ring = [(i, (i + 1) % devices) for i in range(devices)]
  first = jax.lax.ppermute(x[-1:], AXIS, ring)
  return jnp.concatenate([first, x[:-1]])


def to_examples(
  batch: dict[str, jax.Array],
  mixing: Mixing | None,
  *,
  num_classes: int,
  label_smoothing: float,
) -> tuple[jax.Array, jax.Array]:
  """Turns uint8 images and int labels into what the model and the loss take.

  Args:
    batch: "image" uint8 [n, h, w, 3] and "label" int32 [n]; with mixing,
      "partner_image" and "partner_label" as well.
    mixing: from `draw_mixing`.
    num_classes: width of the labels.
    label_smoothing: share of the uniform distribution in the labels.

  Returns:
    float32 [n, h, w, 3] in [-1, 1] and float32 [n, num_classes].
  """

  def labels(x):
    return soft_labels(x, num_classes, label_smoothing)

  images, targets = normalise(batch["image"]), labels(batch["label"])
  if mixing is None:
    return images, targets
  partners = normalise(batch["partner_image"])
  return (
    mixing.pixels * images + (1 - mixing.pixels) * partners,
    mixing.label * targets
    + (1 - mixing.label) * labels(batch["partner_label"]),
  )
