# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a run has learned: token-mixing units and stem filters."""

from mixer import weights
from mixer.errors import UserError
from mixer.tools.paper.figures.filters import filter_mosaic
from mixer.tools.paper.figures.token_units import (
  HOW,
  block_name,
  blocks_of,
  unit_mosaic,
)
from mixer.tools.paper.report import markup
from mixer.tools.paper.report.markup import Markup
from mixer.tools.paper.report.record import Record

_BLOCKS = 3  # as in figure 5
_UNITS = 128  # of a block, at most
# Width to height: the picture of the filters is as wide as the page.
_FILTERS_RATIO = 1.5


def pictures(record: Record) -> Markup:
  """Draws the run's weights, in so far as there are such parts in its model."""
  if not record.is_done:
    said = "Units and filters are drawn once the run is done."
    return markup.section(
      "What it has learned", markup.element("p", said, "note")
    )
  try:
    checkpoint = weights.read(record.folder)
  except UserError as error:
    return markup.section(
      "What it has learned", markup.element("p", error, "warn")
    )
  parts = [*_units(checkpoint), *_filters(checkpoint)]
  return markup.section("What it has learned", *parts) if parts else Markup("")


def _units(checkpoint: weights.LoadedWeights) -> list[Markup]:
  """Those of the first blocks; nothing of a model without."""
  figures = []
  for block in blocks_of(checkpoint.params)[:_BLOCKS]:
    try:
      pixels, shown = unit_mosaic(checkpoint, block, _UNITS)
    except UserError as error:
      return [markup.element("p", error, "note warn")]
    figures.append(_figure(pixels, block_name(block), shown))
  if not figures:
    return []
  said = f"Token-mixing units as in the paper's figure 5; {HOW}."
  return [
    markup.element("p", said, "note"),
    Markup(f'<div class="pictures">{markup.join(figures)}</div>'),
  ]


def _filters(checkpoint: weights.LoadedWeights) -> list[Markup]:
  """Of the stem, as in figure 7; nothing of a model without."""
  try:
    pixels, shown = filter_mosaic(checkpoint, ratio=_FILTERS_RATIO)
  except UserError as error:
    return [markup.element("p", error, "note warn")]
  said = (
    "Stem filters as in the paper's figure 7; mid-grey is zero, each by its "
    "own largest weight; low frequency first."
  )
  return [
    markup.element("p", said, "note"),
    Markup(f'<div class="pictures one">{_figure(pixels, "Stem", shown)}</div>'),
  ]


def _figure(pixels, title: str, shown: str) -> Markup:
  return Markup(
    '<figure class="card">'
    f"{markup.element('h3', title)}"
    f"{markup.picture(pixels, f'{title}: {shown}')}"
    f"{markup.element('figcaption', shown)}</figure>"
  )
