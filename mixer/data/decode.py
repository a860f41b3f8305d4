# SPDX-License-Identifier: Apache-2.0
"""Decodes image files to pixels."""

import io
import re

import cv2
import numpy as np
import PIL.Image
import simplejpeg

# A small file may claim to hold any number of pixels. TensorFlow refuses more
# than 2**29 bytes, and so do we for JPEG and PNG; OpenCV, 2**30 pixels.
LARGEST_IMAGE = 2**29 // 3
TOO_LARGE = f"{{}} x {{}} pixels are more than {LARGEST_IMAGE}"

JPEG = b"\xff\xd8\xff"
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
PNG = b"\x89PNG\r\n\x1a\n"

# No such bytes stand in the compressed pixels, only in the header.
ADOBE_MARKER = re.compile(rb"\xff\xee..Adobe", re.DOTALL)

# The exception describes the fault of an image.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(data: bytes) -> np.ndarray:
  """Decodes a JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF image.

  JPEG and PNG give the pixels that tf.io.decode_image gives, JPEG with its
  fast and less accurate inverse DCT, which the paper's training code used.
  As there, grey becomes three equal channels, transparency is dropped without
  blending (except in TIFF), 16 bits are cut to the upper 8, the inks of CMYK
  are multiplied, and the orientation that a camera noted is not applied.

  A JPEG that breaks a rule but is whole is tolerated; only such a one, that
  libjpeg warns about, gets the accurate inverse DCT, which moves a value by 1
  on average. A truncated file is an error.

  Args:
    data: the whole file. Decoding it keeps no lock: use as many threads as
      there are cores.

  Returns:
    uint8 RGB [h, w, 3].

  Raises:
    ValueError: the bytes are not a whole image, or one of too many pixels.
  """
  read = _read_jpeg if data.startswith(JPEG) else _read_other
  image, fault = read(data)
  if image is None:
    raise ValueError(
      f"Cannot decode {len(data)} bytes that begin with {data[:8]!r}: they are"
      " not a whole JPEG, PNG, WebP, BMP, GIF or TIFF image"
      f"{fault and f' ({fault})'}."
    )
  return image


def _read_jpeg(data: bytes) -> tuple[np.ndarray | None, str]:
  """Returns the pixels, or None and the fault."""
  try:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if height * width > LARGEST_IMAGE:
      return None, TOO_LARGE.format(height, width)
    if colours in ("CMYK", "YCCK"):
      ink = simplejpeg.decode_jpeg(data, "CMYK", fastdct=True)
      return _from_ink(ink, data), ""
    return simplejpeg.decode_jpeg(data, "RGB", fastdct=True), ""
  except (ValueError, KeyError) as error:  # KeyError: a rare subsampling
    return _read_flawed_jpeg(data, str(error))


def _read_flawed_jpeg(
  data: bytes, warning: str
) -> tuple[np.ndarray | None, str]:
  """Reads what simplejpeg will not, which is all that libjpeg warns about.

  Without its strictness, simplejpeg would also pass images that end half-way
  or are broken beyond some pixel, with the rest grey.
  """
  if data.rfind(END_OF_IMAGE) < data.rfind(START_OF_SCAN):
    return None, warning  # which Pillow does not always notice
  try:
    with PIL.Image.open(io.BytesIO(data)) as image:
      return np.array(image.convert("RGB")), ""
  except (OSError, PIL.Image.DecompressionBombError):
    return None, warning


def _from_ink(ink: np.ndarray, data: bytes) -> np.ndarray:
  """Multiplies three inks of uint8 [h, w, 4] by black, as TensorFlow does."""
  ink = ink.astype(np.uint16)
  if not ADOBE_MARKER.search(data):  # Adobe inverts CMYK.
    ink = 255 - ink
  return (ink[..., :3] * ink[..., 3:] // 255).astype(np.uint8)


def _read_other(data: bytes) -> tuple[np.ndarray | None, str]:
  """Returns the pixels, or None and the fault."""
  if data.startswith(PNG):
    width, height = (int.from_bytes(data[i : i + 4]) for i in (16, 20))
    if height * width > LARGEST_IMAGE:
      return None, TOO_LARGE.format(height, width)
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  try:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags), ""
  except cv2.error as error:
    return None, error.err
