# SPDX-License-Identifier: Apache-2.0
"""Figure 6: all units of the first two token-mixing MLPs, of several weights.

  python -m mixer paper figure 6 --init=imagenet1k/Mixer-B_16 \\
    --init=imagenet21k/Mixer-B_16 --init=sam/Mixer-B_16

A column for each of up to three weights, a row for each block. The order is
that of figure 5: low frequency first, each unit followed by the one closest to
its negative (appendix D of the paper). The paper compares a Mixer-B/16 trained
on ImageNet, on ImageNet-21k and on JFT-300M; the last was never published.
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

_MOST = 3  # weights side by side
_PIXELS = 28  # of a unit's picture, about
_RATIO = 1.3  # of a panel's width to its height


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    "--init",
    required=True,
    action="append",
    help=f"weights: a name, a file, a run's folder; up to {_MOST} times",
  )
  add_blocks(parser, "the first two")
  add("--out", default="figure6.svg", metavar="FILE.svg")


def draw(
  init: Sequence[str],
  blocks: list[int] | None = None,
  out: str = "figure6.svg",
) -> str:
  """Draws the figure; see the flags.

  Returns:
    What it wrote.

  Raises:
    UserError: weights are no Mixer's or cannot be had, there are too many, or
      the files cannot be written.
  """
  if len(init) > _MOST:
    raise UserError(
      f"--init is given {len(init)} times: figure 6 has up to {_MOST} columns."
    )
  files.check_out(out)
  checkpoints = [weights.read(name) for name in init]
  shared = min(
    (choose_blocks(each, blocks, 2) for each in checkpoints), key=len
  )
  rows = []
  for block in shared:
    row = []
    for checkpoint in checkpoints:
      sheet, shown = unit_mosaic(
        checkpoint, block, most=None, pixels=_PIXELS, ratio=_RATIO
      )
      lines = panels.short_name(checkpoint.name), block_name(block), shown
      row.append(panels.Panel("\n".join(lines), sheet))
    rows.append(row)
  names = ", ".join(panels.short_name(each.name) for each in checkpoints)
  title = f"All token-mixing units of {names}"
  written = panels.draw(title, f"Paper, figure 6; {HOW}.", rows, out)
  return f"{title}: {written}"
