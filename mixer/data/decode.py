# SPDX-License-Identifier: Apache-2.0
"""Decodes image files to pixels."""

import functools
import io
import re
import warnings
from collections.abc import Callable

import cv2
import numpy as np
import PIL.Image
import simplejpeg
from PIL import TiffImagePlugin
from PIL.ExifTags import Base

from mixer.errors import UserError

# A few bytes may claim to hold any number of pixels. So many take 300 MB.
MAX_PIXELS = 100_000_000

# libjpeg goes over all pixels for each scan of a progressive JPEG, which has
# about 10. Smaller images may have more.
MAX_SCANS = 16

SUFFIXES = (
  ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .avif .jp2 .ppm .pgm"
  " .pbm .pnm"
).split()
FORMATS = ["WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM"]
try:
  import pillow_heif
except ImportError:
  pass
else:
  pillow_heif.register_heif_opener()
  FORMATS.append("HEIF")
  SUFFIXES += [".heic", ".heif"]

JPEG = b"\xff\xd8\xff"
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
BASELINE, EXTENDED, RESTARTS = 0xC0, 0xC1, 0xDD  # segments of a header
# Of a JPEG's header: any but a progressive frame or a scan.
SEGMENT = re.compile(rb"\xff+[^\xff\xc2\xca\xda](..)", re.DOTALL)
PNG = b"\x89PNG\r\n\x1a\n"
HEIC = b"ftyphei", b"ftyphev", b"ftypmif", b"ftypmsf"
TIFF = b"II*\0", b"MM\0*", b"II+\0"

# libjpeg's complaint about pixels between the last row and the file's end.
ROWS_LEFT = re.compile(r"extraneous bytes before marker 0xd9$")

# Chroma of half the resolution is interpolated from as many rows below.
CONTEXT = 2

SCALES = (8, 4, 2)  # of which libjpeg decodes a half etc. in less time

# No such bytes stand in the compressed pixels, only in the header.
ADOBE_MARKER = re.compile(rb"\xff\xee..Adobe", re.DOTALL)

# `decode` measures images itself, and an exception describes their faults.
PIL.Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

Box = tuple[int, int, int, int]  # y, x, height, width


def _whole(height: int, width: int) -> Box:
  return 0, 0, height, width


def decode(
  data: bytes,
  max_pixels: int = MAX_PIXELS,
  choose: Callable[[int, int], Box] = _whole,
  least: tuple[int, int] | None = None,
) -> np.ndarray:
  """Decodes a JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, JPEG 2000 or PPM image.

  HEIC is decoded where the package pillow-heif is installed. Of several frames
  or pages the first is read.

  JPEG and PNG give the pixels that tf.io.decode_image gives, JPEG with its
  fast and less accurate inverse DCT, which the paper's training code used.
  As there, grey becomes three equal channels, transparency is dropped without
  blending, 16 bits are cut to the upper 8, the inks of CMYK are multiplied, and
  the orientation that a camera noted is not applied.

  A JPEG that breaks a rule but is whole is tolerated; only such a one, that
  libjpeg warns about, gets the accurate inverse DCT, which moves a value by 1
  on average. A truncated file is an error.

  Of a JPEG in one scan, rows below the chosen part are not decoded, which
  changes none of its pixels; damage there goes unnoticed.

  Args:
    data: the whole file. Decoding it keeps no lock: use as many threads as
      there are cores.
    max_pixels: the most that an image may have, height times width. The header
      is compared with it before memory is taken.
    choose: maps the height and width of the image to the part to return.
    least: height and width that the part may be reduced to. A JPEG is then
      decoded at 1/2, 1/4 or 1/8 of its resolution where that leaves so many
      pixels, and the part's edges are moved outwards to whole ones.

  Returns:
    uint8 RGB [h, w, 3].

  Raises:
    ValueError: the bytes are not a whole image, or one that is too large, or
      of another kind of pixels.
  """
  choose = functools.cache(choose)  # a random one draws once
  read = _read_other
  if data.startswith(PNG):
    read = _read_png
  try:
    if data.startswith(JPEG):
      return _read_jpeg(data, max_pixels, choose, least)
    image = read(data, max_pixels)
    return _cut(image, choose(*image.shape[:2]))
  except UserError:
    raise
  except MemoryError as error:
    raise UserError("There is no memory left to decode it.") from error
  except Exception as error:  # Pillow raises nearly any of a damaged file
    raise ValueError(
      f"Cannot decode {len(data)} bytes that begin with {data[:8]!r}: they are"
      " not a whole JPEG, PNG or other image of a known format."
    ) from error


def _check_size(
  height: int, width: int, max_pixels: int, scans: int = 1
) -> None:
  """Raises UserError if decoding would take too much memory or time."""
  if height * width > max_pixels:
    raise UserError(
      f"An image of {height} x {width} pixels has more than {max_pixels:,}:"
      " make it smaller, or raise config.data.max_pixels."
    )
  if height * width * scans > max_pixels * MAX_SCANS:
    raise UserError(
      f"A JPEG of {height} x {width} pixels in {scans} scans takes too long:"
      " save it again."
    )


def _cut(image: np.ndarray, box: Box) -> np.ndarray:
  y, x, h, w = box
  return image[y : y + h, x : x + w]


