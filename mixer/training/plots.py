# SPDX-License-Identifier: Apache-2.0
"""A picture of a training run."""

import os

from etils import epath

from mixer.errors import UserError
from mixer.storage import atomic_write, storage_path
from mixer.training.metrics import Number, read_rows

# Okabe and Ito's colours, told apart by colour-blind readers; grey is for
# training. Markers differ as well, for prints in grey.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = "osD^vP"


def draw_learning_curve(workdir: str | os.PathLike) -> epath.Path:
  """Draws WORKDIR/metrics.jsonl as WORKDIR/learning_curve.png.

  Losses of training and evaluation above, evaluation accuracies below, over
  steps; the legends state the final numbers, and of each accuracy the best.

  Returns:
    The picture's path.
  """
  # Objects alone: pyplot would keep figures and choose a screen for all.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  rows = read_rows(workdir)
  loss = collect(rows, "train/loss")
  names = sorted({name for row in rows for name in row})
  accuracies = {
    name.removeprefix("eval/").removesuffix("/accuracy"): collect(rows, name)
    for name in names
    if name.startswith("eval/")
    and (name.endswith("/accuracy") or name.startswith("eval/fewshot/"))
  }
  evaluation_losses = {
    name.removeprefix("eval/").removesuffix("/loss"): collect(rows, name)
    for name in names
    if name.startswith("eval/") and name.endswith("/loss")
  }
  if not loss[0] and not accuracies:
    raise UserError(
      f"Nothing to draw in {workdir}/metrics.jsonl: it has neither "
      "train/loss nor an accuracy. Is this the folder of a training run?"
    )
  figure = Figure(figsize=(7.2, 6), layout="constrained")
  FigureCanvasAgg(figure)
  upper, lower = figure.subplots(2, 1, sharex=True)
  draw_losses(upper, *loss, evaluation_losses)
  draw_accuracies(lower, accuracies)
  for axes in (upper, lower):
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
  lower.xaxis.get_major_locator().set_params(integer=True)
  lower.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
  lower.set_xlabel("step (updates applied)")
  folder = storage_path(workdir)
  figure.suptitle(folder.name, fontsize="medium")
  path = folder / "learning_curve.png"
  with atomic_write(path) as aside:
    figure.savefig(aside, dpi=150)
  return path


def draw_losses(
  axes,
  steps: list[int],
  losses: list[float],
  evaluations: dict[str, tuple[list[int], list[float]]],
) -> None:
  axes.set_ylabel("loss")
  if not steps:
    return
  # One step's loss jumps, the more so with mixup: it stays in the background.
  axes.plot(steps, losses, color="0.6", linewidth=1, label="training")
  for i, (name, values) in enumerate(evaluations.items()):
    axes.plot(
      *values,
      **line_style(i),
      label=f"{name}: {values[1][-1]:.4g}",
    )
  axes.legend(loc="best", frameon=False)
  every = [losses, *(values for _, values in evaluations.values())]
  positive = [value for values in every for value in values if value > 0]
  if positive and max(positive) > 20 * min(positive):
    axes.set_yscale("log")
    axes.set_ylabel("loss (log scale)")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
  axes.set_title(
    f"training loss {losses[-1]:.4g} at step {steps[-1]:,}",
    loc="left",
    fontsize="medium",
  )


def line_style(i: int) -> dict[str, str | float]:
  """The look of evaluator number `i`, the same in both halves."""
  return {
    "color": COLORS[i % len(COLORS)],
    "marker": MARKERS[i % len(MARKERS)],
    "markersize": 4,
    "linewidth": 1.3,
  }


def draw_accuracies(
  axes, accuracies: dict[str, tuple[list[int], list[float]]]
) -> None:
  axes.set_ylabel("evaluation accuracy (%)")
  axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")
  if not accuracies:
    axes.set_title("no evaluation yet", loc="left", fontsize="medium")
    return
  for i, (name, (steps, shares)) in enumerate(accuracies.items()):
    axes.plot(
      steps,
      shares,
      **line_style(i),
      label=f"{name}: {shares[-1]:.1%}, best {max(shares):.1%}",
    )
  axes.legend(loc="best", frameon=False)
  last = max(steps[-1] for steps, _ in accuracies.values())
  axes.set_title(
    f"evaluation accuracy at step {last:,}", loc="left", fontsize="medium"
  )


def collect(
  rows: list[dict[str, Number]], name: str
) -> tuple[list[int], list[float]]:
  """Steps and values of the rows that have this name."""
  with_name = [row for row in rows if name in row]
  return [row["step"] for row in with_name], [row[name] for row in with_name]
