# SPDX-License-Identifier: Apache-2.0
"""Figure 7: the filters of the stem, of one model or several side by side.

  python -m mixer paper figure 7 --init=sam/Mixer-B_16 --init=sam/Mixer-B_32

Each small picture is a filter, in colours around mid-grey, which is zero: a
channel of the patches' projection, of a ViT's embedding or of a BiT's first
convolution, standardised as the network uses it. They are sorted by frequency,
low first (`units.py` says what that means; here in cycles per pixel, over all
colours). The paper has a Mixer-B/16 and a Mixer-B/32 trained on JFT-300M: the
filters of 32 px are smooth, those of 16 px mostly without structure.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from mixer import weights
from mixer.tools.paper.figures import files, panels, pictures
from mixer.tools.paper.figures.stems import read_filters
from mixer.tools.paper.figures.units import frequencies
from mixer.weights import LoadedWeights

_PIXELS = 32  # of a filter's picture, about
_HOW = (
  "mid-grey is zero, each filter by its own largest weight; sorted by "
  "frequency, low first"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    "--init",
    required=True,
    action="append",
    help="weights: a name, a file, a run's folder; any number of times",
  )
  add("--out", default="figure7.svg", metavar="FILE.svg")


def draw(init: Sequence[str], out: str = "figure7.svg") -> str:
  """Draws the figure; see the flags.

  Returns:
    What it wrote.

  Raises:
    UserError: a model has no such filters, weights cannot be had, or the files
      cannot be written.
  """
  files.check_out(out)
  row, names = [], []
  for name in init:
    checkpoint = weights.read(name)
    sheet, shown = filter_mosaic(checkpoint, pixels=_PIXELS)
    names.append(panels.short_name(name))
    row.append(panels.Panel(f"{names[-1]}\n{shown}", sheet))
  title = f"Stem filters of {', '.join(names)}"
  written = panels.draw(title, f"Paper, figure 7; {_HOW}.", [row], out)
  return f"{title}: {written}"


def filter_mosaic(
  checkpoint: LoadedWeights, *, pixels: int, ratio: float = 1.0
) -> tuple[np.ndarray, str]:
  """Draws a model's filters, sorted by frequency.

  Args:
    checkpoint: of a Mixer, a ViT or a BiT.
    pixels: height of a filter's picture, about.
    ratio: width of the mosaic for a height of one, about.

  Returns:
    float [h, w, 3], and what it shows, such as "768 filters of 16 x 16 px".
  """
  filters = read_filters(checkpoint)  # n h w c
  n, h, w, _ = filters.shape
  order = np.argsort(frequencies(filters), kind="stable")
  sheet = pictures.mosaic(
    pictures.around_grey(filters[order]),
    pictures.columns_for(n, (h, w), ratio),
    zoom=pictures.whole_zoom(h, pixels),
    between=1.0,
  )
  return sheet, f"{n:,} filters of {h} x {w} px"
