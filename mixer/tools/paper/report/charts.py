# SPDX-License-Identifier: Apache-2.0
"""Parts of the page: tables, images, and charts as SVG.

Charts take colours and fonts from the page. Matplotlib draws in placeholder
colours, which are replaced by the page's CSS variables, so that one drawing
serves light and dark pages.
"""

import base64
import io
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from mixer.tools.paper.run_reader import Run
from mixer.training import plots

_SIZE = 4.4, 2.5  # inches, as wide as a phone
# Placeholders: colours that no other part of a drawing has.
_INK, _GRID, _TRAINING = "#010203", "#010204", "#010205"
SERIES = [f"#01030{i}" for i in range(len(plots.PALETTE))]
_VARIABLES = {_INK: "--soft", _GRID: "--grid", _TRAINING: "--training"} | {
  color: f"--series-{i}" for i, color in enumerate(SERIES)
}
_DASHES = "-", "--", ":"


class Table(NamedTuple):
  """A table of text; `numbers` are right-aligned columns, `marked` are rows."""

  head: list[str]
  rows: list[list[str]]
  numbers: Sequence[int] = ()
  marked: Sequence[int] = ()


class Picture(NamedTuple):
  """An image as a data URI, with a title and a caption."""

  uri: str
  title: str
  caption: str


def png_uri(pixels: np.ndarray) -> str:
  """Encodes an image [h, w, 3], uint8 or float from 0 to 1, as a data URI."""
  if pixels.dtype != np.uint8:
    pixels = np.uint8(np.round(np.clip(pixels, 0, 1) * 255))
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, format="png")
  return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def thumbnail_uri(file: str | os.PathLike, size: int) -> str:
  """Encodes an image file as a data URI, at most `size` pixels wide and high.

  A small image grows by a whole factor, so that its pixels stay sharp.

  Raises:
    OSError: there is no such file, or it is not an image.
  """
  with Image.open(file) as image:
    image = image.convert("RGB")
  image.thumbnail((size, size))
  zoom = max(size // max(image.size), 1)
  return png_uri(np.asarray(image).repeat(zoom, 0).repeat(zoom, 1))


class Chart(NamedTuple):
  """A drawing with its legend of (CSS variable, text) and notes below it."""

  title: str
  legend: Sequence[tuple[str, str]]
  svg: Markup
  notes: Sequence[str] = ()


def curves(run: Run) -> list[Chart]:
  """Draws loss, accuracy and learning rate, if the log has them."""
  names = run.evaluation_names
  losses = [name for name in names if plots.is_loss(name)]
  accuracies = [name for name in names if plots.is_accuracy(name)]
  charts = (
    draw(run, "Loss", "train/loss", losses),
    draw(run, "Accuracy (%)", "", accuracies, scale=100.0),
    draw(run, "Learning rate", "train/learning_rate"),
  )
  return [chart for chart in charts if chart]


def draw(
  run: Run,
  title: str,
  training: str,
  evaluations: Sequence[str] = (),
  scale: float = 1.0,
) -> Chart | None:
  """Draws series over steps; None if the log has none of them.

  Args:
    run: its log has the series.
    title: of the chart.
    training: a series of single batches.
    evaluations: series of evaluations, whose values are multiplied by `scale`.
  """
  drawn = {x: series for x in evaluations if (series := run.series(x))[0]}
  batches = run.series(training)
  if not drawn and not batches[0]:
    return None
  legend, notes = [], []
  figure, axes = new_axes("step")
  if training == "train/loss" and batches[0]:
    label = plots.draw_training_loss(axes, *batches, _TRAINING)
    legend.append(("--training", label))
  elif batches[0]:
    style = _marker(batches[0], 3)
    axes.plot(*batches, color=_TRAINING, linewidth=1.4, **style)
  for i, (name, (steps, values)) in enumerate(drawn.items()):
    color = i % len(SERIES)
    style = _marker(steps, 3.5) | {"color": SERIES[color], "linewidth": 1.8}
    style["linestyle"] = _DASHES[i // len(SERIES) % len(_DASHES)]
    axes.plot(steps, np.multiply(values, scale), **style)
    label = f"{plots.evaluator_name(name)} {scale * values[-1]:.4g}"
    legend.append((f"--series-{color}", label))
  for name in training, *evaluations:
    rows = [row for row in run.rows if not math.isfinite(row.get(name, 0))]
    if rows:
      notes.append(
        f"{name} is not finite in {len(rows):,} of the log's rows, first at "
        f"step {rows[0]['step']:,}."
      )
  values = [*batches[1], *(v for _, each in drawn.values() for v in each)]
  axes.margins(y=0.08)
  axes.set_xlim(-0.02 * run.step, 1.02 * run.step)  # of all charts
  if title == "Loss" and plots.log_scale_if_wide(axes, values):
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=9))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    title = "Loss (log scale)"
  elif max(values) >= 1000:
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
  if scale == 100:
    plots.limit_accuracy(axes, 100.0)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
  svg = to_svg(figure, f"{title} over steps")
  return Chart(title, legend, svg, notes)


def new_axes(xlabel: str) -> tuple[Figure, Axes]:
  """Creates a figure for `to_svg`, and its axes."""
  figure = plots.new_figure(*_SIZE)
  figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
  [axes] = plots.make_axes(figure, grid=_GRID, spines=_GRID)
  axes.spines["left"].set_visible(False)
  axes.tick_params(colors=_INK, length=0, labelsize=10.5)
  axes.set_xlabel(xlabel, color=_INK, fontsize=10.5)
  return figure, axes


def _marker(series: Sequence, size: float) -> dict:
  """Returns the style of markers, which only short series have."""
  return {"marker": "o", "markersize": size if len(series) < 40 else 0}


def to_svg(figure: Figure, description: str) -> Markup:
  """Returns a figure as an element of the page."""
  file = io.StringIO()
  options = {"svg.fonttype": "none", "svg.hashsalt": description}
  nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
  with matplotlib.rc_context(options):
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
  svg = file.getvalue()
  svg = svg[svg.index("<svg") :]
  for color, variable in _VARIABLES.items():
    svg = svg.replace(color, f"var({variable})")
  # An id must be unique in the page.
  prefix = re.sub(r"\W+", "-", description.lower())
  svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
  svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", svg)
  # The page sets width and font, the view box the shape.
  svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
  svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
  label = f'<svg role="img" aria-label="{escape(description)}"'
  return Markup(svg.replace("<svg", label, 1))
