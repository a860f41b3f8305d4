# SPDX-License-Identifier: Apache-2.0
"""What every model asks of its arguments, with the way out in the message."""

import jax


def check_images(images: jax.Array, image_channels: int):
  """Raises ValueError unless images are [n, height, width, image_channels]."""
  if images.ndim != 4:
    raise ValueError(
      f"Images have shape {images.shape}, not [n, height, width, channels]; "
      "a single image needs a leading axis: image[None]."
    )
  channels = images.shape[-1]
  if channels != image_channels:
    raise ValueError(
      f"Images have {channels} channels, the model takes {image_channels}: "
      "convert the images, or create the model with "
      f"image_channels={channels}."
    )


def keys_if_dropping(
  drop_keys: jax.Array | None, *, train: bool, dropping: bool
) -> jax.Array | None:
  """The keys to draw masks from, None where nothing is dropped.

  Args:
    drop_keys: [n] PRNG keys, one an example, or None.
    train: whether dropout and stochastic depth are on.
    dropping: whether the model has any of either.

  Raises:
    ValueError: keys are needed and missing.
  """
  if not (train and dropping):
    return None
  if drop_keys is None:
    raise ValueError(
      "train=True with dropout or stochastic depth needs drop_keys, one PRNG "
      "key an example, such as jax.random.split(key, len(images))."
    )
  return drop_keys
