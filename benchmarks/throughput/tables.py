# SPDX-License-Identifier: Apache-2.0
"""What was measured, beside the paper's numbers, in Markdown."""

from collections.abc import Iterable

from benchmarks.throughput.cells import (
  DTYPES,
  PASSES,
  Model,
  label,
  paper_speeds,
)
from mixer.paper.numbers import SPEED_RATIOS
from mixer.table import render

# Of images a second, of a pass and a dtype.
Column = tuple[str, str]


def page(device: str, rows: dict[str, list[dict]]) -> str:
  """Both tables.

  Args:
    device: its name.
    rows: pass -> rows as `results` has them.
  """
  columns = [
    (passes, dtype)
    for passes in PASSES
    for dtype in DTYPES
    if any(row["dtype"] == dtype for row in rows[passes])
  ]
  best = {column: best_of(rows[column[0]], column[1]) for column in columns}
  speeds = _speeds(best, rows)
  said = [
    f"Images a second, {device}; the best of the batch sizes measured, which "
    "is behind @. Paper: of a TPUv3 core, table 3.",
    speeds,
  ]
  if ratios := list(_ratios(best)):
    said += [
      "Mixer / ViT, images a second:",
      render(("", *map(" ".join, columns), "paper"), ratios),
    ]
  return "\n\n".join(said)


def best_of(rows: Iterable[dict], dtype: str) -> dict[Model, dict]:
  """The fastest row of each model; one without a number if it has no other."""
  best = {}
  for row in rows:
    key = row["model"], row["image_size"]
    speed = row["images_per_second"] or 0
    if row["dtype"] == dtype and (
      key not in best or speed > (best[key]["images_per_second"] or 0)
    ):
      best[key] = row
  return best


def _speeds(best: dict[Column, dict[Model, dict]], rows) -> str:
  paper = paper_speeds()
  # In the order in which they were measured.
  models = dict.fromkeys(
    (row["model"], row["image_size"])
    for of_pass in rows.values()
    for row in of_pass
  )
  head = ("model", *map(" ".join, best), "paper")
  return render(
    head,
    (
      (
        label(*model),
        *(_cell(found.get(model)) for found in best.values()),
        f"{paper[model]:,}" if model in paper else "",
      )
      for model in models
    ),
  )


def _cell(row: dict | None) -> str:
  if row is None:
    return ""
  if row["images_per_second"] is None:
    return row["why"]
  return f"{rounded(row['images_per_second'])} @{row['batch']}"


def rounded(speed: float) -> str:
  """Three digits, or all before the point."""
  return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


def _ratios(best: dict[Column, dict[Model, dict]]):
  for pair in SPEED_RATIOS:
    cells = []
    for found in best.values():
      two = [found.get((m, pair.resolution)) for m in (pair.mixer, pair.vit)]
      speeds = [row and row["images_per_second"] for row in two]
      cells.append(f"{speeds[0] / speeds[1]:.2f}" if all(speeds) else "")
    if any(cells):
      yield f"{pair.mixer} / {pair.vit}", *cells, f"{pair.ratio:.2f}"
