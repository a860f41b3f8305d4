# SPDX-License-Identifier: Apache-2.0
"""Finds images that another data set holds too: 128-bit difference hashes.

An image is a duplicate of another where at most DISTANCE of the 128 signs
differ. Measured on 21 photographs: of 1,890 copies at 0.5 to 1.5 times the size
and JPEG quality 50 to 95 all are found (99.0 % at distance 6, 99.7 % at 8);
of 13 million pairs of parts of different photographs the nearest are 20 apart.
A crop to 95 % of the sides is found in one case of four, a mirrored image
never.

The signs of a blank page are noise, and those of a clear sky those of every
other sky. Such plain images have no hash: they are nobody's duplicates.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from mixer.data import decode
from mixer.data.sources import Source
from mixer.errors import UserError
from mixer.storage import atomic_write, read_lines

DISTANCE = 10

# An image is plain if fewer than 10 of its gradients (above 2 grey levels) have
# the less frequent sign. Between fields of different photographs, skies among
# them, the least distance is 3 without this rule and 26 with it.
MIN_MINORITY_SIGNS = 10

HEADER = "# hash\tdata set\tsplit\tid"
NO_HASH = "-"


def difference_hash(image: np.ndarray) -> np.ndarray | None:
  """Returns the hash of uint8 [h, w, 3]: two uint64; None for a plain image.

  The hash is made of the signs of 64 horizontal and 64 vertical differences
  between the mean greys of neighbouring fields.
  """
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  # Fields of 9 x 8 and of 8 x 9 are whole numbers of these pixels.
  grey = cv2.resize(grey, (72, 72), interpolation=cv2.INTER_AREA)
  wide = grey.reshape(8, 9, 9, 8).mean((1, 3))
  high = grey.reshape(9, 8, 8, 9).mean((1, 3))
  differences = np.stack([np.diff(wide).ravel(), np.diff(high, axis=0).ravel()])
  clear = [(differences > 2).sum(1), (differences < -2).sum(1)]
  if np.minimum(*clear).sum() < MIN_MINORITY_SIGNS:
    return None
  rises = differences > 0  # 2 64
  return np.packbits(rises, axis=1).view(">u8").astype(np.uint64)[:, 0]


@dataclasses.dataclass(frozen=True)
class Hashes:
  """The hashes of images, to look others up in.

  Attributes:
    codes: uint64 [2, n].
    names: of the images, such as `cifar10 test 17`.
  """

  codes: np.ndarray
  names: Sequence[str]

  def find(self, image: np.ndarray) -> str | None:
    """Returns the name of the nearest image, if it is near enough."""
    if not self.names:
      return None
    code = difference_hash(image)
    if code is None:
      return None
    different = np.bitwise_count(self.codes ^ code[:, None]).sum(0)
    nearest = int(different.argmin())
    return self.names[nearest] if different[nearest] <= DISTANCE else None


def load(files: Sequence[str | os.PathLike]) -> Hashes:
  """Reads what `write` wrote.

  Raises:
    UserError: a file is not such a list.
  """
  codes, names = [], []
  for file in files:
    header, *lines = read_lines(file, f"the list of hashes {file}") or [""]
    if header != HEADER:
      raise UserError(
        f"{file} is not a list of hashes, its first line is {header[:60]!r}:"
        " give a file that python -m mixer data hash wrote."
      )
    for line in lines:
      code, *name = line.split("\t")
      if code != NO_HASH:
        codes.append((int(code[:16], 16), int(code[16:], 16)))
        names.append(" ".join(name))
  return Hashes(np.array(codes, np.uint64).reshape(-1, 2).T.copy(), names)


def write(source: Source, file: str | os.PathLike) -> tuple[int, int, int]:
  """Writes one line for each image of a source, in order.

  Returns:
    The number of images, of the plain ones among them, and of those that cannot
    be decoded; neither has a hash.
  """
  outcomes = {"plain": 0, "unreadable": 0}
  with atomic_write(Path(file)) as temporary, temporary.open("w") as lines:
    print(HEADER, file=lines)
    for i, code in enumerate(_hash_all(source)):
      if code in outcomes:
        outcomes[code] += 1
        code = NO_HASH
      print(code, source.name, source.split, i, sep="\t", file=lines)
  return len(source), outcomes["plain"], outcomes["unreadable"]


def _hash_all(source: Source) -> Iterator[str]:
  """Yields each image's hash in hex, or `plain`, or `unreadable`."""
  with concurrent.futures.ThreadPoolExecutor() as threads:
    # In parts: a map over all the ids would hold a task for each of them.
    for first in range(0, len(source), 1024):
      ids = range(len(source))[first : first + 1024]
      yield from threads.map(lambda i: _hash_one(source, i), ids)


def _hash_one(source: Source, i: int) -> str:
  [(data, _)] = source.read([i])
  try:
    code = difference_hash(decode.decode(data))
  except ValueError:
    return "unreadable"
  return "plain" if code is None else "".join(f"{part:016x}" for part in code)
