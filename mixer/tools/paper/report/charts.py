# SPDX-License-Identifier: Apache-2.0
"""Curves as SVG that takes its colours and its letters from the page.

Drawn by Matplotlib in marker colours, which become the page's variables: so
that one drawing serves light and dark pages.
"""

import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from mixer.tools.paper.report.markup import Markup, element, join, text
from mixer.tools.paper.report.record import Record, Series

SERIES = 6  # colours there are in the page
_SIZE = 4.4, 2.5  # inches, as wide as a phone
_MOST_POINTS = 240
# Any colours that no other part of the drawing has.
_INK, _GRID, _TRAINING = "#010203", "#010204", "#010205"
_VARIABLES = {_INK: "--soft", _GRID: "--grid", _TRAINING: "--training"} | {
  f"#01030{i}": f"--series-{i}" for i in range(SERIES)
}
_DASHES = "-", "--", ":"


def curves(record: Record) -> list[Markup]:
  """Charts of loss, accuracy and learning rate, of what the log has."""
  names = record.evaluation_names
  losses = {
    name: record.series(name) for name in names if name.endswith("/loss")
  }
  accuracies = {
    name: record.series(name)
    for name in names
    if name.endswith("/accuracy")
    or (name.startswith("eval/fewshot/") and name.endswith("shot"))
  }
  charts = [
    _chart(record, "Loss", "train/loss", losses),
    _chart(record, "Accuracy (%)", None, accuracies, scale=100.0),
    _chart(record, "Learning rate", "train/learning_rate", {}),
  ]
  return [chart for chart in charts if chart]


def throughput(record: Record) -> Markup:
  """A chart of images per second; "" without any."""
  return _chart(record, "Images per second", "images_per_second", {})


def _chart(
  record: Record,
  title: str,
  training: str | None,
  evaluations: dict[str, Series],
  scale: float = 1.0,
) -> Markup:
  """One chart with its legend; "" where there is nothing to draw."""
  drawn = {name: each for name, each in evaluations.items() if each[0]}
  of_training = record.series(training) if training else ([], [])
  if not drawn and not of_training[0]:
    return Markup("")
  figure = Figure(figsize=_SIZE, layout="constrained")
  figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
  axes = figure.add_subplot()
  legend, notes = [], []
  if of_training[0]:
    _draw_training(axes, of_training)
    if evaluations:
      legend.append(("--training", "training", of_training[1][-1]))
  for i, (name, (steps, values)) in enumerate(drawn.items()):
    axes.plot(
      steps,
      np.multiply(values, scale),
      color=f"#01030{i % SERIES}",
      linestyle=_DASHES[i // SERIES % len(_DASHES)],
      linewidth=1.8,
      marker="o",
      markersize=3.5 if len(steps) < 40 else 0,
    )
    label = re.sub("^eval/|/(loss|accuracy)$", "", name)
    legend.append((f"--series-{i % SERIES}", label, scale * values[-1]))
  for name in filter(None, [training, *evaluations]):
    if broken := record.not_finite(name):
      notes.append(
        f"{name} is not finite in {len(broken):,} of the log's rows, first at "
        f"step {broken[0]:,}."
      )
  values = [*of_training[1], *(v for _, each in drawn.values() for v in each)]
  if title == "Loss" and min(values) > 0 and max(values) > 20 * min(values):
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=9))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    title = "Loss (logarithmic)"
  elif max(values) >= 1000:
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
  _style(axes)
  parts = [element("h3", title), _to_svg(figure, f"{title} over steps")]
  if legend:
    parts.append(_legend(legend))
  parts += [element("p", note, "note warn") for note in notes]
  return Markup(f'<figure class="card">{join(parts)}</figure>')


def _draw_training(axes, series: Series) -> None:
  """A line; of a long run means, and behind them from least to most."""
  steps, values = map(np.asarray, series)
  if len(steps) > _MOST_POINTS:
    parts = np.array_split(np.arange(len(steps)), _MOST_POINTS)
    steps = np.array([steps[part].mean() for part in parts])
    least = [values[part].min() for part in parts]
    most = [values[part].max() for part in parts]
    axes.fill_between(
      steps, least, most, color=_TRAINING, alpha=0.3, linewidth=0
    )
    values = np.array([values[part].mean() for part in parts])
  axes.plot(
    steps,
    values,
    color=_TRAINING,
    linewidth=1.4,
    marker="o" if len(steps) == 1 else "",
  )


def _style(axes) -> None:
  axes.grid(color=_GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.spines["bottom"].set_color(_GRID)
  axes.tick_params(colors=_INK, length=0, labelsize=10.5)
  axes.tick_params(which="minor", length=0)
  axes.margins(x=0.02, y=0.08)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
  axes.set_xlabel("step", color=_INK, fontsize=10.5)


def _legend(entries: Sequence[tuple[str, str, float]]) -> Markup:
  """Names with their last values, in the colours of the lines."""
  items = [
    f'<li><i style="background: var({variable})"></i>'
    f"{text(name)} {value:.4g}</li>"
    for variable, name, value in entries
  ]
  return Markup(f'<ul class="legend">{"".join(items)}</ul>')


def _to_svg(figure: Figure, description: str) -> Markup:
  """The drawing as an element of a page."""
  file = io.StringIO()
  options = {"svg.fonttype": "none", "svg.hashsalt": description}
  with matplotlib.rc_context(options):
    figure.savefig(
      file, format="svg", transparent=True, metadata={"Date": None}
    )
  drawing = file.getvalue()
  drawing = drawing[drawing.index("<svg") :]
  drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
  for color, variable in _VARIABLES.items():
    drawing = drawing.replace(color, f"var({variable})")
  # Names of parts are unique in a page.
  prefix = re.sub(r"\W+", "-", description.lower())
  drawing = re.sub(r'\bid="', f'id="{prefix}-', drawing)
  drawing = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", drawing)
  # The page decides on the width, the view box on the shape, the page's own
  # letters are taken.
  drawing = re.sub(r'(<svg [^>]*?) width="\S+"', r"\1", drawing, count=1)
  drawing = re.sub(r'(<svg [^>]*?) height="\S+"', r"\1", drawing, count=1)
  drawing = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", drawing)
  return Markup(
    drawing.replace(
      "<svg", f'<svg role="img" aria-label="{text(description)}"', 1
    )
  )
