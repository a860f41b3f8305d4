# SPDX-License-Identifier: Apache-2.0
"""Decoded files have the pixels that tf.io.decode_image gives."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from photographs import PHOTOGRAPHS, encoded
from PIL import Image

from mixer.data.decode import decode

PHOTO = PHOTOGRAPHS["astronaut"][:77, :101]
PICTURE = Image.fromarray(PHOTO)
ALPHA = Image.fromarray(np.arange(77 * 101).reshape(77, 101).astype(np.uint8))
RGBA = PICTURE.copy()
RGBA.putalpha(ALPHA)
JPEG = encoded(PHOTO, "JPEG", quality=90)
SCAN = JPEG.index(b"\xff\xda")
MIDDLE = (SCAN + len(JPEG)) // 2


def as_tensorflow_decodes(data):
  return tf.io.decode_image(data, 3, expand_animations=False).numpy()


def chunk(kind, data):
  crc = struct.pack(">I", zlib.crc32(kind + data))
  return struct.pack(">I", len(data)) + kind + data + crc


def png(height, width, depth, colour, rows, before=b""):
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + before
    + chunk(
      b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    )
    + chunk(b"IEND", b"")
  )


def with_size(jpeg, height, width):
  """Returns the file with another size in its header."""
  at = jpeg.index(b"\xff\xc0") + 5
  return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def without_adobe_marker(jpeg):
  at = jpeg.index(b"\xff\xee")
  length = int.from_bytes(jpeg[at + 2 : at + 4])
  return jpeg[:at] + jpeg[at + 2 + length :]


def with_adobe_transform(jpeg, transform):
  at = jpeg.index(b"Adobe") + 11
  return jpeg[:at] + bytes([transform]) + jpeg[at + 1 :]


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize(
  "options",
  [
    {"quality": 75},
    {"quality": 95, "subsampling": 0},
    {"quality": 85, "subsampling": 1},
    {"quality": 85, "progressive": True},
    {"quality": 85, "restart_marker_blocks": 3},
    {"quality": 85, "keep_rgb": True},
  ],
  ids=lambda options: "-".join(map(str, options.values())),
)
def test_jpegs_of_all_kinds(name, options):
  data = encoded(PHOTOGRAPHS[name], "JPEG", **options)

  decoded = decode(data)

  np.testing.assert_array_equal(decoded, as_tensorflow_decodes(data))
  decoded[0, 0] = 0  # can be written to


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (17, 1), (16, 8)])
def test_small_jpegs(shape):
  data = encoded(PHOTO[: shape[0], : shape[1]], "JPEG")

  np.testing.assert_array_equal(decode(data), as_tensorflow_decodes(data))


def test_grey_jpegs_get_three_equal_channels():
  data = encoded(PICTURE.convert("L"), "JPEG")

  decoded = decode(data)

  np.testing.assert_array_equal(decoded, as_tensorflow_decodes(data))
  assert (decoded == decoded[..., :1]).all()


CMYK = encoded(Image.merge("CMYK", [*PICTURE.split(), ALPHA]), "JPEG")


@pytest.mark.parametrize(
  "data",
  [CMYK, with_adobe_transform(CMYK, 2), without_adobe_marker(CMYK)],
  ids=["Adobe's CMYK", "Adobe's YCCK", "CMYK"],
)
def test_jpegs_of_four_inks(data):
  np.testing.assert_array_equal(decode(data), as_tensorflow_decodes(data))


WORDS = np.arange(77 * 101 * 4, dtype=np.uint32).reshape(77, 101, 4) * 997
WORDS = (WORDS % 65536).astype(">u2")


@pytest.mark.parametrize(
  "data",
  [
    encoded(PHOTO, "PNG"),
    encoded(PICTURE.convert("L"), "PNG"),
    encoded(RGBA, "PNG"),
    encoded(RGBA.convert("LA"), "PNG"),
    encoded(PICTURE.convert("1"), "PNG"),
    encoded(PICTURE.quantize(64), "PNG"),
    encoded(PICTURE.quantize(4), "PNG"),
    encoded(PICTURE.quantize(64), "PNG", transparency=bytes(range(64))),
    png(77, 101, 16, 0, WORDS[..., 0]),
    png(77, 101, 16, 2, WORDS[..., :3]),
    png(77, 101, 16, 4, WORDS[..., :2]),
    png(77, 101, 16, 6, WORDS),
    png(77, 101, 8, 2, PHOTO, chunk(b"tRNS", bytes(6))),
    png(77, 101, 8, 2, PHOTO, chunk(b"gAMA", struct.pack(">I", 100000))),
    png(77, 101, 8, 2, PHOTO, chunk(b"iCCP", b"x\0\0no profile")),
    encoded(PHOTO, "PNG") + b"and more",
    encoded(PHOTO, "BMP"),
    encoded(PICTURE.quantize(64), "GIF"),
    encoded(
      PICTURE.quantize(64),
      "GIF",
      save_all=True,
      append_images=[PICTURE.rotate(180).quantize(64)],
    ),
    encoded(PHOTO, "WEBP", quality=80),
    encoded(PHOTO, "WEBP", lossless=True),
  ],
  ids=[
    *("rgb", "grey", "rgba", "grey with alpha", "1 bit", "palette"),
    *("palette of 2 bits", "transparent palette", "16 bit grey"),
    *("16 bit rgb", "16 bit grey with alpha", "16 bit rgba"),
    *("transparent colour", "gamma", "broken profile", "garbage after"),
    *("bmp", "gif", "first of two frames", "webp", "lossless webp"),
  ],
)
def test_other_formats(data):
  np.testing.assert_array_equal(decode(data), as_tensorflow_decodes(data))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_dropped_without_blending(kind):
  data = encoded(RGBA, kind, exact=True, lossless=True)

  np.testing.assert_array_equal(decode(data), PHOTO)


def test_the_orientation_that_a_camera_noted_is_ignored():
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by a right angle
  for kind in "JPEG", "PNG", "WEBP":
    data = encoded(PHOTO, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
      assert image.getexif()[0x0112] == 6

    assert decode(data).shape == PHOTO.shape


@pytest.mark.parametrize(
  "data",
  [
    JPEG + b"garbage",
    JPEG[:-2] + b"\0\x11\x22" + JPEG[-2:],
    JPEG[:2] + b"\xff\xe1\0\x10Exif\0\0broken!!" + JPEG[2:],
    JPEG[:SCAN] + b"\x12\x34\x56" + JPEG[SCAN:],
    JPEG.replace(b"JFIF\0\x01", b"JFIF\0\x02"),
    JPEG[:MIDDLE] + b"\xff\xd3" + JPEG[MIDDLE + 2 :],
    JPEG[:MIDDLE] + bytes(40) + JPEG[MIDDLE + 40 :],
  ],
  ids=[
    *("garbage after", "garbage before the end", "broken EXIF"),
    *("garbage in the header", "unknown revision", "stray marker", "zeros"),
  ],
)
def test_flawed_but_whole_jpegs_are_read_as_tensorflow_reads_them(data):
  decoded = decode(data).astype(int)

  # Those that libjpeg warns about get another inverse DCT.
  assert np.abs(decoded - as_tensorflow_decodes(data)).mean() < 1.5


def assert_not_decoded(data, said):
  with pytest.raises(tf.errors.InvalidArgumentError):
    tf.io.decode_image(data)
  with pytest.raises(ValueError, match=said):
    decode(data)


@pytest.mark.parametrize("missing", [1, 2, 10, 500, len(JPEG) // 2])
@pytest.mark.parametrize(
  "options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}]
)
def test_truncated_jpegs_are_refused(options, missing):
  data = encoded(PHOTO, "JPEG", quality=90, **options)[:-missing]

  assert_not_decoded(data, f"Cannot decode {len(data)} bytes .*Premature end")


def test_a_flaw_does_not_hide_that_a_jpeg_is_truncated():
  flawed = JPEG[:MIDDLE] + b"\xff\xd3" + JPEG[MIDDLE + 2 : -500]
  garbage = JPEG[:SCAN] + b"\x12\x34\x56" + JPEG[SCAN:-500]

  for data in flawed, garbage:
    assert_not_decoded(data, "Cannot decode .*Corrupt JPEG data")


@pytest.mark.parametrize("missing", [1, 13, 20, 5000])
def test_truncated_pngs_are_refused(missing):
  data = encoded(PHOTO, "PNG")[:-missing]

  assert_not_decoded(data, f"Cannot decode {len(data)} bytes")


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"no image",
    b"<!DOCTYPE html><html>Not found</html>",
    b"\x89PNG\r\n\x1a\n",
    JPEG[:3],
    JPEG[:200],
    with_size(JPEG, 0, 0),
    png(0, 0, 8, 2, PHOTO),
    JPEG[:3] + bytes(500),
    cv2.imencode(".bmp", PHOTO)[1].tobytes()[:-5000],
  ],
  ids=[
    *("nothing", "text", "web page", "start of PNG", "start of JPEG"),
    *("header of JPEG", "JPEG without size", "PNG without size"),
    *("zeros in JPEG", "truncated BMP"),
  ],
)
def test_what_is_no_image_is_named(data):
  assert_not_decoded(data, f"Cannot decode {len(data)} bytes that begin with")


@pytest.mark.parametrize(
  "data",
  [with_size(JPEG, 65500, 65500), png(30000, 30000, 8, 2, PHOTO)],
  ids=["JPEG", "PNG"],
)
def test_sizes_that_would_fill_the_memory_are_refused(data):
  assert_not_decoded(data, "00 x .*00 pixels are more than 178956970")


def test_a_tiff_is_read():
  # TensorFlow does not read them.
  for options in {}, {"compression": "tiff_lzw"}:
    data = encoded(PHOTO, "TIFF", **options)

    np.testing.assert_array_equal(decode(data), PHOTO)
