# SPDX-License-Identifier: Apache-2.0
"""Figure 7: the filters of the stem, of one model or several side by side.

  python -m mixer paper figure 7 --init=sam/Mixer-B_16 --init=sam/Mixer-B_32

Each small picture is a filter, in colours around mid-grey, which is zero: a
channel of the patch projection, of a ViT's embedding or of a BiT's first
convolution. They are sorted by frequency, low first (see figure 5; here in
cycles per pixel, over all colours). The paper has a Mixer-B/16 and a Mixer-B/32
trained on JFT-300M: the filters of 32 px are smooth, those of 16 px mostly
without structure.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from mixer import weights
from mixer.errors import UserError
from mixer.models.bit import standardize_filters
from mixer.tools.paper.figures import charts, mosaic
from mixer.tools.paper.figures.token_units import check_finite, frequencies
from mixer.weights import LoadedWeights

HOW = (
  "mid-grey is zero, each filter is scaled by its own largest weight; low "
  "frequency first"
)
_PIXELS = 32  # approximate size of a filter's picture
# First convolution in the parameters of a Mixer, a ViT and a BiT.
_BIT = "root_block/conv_root/kernel"
_STEMS = "stem/kernel", "embedding/kernel", _BIT


def draw_figure7(init: Sequence[str], out: str | Path) -> str:
  """Draws figure 7; returns the names of models and files, for a sentence."""
  charts.check_out(out)
  row = []
  for name in init:
    sheet, caption = filter_mosaic(weights.read(name))
    row.append(mosaic.Panel(f"{mosaic.short_name(name)}\n{caption}", sheet))
  note = f"Paper, figure 7; {HOW}."
  return mosaic.draw_panels("Stem filters", init, note, [row], out)


def filter_mosaic(
  checkpoint: LoadedWeights, *, ratio: float = 1.0
) -> tuple[np.ndarray, str]:
  """Draws a model's filters, sorted by frequency.

  Args:
    checkpoint: weights of a Mixer, a ViT or a BiT.
    ratio: approximate width of the mosaic divided by its height.

  Returns:
    float [h, w, 3], and a caption such as "768 filters of 16 x 16 px".
  """
  filters = read_filters(checkpoint)  # n h w c
  n, h, w, _ = filters.shape
  order = np.argsort(frequencies(filters), kind="stable")
  sheet = mosaic.make_mosaic(
    mosaic.around_grey(filters[order]),
    mosaic.choose_columns(n, (h, w), ratio),
    zoom=mosaic.choose_zoom(h, _PIXELS),
    between=1.0,
  )
  return sheet, f"{n:,} filters of {h} x {w} px"


def read_filters(checkpoint: LoadedWeights) -> np.ndarray:
  """Returns the filters of a Mixer's, a ViT's or a BiT's first convolution.

  Those of a BiT are standardised, as the network uses them: mean and scale of
  its weights have no effect.

  Returns:
    float64 [n, h, w, channels], in the order of the weights.
  """
  flat = flatten_dict(checkpoint.params, sep="/")
  path = next((x for x in _STEMS if x in flat), None)
  if path is None:
    raise UserError(
      f"{checkpoint.name} has no stem whose filters could be drawn: none of "
      f"{', '.join(_STEMS)}."
    )
  kernel = np.asarray(flat[path], np.float64)  # h w c n
  check_finite(checkpoint, kernel)
  if path == _BIT:
    kernel = np.asarray(standardize_filters(kernel), np.float64)
  return kernel.transpose(3, 0, 1, 2)  # n h w c
