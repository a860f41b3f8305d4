# SPDX-License-Identifier: Apache-2.0
"""Figure 5: hidden units of the first token-mixing MLPs of one model.

  python -m mixer paper figure 5 --init=imagenet1k/Mixer-B_16

Each panel is a block's token mixing, each small picture in it a hidden unit:
what it weighs the tokens with. Two beside each other are a pair: a unit and the
one closest to its negative; pairs of low frequency come first (`units.py`
says what these words mean). Of more than --units units a panel shows
pairs at equal distances in that order. The paper draws a Mixer-B/16 trained on
JFT-300M, whose weights were never published.
"""

import argparse
from collections.abc import Sequence

from mixer import weights
from mixer.errors import UserError
from mixer.tools.paper.figures import files, panels
from mixer.tools.paper.figures.unit_panels import (
  HOW,
  add_blocks,
  block_name,
  choose_blocks,
  unit_mosaic,
)

_PIXELS = 42  # of a unit's picture, about
_RATIO = 0.6  # of a panel's width to its height: there are three of them


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    "--init",
    required=True,
    action="append",
    help="weights: a name, a file, a run's folder",
  )
  add_blocks(parser, "the first three")
  add("--units", type=int, default=128, help="at most, a block; default: 128")
  add("--out", default="figure5.svg", metavar="FILE.svg")


def draw(
  init: Sequence[str],
  blocks: list[int] | None = None,
  units: int = 128,
  out: str = "figure5.svg",
) -> str:
  """Draws the figure; see the flags.

  Returns:
    What it wrote.

  Raises:
    UserError: the weights are no Mixer's or cannot be had, there are several,
      or the files cannot be written.
  """
  if len(init) > 1:
    raise UserError(
      f"--init is given {len(init)} times: figure 5 is of one model, figure 6 "
      "sets several side by side."
    )
  if units < 2:
    raise UserError(f"--units={units} must be 2 or more: units come in pairs.")
  files.check_out(out)
  checkpoint = weights.read(*init)
  row = []
  for block in choose_blocks(checkpoint, blocks, 3):
    sheet, shown = unit_mosaic(
      checkpoint, block, most=units, pixels=_PIXELS, ratio=_RATIO
    )
    row.append(panels.Panel(f"{block_name(block)}\n{shown}", sheet))
  title = f"Token-mixing units of {panels.short_name(checkpoint.name)}"
  written = panels.draw(title, f"Paper, figure 5; {HOW}.", [row], out)
  return f"{title}: {written}"
