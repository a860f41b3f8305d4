# SPDX-License-Identifier: Apache-2.0
"""Plotting style of the project, and the learning curve of a run."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from mixer.errors import UserError
from mixer.storage import atomic_write, check_output, storage_path
from mixer.training.metrics import Number, read_rows

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers tell apart. Markers differ
# as well, for prints in grey.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
PALETTE = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
GREY = "0.45"  # of notes and of single batches
PICTURES = ".png", ".jpg", ".jpeg", ".pdf", ".svg"
MARK = "mlp-mixer-jax"  # in the metadata of pictures that may be replaced


def new_figure(width: float, height: float) -> "Figure":
  """Creates an empty figure, in inches, without pyplot's global state."""
  # Imported here because a run needs Matplotlib only at its end.
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout="constrained")


def check_picture(
  file: str | os.PathLike,
  flag: str,
  *,
  suffixes: Sequence[str] = PICTURES,
  inputs: Sequence[str] = (),
  mark: str = MARK,
) -> Path:
  """Checks a file for `save_picture`; see `storage.check_output`."""
  ours = b".*" + mark.encode()
  return check_output(file, flag, ours, suffixes=suffixes, inputs=inputs)


def save_picture(figure: "Figure", path: Path) -> None:
  """Writes a figure, in the format of the path's suffix."""
  suffix = path.suffix.lower()
  if suffix in (".jpg", ".jpeg"):
    options = {"pil_kwargs": {"comment": MARK}}
  else:
    key = "Software" if suffix == ".png" else "Creator"
    options = {"metadata": {key: MARK}}
  with atomic_write(path) as partial:
    figure.savefig(partial, dpi=150, **options)


def make_axes(
  figure: "Figure",
  rows: int = 1,
  columns: int = 1,
  *,
  grid: str = "0.92",
  spines: str = "0.6",
  **options,
) -> list["Axes"]:
  """Adds axes in the project's style to a figure or subfigure, row by row."""
  axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
  for each in axes:
    each.grid(color=grid, linewidth=0.8)
    each.set_axisbelow(True)
    each.spines[["top", "right"]].set_visible(False)
    each.spines[["bottom", "left"]].set_color(spines)
    each.tick_params(color=spines, labelsize=9)
  return list(axes)


def limit_accuracy(axes: "Axes", whole: float) -> None:
  """Keeps the y axis within 0 and `whole`, the value of 100 %.

  Call it when everything is drawn. Lines are not clipped, so that a marker on
  the edge is whole.
  """
  low, high = axes.get_ylim()
  axes.set_ylim(max(low, 0.0), min(high, whole))
  for line in axes.lines:
    line.set_clip_on(False)


def log_scale_if_wide(axes: "Axes", values: Sequence[float]) -> bool:
  """Makes the y axis logarithmic if values span more than a factor of 20."""
  positive = [value for value in values if value > 0]
  if not positive or max(positive) <= 20 * min(positive):
    return False
  axes.set_yscale("log")
  axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
  return True


