# SPDX-License-Identifier: Apache-2.0
"""Decoded files have the pixels that tf.io.decode_image gives."""

import io
import re
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
import tifffile
from photographs import PHOTOGRAPHS, encoded
from PIL import Image

from mixer.data.decode import FORMATS, decode

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
def test_jpegs_of_all_kinds_and_their_parts(name, options):
  data = encoded(PHOTOGRAPHS[name], "JPEG", **options)

  decoded = decode(data)

  expected = as_tensorflow_decodes(data)
  np.testing.assert_array_equal(decoded, expected)
  decoded[0, 0] = 0  # can be written to
  for y, x, h, w in (
    (0, 0, 1, 1),
    (5, 7, 9, 90),
    (15, 0, 17, 99),
    (3, 2, 270, 8),
  ):
    part = decode(data, choose=lambda *size, box=(y, x, h, w): box)
    np.testing.assert_array_equal(part, expected[y : y + h, x : x + w])


@pytest.mark.parametrize(
  ("box", "least", "expected"),
  [
    ((0, 0, 375, 500), (46, 62), (47, 63)),  # an eighth
    ((0, 0, 375, 500), (90, 90), (94, 125)),  # a quarter
    ((9, 11, 203, 301), (100, 100), (102, 151)),  # a half, and to whole pixels
    ((9, 11, 199, 301), (100, 100), (199, 301)),  # too small for a half
  ],
)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_large_part_may_be_decoded_at_a_reduced_scale(
  box, least, expected, progressive
):
  photo, (y, x, h, w) = PHOTOGRAPHS["coffee"], box
  data = encoded(photo, "JPEG", quality=95, progressive=progressive)

  part = decode(data, choose=lambda *size: box, least=least)

  assert part.shape[:2] == expected
  size = expected[::-1]
  averages = Image.fromarray(photo[y : y + h, x : x + w]).resize(
    size, Image.Resampling.BOX
  )
  assert np.abs(part.astype(int) - np.array(averages)).mean() < 5


CMYK = encoded(Image.merge("CMYK", [*PICTURE.split(), ALPHA]), "JPEG")
WORDS = np.arange(77 * 101 * 4, dtype=np.uint32).reshape(77, 101, 4) * 997
WORDS = (WORDS % 65536).astype(">u2")
PALETTE = PICTURE.quantize(64)
TWO_FRAMES = [PICTURE.rotate(180).quantize(64)]


@pytest.mark.parametrize(
  "data",
  [
    encoded(PHOTO[:1, :1], "JPEG"),
    encoded(PHOTO[:1, :9], "JPEG"),
    encoded(PHOTO[:17, :1], "JPEG"),
    encoded(PHOTO[:16, :8], "JPEG"),
    encoded(PICTURE.convert("L"), "JPEG"),
    CMYK,  # Adobe's
    with_adobe_transform(CMYK, 2),  # Adobe's YCCK
    without_adobe_marker(CMYK),
    encoded(PHOTO, "PNG"),
    encoded(PICTURE.convert("L"), "PNG"),
    encoded(RGBA.convert("LA"), "PNG"),
    encoded(PICTURE.convert("1"), "PNG"),
    encoded(PALETTE, "PNG"),
    encoded(PICTURE.quantize(4), "PNG"),
    encoded(PALETTE, "PNG", transparency=bytes(range(64))),
    png(77, 101, 16, 0, WORDS[..., 0]),  # grey of 16 bits
    png(77, 101, 16, 2, WORDS[..., :3]),  # RGB
    png(77, 101, 16, 4, WORDS[..., :2]),  # grey with alpha
    png(77, 101, 16, 6, WORDS),  # RGBA
    png(77, 101, 8, 2, PHOTO, chunk(b"tRNS", bytes(6))),
    png(77, 101, 8, 2, PHOTO, chunk(b"gAMA", struct.pack(">I", 100000))),
    png(77, 101, 8, 2, PHOTO, chunk(b"iCCP", b"x\0\0no profile")),
    encoded(PHOTO, "PNG") + b"and more",
    encoded(PHOTO, "BMP"),
    encoded(PALETTE, "GIF"),
    encoded(PALETTE, "GIF", save_all=True, append_images=TWO_FRAMES),
    encoded(PHOTO, "WEBP", quality=80),
    encoded(PHOTO, "WEBP", lossless=True),
  ],
  ids=len,
)
def test_formats_that_tensorflow_reads(data):
  np.testing.assert_array_equal(decode(data), as_tensorflow_decodes(data))


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
    JPEG[:-2] + b"\0\x11\x22" + JPEG[-2:],  # garbage before the end
    JPEG[:2] + b"\xff\xe1\0\x10Exif\0\0broken!!" + JPEG[2:],
    JPEG[:SCAN] + b"\x12\x34\x56" + JPEG[SCAN:],  # garbage in the header
    JPEG.replace(b"\xff\xc4", b"\xff\xff\xff\xc4"),  # fill bytes
    JPEG.replace(b"JFIF\0\x01", b"JFIF\0\x02"),  # unknown revision
    JPEG[:MIDDLE] + b"\xff\xd3" + JPEG[MIDDLE + 2 :],  # stray marker
    JPEG[:MIDDLE] + bytes(40) + JPEG[MIDDLE + 40 :],
  ],
  ids=len,
)
def test_flawed_but_whole_jpegs_are_read_as_tensorflow_reads_them(data):
  decoded = decode(data).astype(int)

  # Those that libjpeg warns about get another inverse DCT.
  expected = as_tensorflow_decodes(data)
  assert np.abs(decoded - expected).mean() < 1.5
  boxes = iter([(3, 4, 20, 30)])  # drawn once, whatever is tried
  part = decode(data, choose=lambda *size: next(boxes)).astype(int)
  assert np.abs(part - expected[3:23, 4:34]).mean() < 1.5


