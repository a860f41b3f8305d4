# SPDX-License-Identifier: Apache-2.0
"""What every model asks of its arguments, with the way out in the message."""

import math

import jax


def check_images(images: jax.Array, image_channels: int, patch: int = 1):
  """Raises ValueError unless images are [n, height, width, image_channels].

  Args:
    images: any array.
    image_channels: that the model takes.
    patch: side of a patch in pixels, which must divide height and width.
  """
  if images.ndim != 4:
    raise ValueError(
      f"Images have shape {images.shape}, not [n, height, width, channels]; "
      "a single image needs a leading axis: image[None]."
    )
  _, height, width, channels = images.shape
  if channels != image_channels:
    raise ValueError(
      f"Images have {channels} channels, the model takes {image_channels}: "
      "convert the images, or create the model with "
      f"image_channels={channels}."
    )
  if height % patch or width % patch:
    near = [max(round(x / patch), 1) * patch for x in (height, width)]
    raise ValueError(
      f"Images of {height} x {width} px are not divided by patches of "
      f"{patch} px: resize them, to {near[0]} x {near[1]} px for one, "
      "or choose a variant with another patch."
    )


def check_tokens(
  images: jax.Array, *, patch: int, made_for: int, verb: str = "mix"
):
  """Raises ValueError if parameters were made for another resolution.

  Args:
    images: [n, height, width, channels], which patches divide.
    patch: their side in pixels.
    made_for: how many tokens the parameters were made for.
    verb: what they do with them.
  """
  _, height, width, _ = images.shape
  tokens = (height // patch) * (width // patch)
  if tokens == made_for:
    return
  side = math.isqrt(made_for)
  size = f"{side * patch} x {side * patch} px"
  if side * side != made_for:
    size = f"{made_for} patches"
  raise ValueError(
    f"Images of {height} x {width} px make {tokens} tokens of {patch} px, but "
    f"these parameters {verb} {made_for}: resize the images to {size}, or use "
    f"parameters made for {height} x {width} px."
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
