# SPDX-License-Identifier: Apache-2.0
"""Charts of results: their look, their labels and their files."""

import argparse
import itertools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mixer.errors import UserError
from mixer.tools.paper.figures import files
from mixer.tools.paper.results_store import RESULTS

# Okabe and Ito's colours, told apart by colour-blind readers. Markers differ as
# well, for prints in grey.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
GREY = "0.45"
_DPI = 160
_COLORS = 96  # of a PNG
_LINE = 1.25  # height of a label, in its size


def add_results(parser: argparse.ArgumentParser) -> None:
  """The flag that says where the results are that a chart draws."""
  parser.add_argument(
    "--results", type=Path, default=RESULTS, help="default: results/"
  )


def new_figure(width: float, height: float) -> Figure:
  """An empty figure of so many inches."""
  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  return figure


def style(axes: Axes) -> None:
  axes.grid(color="0.92", linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["bottom", "left"]].set_color("0.6")
  axes.tick_params(color="0.6", labelsize=9)


def label_points(
  axes: Axes,
  points: Sequence[tuple[float, float, str, str]],
  *,
  size: float = 9,
  gap: float = 6,
) -> None:
  """Writes labels to the right of points, none over another.

  To be called when the axes have their limits.

  Args:
    axes: that the points lie in.
    points: (x, y, text, colour); labels of points one above another are moved
      up and down as far as they must be.
    size: of the letters, in points.
    gap: between point and label, in points.
  """
  figure = axes.get_figure(root=True)
  figure.draw_without_rendering()  # where the points lie
  pixels = figure.dpi / 72
  ys = np.array([axes.transData.transform(point[:2])[1] for point in points])
  places = spread(ys / pixels, size * _LINE)
  for (x, y, text, color), place, own in zip(
    points, places, ys / pixels, strict=True
  ):
    axes.annotate(
      text,
      (x, y),
      xytext=(gap, place - own),
      textcoords="offset points",
      va="center",
      color=color,
      fontsize=size,
      annotation_clip=False,
    )


def spread(places: np.ndarray, gap: float) -> np.ndarray:
  """Moves numbers [n] apart, each as little as that allows.

  Neighbours that would lie closer than the gap form a group, which stays
  around its mean.
  """
  order = np.argsort(places, kind="stable")
  groups: list[list[float]] = []
  for place in places[order]:
    groups.append([place])
    while len(groups) > 1 and _lowest(groups[-1], gap) < (
      _lowest(groups[-2], gap) + gap * len(groups[-2])
    ):
      groups[-2:] = [groups[-2] + groups[-1]]
  apart = [
    _lowest(group, gap) + gap * i for group in groups for i in range(len(group))
  ]
  result = np.empty(len(places))
  result[order] = apart
  return result


def _lowest(group: list[float], gap: float) -> float:
  return float(np.mean(group)) - gap * (len(group) - 1) / 2


def place_labels(
  axes: Axes,
  points: Sequence[tuple[float, float, str, str]],
  *,
  size: float = 7.5,
) -> None:
  """Writes labels beside a cloud of points, where there is room.

  To be called when the axes have their limits and all marks.

  Args:
    axes: that the points lie in.
    points: (x, y, text, colour).
    size: of the letters, in points.
  """
  figure = axes.get_figure(root=True)
  figure.draw_without_rendering()  # where the points lie
  scale = figure.dpi / 72
  centres = [axes.transData.transform(p[:2]) / scale for p in points]
  inside = axes.get_window_extent().extents / scale
  half = _MARK / 2
  taken = [(x - half, y - half, x + half, y + half) for x, y in centres]
  for (x, y, text, color), centre in zip(points, centres, strict=True):
    wide = _LETTER * size * len(text)
    boxes = [_label_box(*centre, *place, wide, size) for place in _PLACES]
    covered = [
      sum(_overlap(box, other) for other in taken) - _overlap(box, inside)
      for box in boxes
    ]
    best = int(np.argmin(covered))
    taken.append(boxes[best])
    axes.annotate(
      text,
      (x, y),
      xytext=(boxes[best][0] - centre[0], _PLACES[best][1] * _MARK),
      textcoords="offset points",
      va="center",
      fontsize=size,
      color=color,
    )


# Where a label may lie of its point: across and up; the best first.
_PLACES = (
  (1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1.3), (0, -1.3),
)  # fmt: skip
_MARK = 7.0  # room that a mark takes, in points
_LETTER = 0.58  # width of a letter, in its size


def _label_box(x, y, across, up, wide, high) -> tuple:
  """(left, bottom, right, top) of a label at one of the places of a point."""
  left = x + across * (_MARK - 1) - (1 - across) / 2 * wide
  bottom = y + up * _MARK - high / 2
  return left, bottom, left + wide, bottom + high


def _overlap(one: tuple, other: tuple) -> float:
  """Area that two boxes (left, bottom, right, top) share."""
  wide = min(one[2], other[2]) - max(one[0], other[0])
  high = min(one[3], other[3]) - max(one[1], other[1])
  return max(wide, 0.0) * max(high, 0.0)


def save(figure: Figure, out: str | Path) -> str:
  """Writes FILE.svg and FILE.png; returns their names, for a sentence."""
  return files.save(figure, out, dpi=_DPI, colors=_COLORS)


def read_results(
  file: Path,
  command: str,
  *,
  about: Mapping[str, Collection[str]],
  numbers: Sequence[str] = (),
  config: Sequence[str],
  results: Sequence[str],
) -> dict:
  """Reads a file of results.

  Args:
    file: a JSON file.
    command: that makes it.
    about: what curves are of, and the values that there are curves of.
    numbers: that a curve has beside that.
    config: numbers in the config of each curve.
    results: of each run, a number for each of its steps.

  Raises:
    UserError: it is not there, or damaged, or lacks a curve; says what makes
      it.
  """
  if not file.is_file():
    raise UserError(
      f"There are no results to draw in {file}. They are made by: {command}"
    )
  try:
    content = json.loads(file.read_text())
    made(content)
    found = set()
    for curve in content["curves"]:
      found.add(tuple(curve[key] for key in about))
      given = {key: curve[key] for key in numbers}
      _check_numbers(given | {key: curve["config"][key] for key in config})
      for run in curve["runs"]:
        _check_results({key: run[key] for key in ("steps", *results)})
      if len({len(run["steps"]) for run in curve["runs"]}) != 1:
        raise ValueError("not all runs of a curve have as many steps")
    for wanted in itertools.product(*about.values()):
      if wanted not in found:
        raise ValueError(f"it has no curve of {', '.join(wanted)}")
    return content
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{file} is damaged ({type(error).__name__}: {error}): make it anew with "
      f"{command}"
    ) from error


def _check_numbers(found: Mapping[str, object]):
  for key, value in found.items():
    if not isinstance(value, int | float) or not math.isfinite(value):
      raise ValueError(f"{key} = {value!r} is not a number")


def _check_results(run: Mapping[str, Sequence]):
  """Raises ValueError for a run without a number of each result a step."""
  for key, values in run.items():
    _check_numbers({f"{key}[{i}]": value for i, value in enumerate(values)})
    if not values or len(values) != len(run["steps"]):
      raise ValueError(f"{key} has {len(values)} values")


def made(content: dict) -> str:
  """Where results come from, for the foot of a figure."""
  commit = (content["git_commit"] or "no repository")[:7]
  return f"{content['date'][:10]}, commit {commit}, {content['devices']}"


def runs_of(curve: dict, result: str) -> np.ndarray:
  """A result of all runs at all evaluations, [seeds, evaluations]."""
  return np.array([run[result] for run in curve["runs"]])
