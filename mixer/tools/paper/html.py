# SPDX-License-Identifier: Apache-2.0
"""HTML pages of one file, from the jinja2 templates in this folder.

Every template extends `base.html`, which holds the only style sheet. Values are
escaped unless they are `markupsafe.Markup`.
"""

import base64
import io
import os
from pathlib import Path

import jinja2
import numpy as np

_ENVIRONMENT = jinja2.Environment(
  loader=jinja2.FileSystemLoader(Path(__file__).parent),
  autoescape=True,
  undefined=jinja2.StrictUndefined,  # a misspelt name raises
  trim_blocks=True,
  lstrip_blocks=True,
)


def render(template: str, **values: object) -> str:
  """Renders a template, a path relative to this folder."""
  return _ENVIRONMENT.get_template(template).render(values)


def png_uri(pixels: np.ndarray) -> str:
  """Encodes an image [h, w, 3], uint8 or float from 0 to 1, as a data URI."""
  from PIL import Image

  if pixels.dtype != np.uint8:
    pixels = np.uint8(np.round(np.clip(pixels, 0, 1) * 255))
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, format="png")
  return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def thumbnail_uri(file: str | os.PathLike, size: int) -> str:
  """Encodes an image file as a data URI, at most `size` pixels wide and high.

  A small image grows by a whole factor, so that its pixels stay sharp.

  Raises:
    OSError: there is no such file, or it is not an image.
  """
  from PIL import Image

  with Image.open(file) as image:
    image = image.convert("RGB")
  image.thumbnail((size, size))
  zoom = max(size // max(image.size), 1)
  return png_uri(np.asarray(image).repeat(zoom, 0).repeat(zoom, 1))
