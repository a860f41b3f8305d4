# SPDX-License-Identifier: Apache-2.0
"""What was measured, beside the paper's numbers, in Markdown."""

from collections.abc import Iterator

from benchmarks.throughput.cells import (
  DTYPES,
  PASSES,
  label,
  paper_speeds,
)
from mixer.tools.paper.numbers import SPEED_RATIOS
from mixer.tools.paper.results_store import (
  Key,
  Throughput,
  best_throughputs,
  speed_ratio,
)
from mixer.tools.table import render

# Of images a second, of a pass and a dtype.
Column = tuple[str, str]


def page(device: str, rows: dict[str, list[dict]]) -> str:
  """Both tables.

  Args:
    device: its name.
    rows: pass -> rows as `results` has them.
  """
  best = {passes: best_throughputs(rows[passes]) for passes in PASSES}
  columns = [
    (passes, dtype)
    for passes in PASSES
    for dtype in DTYPES
    if any(key[-1] == dtype for key in best[passes])
  ]
  said = [
    f"Images a second, {device}; the best of the batch sizes measured, which "
    "is behind @. Paper: of a TPUv3 core, table 3.",
    _speeds(best, columns),
  ]
  if ratios := list(_ratios(best, columns)):
    said += [
      "Mixer / ViT, images a second:",
      render(("", *map(" ".join, columns), "paper"), ratios),
    ]
  return "\n\n".join(said)


def _speeds(
  best: dict[str, dict[Key, Throughput]], columns: list[Column]
) -> str:
  paper = paper_speeds()
  # In the order in which they were measured.
  models = dict.fromkeys(
    key[:2] for of_pass in best.values() for key in of_pass
  )
  head = ("model", *map(" ".join, columns), "paper")
  return render(
    head,
    (
      (
        label(*model),
        *(
          _cell(best[passes].get((*model, dtype))) for passes, dtype in columns
        ),
        f"{paper[model]:,}" if model in paper else "",
      )
      for model in models
    ),
  )


def _cell(best: Throughput | None) -> str:
  if best is None:
    return ""
  if best.images_per_second is None:
    return best.beyond[1]
  return f"{rounded(best.images_per_second)} @{best.batch}"


def rounded(speed: float) -> str:
  """Three digits, or all before the point."""
  return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


def _ratios(
  best: dict[str, dict[Key, Throughput]], columns: list[Column]
) -> Iterator[tuple[str, ...]]:
  for models, published in SPEED_RATIOS.items():
    ratios = [
      speed_ratio(best[passes], models, dtype) for passes, dtype in columns
    ]
    if any(ratios):
      mixer, vit, _ = models
      cells = (f"{ratio:.2f}" if ratio else "" for ratio in ratios)
      yield f"{mixer} / {vit}", *cells, f"{published:.2f}"
