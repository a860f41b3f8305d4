# SPDX-License-Identifier: Apache-2.0
"""Mixup and CutMix: weights and partners; `step.apply_mixup` combines them."""

import jax
import jax.numpy as jnp
from flax import struct

from mixer.training.sharding import AXIS


@struct.dataclass
class MixupWeights:
  """Weights of an example against its partner, for a whole global batch.

  pixels: float32 [] or [h, w, 1], the weight of each pixel.
  label: float32 [], the weight of the label.
  """

  pixels: jax.Array
  label: jax.Array


def sample_mixup(
  key: jax.Array,
  size: tuple[int, int],
  *,
  mixup: float,
  cutmix: float,
  cutmix_share: float,
) -> MixupWeights | None:
  """Draws a step's weights; None where mixup and CutMix are off.

  `key` is of this step, `size` the height and width of the images, the options
  are those of `LossConfig`.
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


def _mixup(key: jax.Array, p: float) -> MixupWeights:
  """Mixup (arXiv 1710.09412): one weight for all, the larger of the two."""
  share = jax.random.beta(key, p, p)
  share = jnp.maximum(share, 1 - share)
  return MixupWeights(pixels=share, label=share)


def _cutmix(key: jax.Array, size: tuple[int, int], p: float) -> MixupWeights:
  """CutMix (arXiv 1905.04899): 0 in a box, 1 around it; their mean for labels.

  The box has the image's aspect, a share 1 - Beta(p, p) of its area and its
  centre anywhere; it is cropped at the image's border.
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
  return MixupWeights(pixels=pixels, label=pixels.mean())


def add_partners(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Adds each example's mixup partner, the one before it in the batch."""
  return batch | {
    "partner_image": roll_by_one(batch["image"]),
    "partner_label": roll_by_one(batch["label"]),
  }


def roll_by_one(x: jax.Array) -> jax.Array:
  """Computes numpy.roll(x, 1, axis=0) of the global batch, across devices.

  The authors roll inside each device's part, which makes the result depend on
  the number of devices.
  """
  devices = jax.lax.axis_size(AXIS)
  ring = [(i, (i + 1) % devices) for i in range(devices)]
  first = jax.lax.ppermute(x[-1:], AXIS, ring)
  return jnp.concatenate([first, x[:-1]])