def _read_jpeg(
  data: bytes,
  max_pixels: int,
  choose: Callable[[int, int], Box],
  least: tuple[int, int] | None,
) -> np.ndarray:
  try:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    scans, frame = _read_header(data, colours)
    _check_size(height, width, max_pixels, scans)
    y, x, h, w = choose(height, width)
    if colours in ("CMYK", "YCCK"):
      ink = simplejpeg.decode_jpeg(data, "CMYK", fastdct=True)
      return _cut(_from_ink(ink, data), (y, x, h, w))
    rows = min(y + h + CONTEXT, height) if frame else height
    scale = 1
    if least:
      fits = (s for s in SCALES if h >= s * least[0] and w >= s * least[1])
      scale = next(fits, 1)
    image = _read_rows(data, frame, rows, height, width, scale)
    top, left = y // scale, x // scale
    bottom, right = -(-(y + h) // scale), -(-(x + w) // scale)
    return image[top:bottom, left:right]
  except UserError:
    raise
  except (ValueError, KeyError):  # KeyError: a rare subsampling
    image = _read_flawed_jpeg(data, max_pixels)
    return _cut(image, choose(*image.shape[:2]))


def _read_rows(
  data: bytes, frame: int, rows: int, height: int, width: int, scale: int
) -> np.ndarray:
  """Decodes the first rows, at 1 / scale of the resolution.

  libjpeg decodes as many as the header says, and then complains about the rest.
  """
  size = -(-rows // scale), -(-width // scale)
  image = np.empty((*size, 3), np.uint8)
  least_size = size if scale > 1 else (0, 0)
  if rows < height:
    data = bytearray(data)
    data[frame + 3 : frame + 5] = rows.to_bytes(2)
  try:
    simplejpeg.decode_jpeg(data, "RGB", True, False, *least_size, buffer=image)
  except ValueError as error:
    if rows == height or not ROWS_LEFT.search(str(error)):
      raise
  return image


def _read_header(data: bytes, colours: str) -> tuple[int, int]:
  """Returns a number of scans, and the place of a frame that can be shortened.

  The number is 1 if libjpeg reads only one scan; else at least theirs. A search
  through all bytes would take a tenth of the time of decoding. The place is 0
  if rows are not stored one after another, or with markers between them.
  """
  at, places = 2, {}
  while segment := SEGMENT.match(data, at):
    places[data[segment.start(1) - 1]] = segment.start(1)
    at = segment.start(1) + int.from_bytes(segment[1])
  scan = data[at : at + 5]
  holds_all = colours == "Gray" or scan[4:] > b"\2"
  if not (scan.startswith(START_OF_SCAN) and holds_all):
    return data.count(START_OF_SCAN), 0
  if RESTARTS in places:
    return 1, 0
  return 1, places.get(BASELINE) or places.get(EXTENDED, 0)


def _read_flawed_jpeg(data: bytes, max_pixels: int) -> np.ndarray:
  """Reads what simplejpeg will not, which is all that libjpeg warns about.

  Without its strictness, simplejpeg would also pass images that end half-way
  or are broken beyond some pixel, with the rest grey.
  """
  if data.rfind(END_OF_IMAGE) < data.rfind(START_OF_SCAN):
    raise ValueError("truncated")  # which Pillow does not always notice
  with PIL.Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
    scans = data.count(START_OF_SCAN)
    _check_size(image.height, image.width, max_pixels, scans)
    return np.array(image.convert("RGB"))


def _from_ink(ink: np.ndarray, data: bytes) -> np.ndarray:
  """Multiplies three inks of uint8 [h, w, 4] by black, as TensorFlow does."""
  ink = ink.astype(np.uint16)
  if not ADOBE_MARKER.search(data):  # Adobe inverts CMYK.
    ink = 255 - ink
  return (ink[..., :3] * ink[..., 3:] // 255).astype(np.uint8)


def _read_png(data: bytes, max_pixels: int) -> np.ndarray:
  width, height = (int.from_bytes(data[i : i + 4]) for i in (16, 20))
  _check_size(height, width, max_pixels)
  return _read_with_opencv(data)


def _read_with_opencv(data: bytes) -> np.ndarray:
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  if image is None:
    raise ValueError("its pixels are damaged")
  return image


def _read_other(data: bytes, max_pixels: int) -> np.ndarray:
  """Reads the formats that Pillow measures."""
  try:
    image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
  except PIL.UnidentifiedImageError as error:
    if data.startswith(TIFF):
      raise _unknown_pixels(data) from error
    if data[4:11] in HEIC and "HEIF" not in FORMATS:
      raise UserError(
        "A HEIC image: pip install pillow-heif, which decodes it."
      ) from error
    raise
  with image:
    _check_size(image.height, image.width, max_pixels)
    if image.format in ("WEBP", "BMP"):
      return _read_with_opencv(data)  # in less time
    bits = 16
    if image.format == "TIFF":
      [bits, *_] = image.tag_v2.get(Base.BitsPerSample, [1])
      image.getexif()[Base.Orientation] = 1  # otherwise Pillow applies it
      if image.mode in ("I", "F"):
        raise _unknown_pixels(data)
    if image.mode.startswith("I"):
      grey = np.array(image.convert("I")) >> (bits - 8)
      return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def _unknown_pixels(data: bytes) -> UserError:
  """Returns an error about a sound TIFF whose pixels are not 8 or 16 bits."""
  file = io.BytesIO(data)
  header = file.read(16 if data[2] == 43 else 8)  # 43: BigTIFF
  tags = TiffImagePlugin.ImageFileDirectory_v2(header)
  file.seek(tags.next)
  tags.load(file)
  bands, bits = tags.get(Base.SamplesPerPixel, 1), tags[Base.BitsPerSample][0]
  is_float = tags.get(Base.SampleFormat, [1])[0] == 3
  numbers = "floats" if is_float else "integers"
  return UserError(
    f"The image is a TIFF of {bands} x {bits}-bit {numbers} per pixel: convert"
    " it to a PNG of 8 bits, grey or RGB."
  )