HALF = len(JPEG) // 2
PROGRESSIVE = encoded(PHOTO, "JPEG", quality=90, progressive=True)
RESTARTING = encoded(PHOTO, "JPEG", quality=90, restart_marker_blocks=2)


@pytest.mark.parametrize(
  "data",
  [
    *(JPEG[:-missing] for missing in (1, 2, 10, 500, HALF)),
    *(PROGRESSIVE[:-missing] for missing in (1, 2, 10, 500, HALF)),
    *(RESTARTING[:-missing] for missing in (1, 2, 10, 500, HALF)),
    # A flaw does not hide the missing end.
    JPEG[:MIDDLE] + b"\xff\xd3" + JPEG[MIDDLE + 2 : -500],
    JPEG[:SCAN] + b"\x12\x34\x56" + JPEG[SCAN:-500],
    *(encoded(PHOTO, "PNG")[:-missing] for missing in (1, 13, 20, 5000)),
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
  ids=len,
)
def test_what_is_no_whole_image_is_refused(data):
  with pytest.raises(tf.errors.InvalidArgumentError):
    tf.io.decode_image(data)
  with pytest.raises(
    ValueError, match=f"Cannot decode {len(data)} bytes .* not a whole JPEG"
  ) as error:
    decode(data, choose=lambda *size: (0, 0, 1, 1))  # whatever is asked for
  # And nothing from inside the decoders.
  assert re.fullmatch(r"[ -~]{1,250}", str(error.value))
  assert "0x" not in str(error.value)


def patched(data, at, layout, *values):
  """Returns the file with other numbers from a byte on."""
  new = struct.pack(layout, *values)
  return data[:at] + new + data[at + len(new) :]


def with_tags(tiff, tags):
  """Returns a TIFF (little-endian) with other numbers for some tags."""
  [at] = struct.unpack("<I", tiff[4:8])
  for n in range(*struct.unpack("<H", tiff[at : at + 2])):
    entry = at + 2 + 12 * n
    [tag] = struct.unpack("<H", tiff[entry : entry + 2])
    if tag in tags:
      tiff = patched(tiff, entry + 2, "<HII", 4, 1, tags[tag])
  return tiff


def tiff_of(values, **options):
  file = io.BytesIO()
  tifffile.imwrite(file, values, **options)
  return file.getvalue()


DEFLATED = tiff_of(PHOTO[:64, :64, 0], compression="zlib")


def of_scans(scans, is_sound):
  """Returns a progressive JPEG of 1000 x 1000 pixels that repeats a scan."""
  data = encoded(Image.new("L", (1000, 1000), 128), "JPEG", progressive=True)
  marker = b"\xff\xda"
  head, first, second, *others = data[:-2].split(marker)
  # A repeated scan of all bits is sound, and one that refines bits is not.
  first, second = (x[:7] + b"\0" + x[8:] for x in (first, second))
  other = (second if is_sound else others[-1]).split(b"\xff\xc4")[0]
  body = [head, first, second] + [other] * (scans - 2)
  return marker.join(body) + b"\xff\xd9"


# Of one of three colours.
SHORT_SCAN = b"\xff\xda\0\x08\1\1\0\0\x3f\0" + bytes(9)
WEBP = encoded(PHOTO, "WEBP", lossless=True)
TOO_LARGE = {
  "JPEG": with_size(JPEG, 60000, 50000),
  "flawed JPEG": with_size(JPEG[:SCAN] + b"\x12" + JPEG[SCAN:], 60000, 50000),
  "PNG": png(60000, 50000, 8, 2, PHOTO),
  "GIF": patched(encoded(PHOTO, "GIF"), 6, "<HH", 50000, 60000),
  "BMP": patched(encoded(PHOTO, "BMP"), 18, "<ii", 50000, 60000),
  "TIFF": with_tags(DEFLATED, {256: 50000, 257: 60000, 278: 60000}),
  "WebP": patched(WEBP, 21, "<I", 16382 * (1 + 2**14)),
  "PPM": b"P6 50000 60000 255\n",
}


def in_little_memory(files, megabytes):
  """Returns what `decode` says of files, given so much memory above start."""
  script = """
import resource, sys
from mixer.data.decode import decode
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for file in sys.argv[2:]:
  try:
    print(*decode(open(file, "rb").read()).shape)
  except ValueError as error:
    print(error)
"""
  command = [sys.executable, "-c", script, str(megabytes), *files]
  run = subprocess.run(command, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  return run.stdout.splitlines()


def test_images_are_measured_before_memory_is_taken(tmp_path):
  for i, data in enumerate(TOO_LARGE.values()):
    (tmp_path / f"{i}").write_bytes(data)
  files = [tmp_path / f"{i}" for i in range(len(TOO_LARGE))]

  # Pixels would take 3 GB. Pillow reserves 2 for a WebP, and does not use them.
  for kind, line in zip(TOO_LARGE, in_little_memory(files, 2500), strict=True):
    assert re.search("(60000 x 50000|16383 x 16383).*max_pixels", line), kind


def test_an_image_for_which_there_is_no_memory_is_named(tmp_path):
  file = tmp_path / "large.jpg"
  file.write_bytes(with_size(JPEG, 9000, 9000))

  assert "no memory" in in_little_memory([file], 100)[0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_the_limit_of_pixels_can_be_moved(kind):
  data = encoded(PHOTO, kind)

  assert decode(data, max_pixels=77 * 101).shape == PHOTO.shape
  with pytest.raises(ValueError, match="77 x 101 pixels has more than 7,776"):
    decode(data, max_pixels=77 * 101 - 1)


@pytest.mark.parametrize(
  "data",
  [
    of_scans(2000, is_sound=True),
    of_scans(2000, is_sound=False),
    with_size(JPEG[:SCAN], 1000, 1000) + SHORT_SCAN * 2000 + b"\xff\xd9",
  ],
  ids=["progressive", "flawed", "colour by colour"],
)
def test_a_jpeg_of_very_many_scans_is_refused(data):
  assert decode(of_scans(20, is_sound=True)).shape == (1000, 1000, 3)
  with pytest.raises(ValueError, match="in 200[01] scans"):
    decode(data)


WIDE = np.arange(77 * 101 * 3, dtype=np.uint16).reshape(77, 101, 3) * 2
OF_12_BITS = tiff_of(np.array([[0x12, 0x34, 0x56]], np.uint8))
ORIENTED = {"tiffinfo": {274: 6}}
GREY = PHOTO[..., 0]
FIVE_BANDS = np.dstack([PHOTO, PHOTO[..., :2]])


@pytest.mark.parametrize(
  ("data", "expected"),
  [
    (encoded(RGBA, "PNG"), PHOTO),
    (encoded(RGBA, "WEBP", exact=True, lossless=True), PHOTO),
    (encoded(PHOTO, "TIFF"), PHOTO),
    (encoded(PHOTO, "TIFF", compression="tiff_lzw", **ORIENTED), PHOTO),
    (encoded(RGBA, "TIFF"), PHOTO),
    (encoded(GREY, "TIFF", **ORIENTED), GREY),
    (encoded(PICTURE.convert("1"), "TIFF"), PICTURE.convert("1")),
    (encoded(PICTURE.quantize(9), "TIFF"), PICTURE.quantize(9)),
    (tiff_of(WIDE), WIDE >> 8),
    (tiff_of(WIDE, byteorder=">", compression="zlib"), WIDE >> 8),
    (tiff_of(WIDE[..., 0], byteorder=">"), WIDE[..., 0] >> 8),
    (tiff_of(PHOTO, bigtiff=True), PHOTO),
    (with_tags(OF_12_BITS, {256: 2, 258: 12}), np.array([[0x12, 0x45]])),
    (tiff_of(np.stack([PHOTO, PHOTO[::-1]])), PHOTO),
    (encoded(PHOTO, "PPM"), PHOTO),
    (b"P5 2 1 65535\n\x12\x34\xff\x00", np.array([[0x12, 0xFF]])),
    (encoded(PHOTO, "JPEG2000"), PHOTO),
    (encoded(RGBA, "JPEG2000"), PHOTO),
    (encoded(Image.fromarray(WIDE[..., 0]), "JPEG2000"), WIDE[..., 0] >> 8),
  ],
)
def test_lossless_pixels_are_kept_and_transparency_is_dropped(data, expected):
  if isinstance(expected, Image.Image):
    expected = np.array(expected.convert("RGB"))
  if expected.ndim == 2:
    expected = np.stack([expected] * 3, axis=-1)

  decoded = decode(data)

  assert decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, expected)


def test_the_inks_of_a_tiff_are_multiplied():
  ink = np.array(PICTURE.convert("CMYK"))
  ink[..., 3] = 99

  decoded = decode(encoded(Image.fromarray(ink, "CMYK"), "TIFF")).astype(int)

  bare = 255 - ink.astype(int)
  expected = bare[..., :3] * bare[..., 3:] / 255
  np.testing.assert_allclose(decoded, expected, atol=1)


def test_an_avif_is_read():
  decoded = decode(encoded(RGBA, "AVIF", quality=100)).astype(int)

  assert np.abs(decoded - PHOTO).mean() < 3


@pytest.mark.parametrize(
  ("data", "kind"),
  [
    (tiff_of(GREY / np.float32(255)), "1 x 32-bit floats"),
    (tiff_of(GREY / 255, bigtiff=True), "1 x 64-bit floats"),
    (tiff_of(PHOTO / np.float16(255)), "3 x 16-bit floats"),
    (tiff_of(GREY.astype(np.uint32)), "1 x 32-bit integers"),
    (tiff_of(GREY.astype(np.int16)), "1 x 16-bit integers"),
    (tiff_of(FIVE_BANDS, planarconfig="contig"), "5 x 8-bit integers"),
  ],
)
def test_pixels_that_are_no_colours_are_described(data, kind):
  with pytest.raises(ValueError, match=f"TIFF of {kind} per pixel: convert it"):
    decode(data)


@pytest.mark.parametrize(
  "data",
  [
    *(DEFLATED[:200], DEFLATED[:-50], DEFLATED[:8]),
    *(b"GIF89a\x1b[31m", b"II*\0\xff\xff\xff\xff", b"BM"),
  ],
  ids=len,
)
def test_a_damaged_file_of_another_format_is_not_called_sound(data):
  with pytest.raises(ValueError, match="are not a whole") as error:
    decode(data)
  assert str(error.value).isprintable()


@pytest.mark.skipif("HEIF" in FORMATS, reason="it is read here")
def test_the_package_that_reads_heic_is_named():
  with pytest.raises(ValueError, match="pip install pillow-heif"):
    decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
