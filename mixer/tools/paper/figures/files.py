# SPDX-License-Identifier: Apache-2.0
"""A figure's two files: vector graphics, and pixels beside them."""

import os
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from mixer.errors import UserError
from mixer.storage import atomic_write, check_writable


def check_out(out: str | os.PathLike) -> list[Path]:
  """The figure's two files: FILE.svg and FILE.png.

  Raises:
    UserError: `out` is no such name, or nothing can be written there.
  """
  vector = Path(out)
  if vector.suffix.lower() != ".svg":
    raise UserError(
      f"--out={out} must end in .svg; the picture in pixels, .png, is written "
      "beside it."
    )
  check_writable(vector, "out")
  return [vector, vector.with_suffix(".png")]


def save(
  figure: Figure,
  out: str | os.PathLike,
  *,
  dpi: int,
  colors: int | None = None,
) -> str:
  """Writes both files.

  Args:
    figure: from Matplotlib.
    out: FILE.svg.
    dpi: of the PNG.
    colors: of the PNG, where so few do: a third of the size.

  Returns:
    Their names, for a sentence.
  """
  files = check_out(out)
  for file in files:
    # Without a date, and with the same names of parts: the same figure is the
    # same file.
    metadata = {"Date": None} if file.suffix == ".svg" else None
    with (
      matplotlib.rc_context({"svg.hashsalt": "mixer"}),
      atomic_write(file) as aside,
    ):
      figure.savefig(aside, dpi=dpi, metadata=metadata)
      if colors and file.suffix == ".png":
        Image.open(aside).convert("RGB").quantize(colors).save(aside)
  return f"{files[0]} and {files[1]}"
