# SPDX-License-Identifier: Apache-2.0
"""Photographs that scikit-image ships, uint8 RGB [h, w, 3]."""

import io

import numpy as np
from PIL import Image
from skimage import data

PHOTOGRAPHS = {
  "astronaut": data.astronaut(),  # 512 x 512, black and white areas
  "chelsea": data.chelsea(),  # 300 x 451
  "coffee": np.ascontiguousarray(data.coffee()[:375, :500]),
  "rocket": data.rocket()[:, :333],  # 427 x 333, not contiguous
}


def encoded(image: np.ndarray | Image.Image, kind: str, **options) -> bytes:
  """The bytes of an image file as Pillow writes it."""
  file = io.BytesIO()
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  image.save(file, kind, **options)
  return file.getvalue()
