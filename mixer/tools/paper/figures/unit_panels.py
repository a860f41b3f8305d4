# SPDX-License-Identifier: Apache-2.0
"""A block's token-mixing units as one mosaic, for figures 5 and 6."""

import argparse

import numpy as np

from mixer.tools.paper.figures import pictures
from mixer.tools.paper.figures.units import (
  blocks_of,
  in_opposite_pairs,
  read_units,
  some_pairs,
)
from mixer.weights import LoadedWeights

HOW = (
  "red: positive weights, blue: negative, each picture by its own largest; "
  "beside each unit the one closest to its negative; low frequency first"
)
_ORDINALS = ("first", "second", "third")


def add_blocks(parser: argparse.ArgumentParser, default: str) -> None:
  parser.add_argument(
    "--blocks",
    type=_numbers,
    metavar="N,N,...",
    help=f"numbers of blocks, from 0 on; default: {default}",
  )


def _numbers(text: str) -> list[int]:
  try:
    return [int(number) for number in text.split(",")]
  except ValueError as error:
    raise argparse.ArgumentTypeError(
      f"{text!r} are no numbers such as 0,1,2"
    ) from error


def choose_blocks(
  checkpoint: LoadedWeights, blocks: list[int] | None, most: int
) -> list[int]:
  """Those asked for, else the first ones that the model has.

  Raises:
    UserError: the model has no token-mixing units.
  """
  found = blocks_of(checkpoint.params)
  if not found:
    # Says so; a block that is not there is complained of where it is read.
    read_units(checkpoint, 0)
  return found[:most] if blocks is None else blocks


def block_name(block: int) -> str:
  """Such as "MixerBlock_0, the first token-mixing MLP"."""
  ordinal = _ORDINALS[block] if block < len(_ORDINALS) else f"{block + 1}th"
  return f"MixerBlock_{block}, the {ordinal} token-mixing MLP"


def unit_mosaic(
  checkpoint: LoadedWeights,
  block: int,
  *,
  most: int | None,
  pixels: int,
  ratio: float,
) -> tuple[np.ndarray, str]:
  """Draws a block's units in opposite pairs, from left to right.

  Args:
    checkpoint: of a Mixer.
    block: number of the block, from 0 on.
    most: units, of pairs at equal distances in their order; None: all.
    pixels: height of a unit's picture, about.
    ratio: width of the mosaic for a height of one, about.

  Returns:
    float [h, w, 3], and what it shows, such as
      "384 units, 14 x 14 tokens each".
  """
  found = read_units(checkpoint, block)  # d h w
  order = in_opposite_pairs(found)
  d, h, w = found.shape
  count = f"{d:,} units"
  if most is not None and most < d:
    order = some_pairs(order, most)
    count = f"{len(order):,} of {count}"
  sheet = pictures.mosaic(
    pictures.signed_colors(found[order]),
    pictures.columns_for(len(order), (h, w), ratio),
    zoom=pictures.whole_zoom(h, pixels),
    pairs=True,
  )
  return sheet, f"{count}, {h} x {w} tokens each"