def running_mean(values: Sequence[float]) -> tuple[np.ndarray, int]:
  """Averages each value with those before it, over a fifth of the series.

  Values that are not finite are left out; where nothing is left the mean is
  NaN.

  Returns:
    The means, [n], and the number of values in each, 50 at most.
  """
  window = min(max(len(values) // 5, 1), 50)
  finite = np.isfinite(values)
  sums, counts = (
    np.convolve(x, np.ones(window))[: len(values)]
    for x in (np.where(finite, values, 0.0), finite.astype(float))
  )
  # Rounding in the convolution leaves counts that are not quite whole.
  counts = counts.round()
  return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), window


def draw_training_loss(
  axes: "Axes", steps: Sequence[int], losses: Sequence[float], color: str
) -> str:
  """Draws the losses of single batches thin, and their running mean over them.

  Mixup makes the loss of one batch jump, so that only the mean shows a trend.

  Returns:
    A label of the mean, with its last value.
  """
  means, window = running_mean(losses)
  if window == 1:
    axes.plot(steps, losses, color=color, linewidth=1.4)
    return f"training, one batch each: {losses[-1]:.4g}"
  axes.plot(steps, losses, color=color, linewidth=0.7, alpha=0.45)
  axes.plot(steps, means, color=color, linewidth=1.8)
  return f"training, mean of {window} logged batches: {means[-1]:.4g}"


def draw_learning_curve(workdir: str | os.PathLike) -> epath.Path:
  """Draws WORKDIR/metrics.jsonl as WORKDIR/learning_curve.png.

  The upper half shows losses of training and evaluation, the lower half
  evaluation accuracies, both over steps. Legends state the final numbers, and
  the best accuracy.

  Returns:
    The picture's path.

  Raises:
    UserError: the log has neither a loss nor an accuracy.
  """
  rows = read_rows(workdir)
  names = sorted({name for row in rows for name in row})
  losses = [name for name in names if is_loss(name)]
  accuracies = [name for name in names if is_accuracy(name)]
  steps, training = collect(rows, "train/loss")
  if not steps and not accuracies:
    raise UserError(
      f"Nothing to draw in {workdir}/metrics.jsonl: it has neither "
      "train/loss nor an accuracy. Is this the folder of a training run?"
    )
  figure = new_figure(7.2, 6)
  upper, lower = make_axes(figure, 2, 1, sharex=True)
  upper.set_ylabel("loss", fontsize=9)
  drawn = [*training]
  if steps:
    label = draw_training_loss(upper, steps, training, GREY)
    upper.lines[-1].set_label(label)
    title = f"loss of the batch at step {steps[-1]:,}: {training[-1]:.4g}"
    upper.set_title(title, loc="left", fontsize=10)
  # An evaluator has one colour in both halves.
  evaluators = [*dict.fromkeys(map(evaluator_name, losses + accuracies))]
  last = 0
  for name in losses + accuracies:
    steps, values = collect(rows, name)
    if is_loss(name):
      axes, numbers = upper, f"{values[-1]:.4g}"
      drawn += values
    else:
      axes, numbers = lower, f"{values[-1]:.1%}, best {max(values):.1%}"
      last = max(last, steps[-1])
      axes.set_title(f"accuracy at step {last:,}", loc="left", fontsize=10)
    i = evaluators.index(evaluator_name(name))
    axes.plot(
      steps,
      values,
      label=f"{evaluators[i]}: {numbers}",
      color=PALETTE[i % len(PALETTE)],
      marker=MARKERS[i % len(MARKERS)],
      markersize=4,
      linewidth=1.4,
    )
  if log_scale_if_wide(upper, drawn):
    upper.set_ylabel("loss (log scale)", fontsize=9)
  upper.margins(x=0.02)
  lower.set_ylabel("evaluation accuracy (%)", fontsize=9)
  lower.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")
  lower.xaxis.get_major_locator().set_params(integer=True)
  lower.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
  lower.set_xlabel("step (updates applied)", fontsize=9)
  if accuracies:
    limit_accuracy(lower, 1.0)
  else:
    lower.set_title("no evaluation yet", loc="left", fontsize=10)
    lower.set_ylim(0, 1)
  for axes in (upper, lower):
    if axes.lines:
      axes.legend(loc="best", frameon=False, fontsize=9)
  folder = storage_path(workdir)
  figure.suptitle(folder.name, fontsize=11)
  path = folder / "learning_curve.png"
  save_picture(figure, path)
  return path


def is_loss(name: str) -> bool:
  return name.startswith("eval/") and name.endswith("/loss")


def is_accuracy(name: str) -> bool:
  """Returns whether a result is an accuracy, and not its deviation or top-5."""
  return name.startswith("eval/") and name.endswith(("/accuracy", "shot"))


def evaluator_name(name: str) -> str:
  """Returns the evaluator's part of a name, "test" of "eval/test/accuracy"."""
  return re.sub("^eval/|/(loss|accuracy)$", "", name)


def collect(
  rows: list[dict[str, Number]], name: str
) -> tuple[list[int], list[float]]:
  """Returns the steps and values of the rows that have this name."""
  matches = [row for row in rows if name in row]
  return [row["step"] for row in matches], [row[name] for row in matches]
