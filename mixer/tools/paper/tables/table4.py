# SPDX-License-Identifier: Apache-2.0
"""Table 4: the recipes of pre-training as they resolve, and the paper's."""

import re

from ml_collections import ConfigDict

from mixer.data import preprocess
from mixer.tools.paper.measured.protocols import Recipe
from mixer.tools.paper.numbers import SETTINGS, TABLE_4, Settings
from mixer.tools.paper.tables.page import Block, Cell, Note, Page, Table, cells

RECIPES = {
  ("B", "i1k"): Recipe("configs/pretrain_i1k.py", "B/16"),
  ("L", "i1k"): Recipe("configs/pretrain_i1k.py", "L/16"),
  ("B", "i21k"): Recipe("configs/pretrain_i21k.py", "B/16"),
  ("L", "i21k"): Recipe("configs/pretrain_i21k.py", "L/16"),
}
_LABELS = {
  "epochs": "epochs",
  "learning_rate": "learning rate",
  "weight_decay": "weight decay",
  "randaugment": "RandAugment, magnitude",
  "mixup": "mixup, p",
  "dropout": "dropout",
  "stochastic_depth": "stochastic depth",
}
_SECTION_3 = {
  "optimizer": "optimizer",
  "b1": "  beta 1",
  "b2": "  beta 2",
  "batch": "batch",
  "resolution": "resolution, px",
  "warmup_steps": "warm-up, steps",
  "decay": "decay",
  "clip_norm": "clip at global norm",
}


def page() -> Page:
  rows = [row for row in TABLE_4 if (row.models, row.data) in RECIPES]
  ours = [resolve(RECIPES[row.models, row.data].config()) for row in rows]
  columns = [("", "")]
  for row in rows:
    group = f"Mixer-{row.models}, {row.data}"
    columns += [(group, "paper"), (group, "here")]
  own = tuple(
    (
      Cell(label),
      *(
        cell
        for row, found in zip(rows, ours, strict=True)
        for cell in _pair(_published(row, field), found[field], field)
      ),
    )
    for field, label in _LABELS.items()
  )
  common = tuple(
    (
      Cell(label),
      *(
        cell
        for found in ours
        for cell in _pair(SETTINGS[field], found[field], field)
      ),
    )
    for field, label in _SECTION_3.items()
  )
  listed = "; ".join(
    f"Mixer-{row.models} on {row.data}: {RECIPES[row.models, row.data]}"
    for row in rows
  )
  return Page(
    "Table 4: settings of pre-training (MLP-Mixer, arXiv 2105.01601)",
    (
      f"As the recipes resolve. {listed}.",
      "Every patch size of a letter has the same settings. RandAugment is of 2 "
      "operations. The paper has no S or H on i1k and i21k: what the recipes "
      "take there is said in their docstrings.",
    ),
    (
      Table(
        "",
        tuple(columns),
        (Block("Table 4", own), Block("Section 3", common)),
      ),
      _jft(),
    ),
    {"Notes": _NOTES},
  )


def _published(row: Settings, field: str) -> float | int | None:
  value = getattr(row, field)
  return value[0] if field == "epochs" else value


def resolve(config: ConfigDict) -> dict[str, float | int | str | None]:
  """What a recipe comes to, in the paper's terms."""
  randaugment = re.search(r"randaug\((\d+), *(\d+)\)", config.data.ops)
  height, _ = preprocess.output_size(config.data.ops)
  optimizer = config.optimizer
  return {
    "epochs": config.total_epochs,
    "learning_rate": optimizer.learning_rate,
    # Here it is multiplied by the schedule alone, in the paper by the learning
    # rate as well.
    "weight_decay": optimizer.weight_decay / optimizer.learning_rate,
    "randaugment": int(randaugment[2]) if randaugment else None,
    "mixup": config.mixup,
    "dropout": config.model.dropout,
    "stochastic_depth": config.model.stoch_depth,
    "optimizer": optimizer.name,
    "b1": optimizer.b1,
    "b2": optimizer.b2,
    "batch": config.batch,
    "resolution": height,
    "warmup_steps": config.schedule.warmup_steps,
    "decay": config.schedule.kind,
    "clip_norm": optimizer.clip_norm,
  }


def _pair(published, found, field: str) -> tuple[Cell, Cell]:
  """The paper's, and what is here with a verdict."""
  if isinstance(published, str):
    same = published == found
  else:
    same = found is not None and abs(found - published) <= 1e-9 * published
  mark = "wd" if field == "weight_decay" else ""
  verdict = "agrees" if same else "differs"
  return Cell(_text(published)), Cell(f"{_text(found)} {verdict}", mark)


def _text(value) -> str:
  if value is None:
    return "-"
  return value if isinstance(value, str) else f"{value:g}"


def _jft() -> Table:
  rows = []
  for row in TABLE_4:
    if row.data == "JFT-300M":
      epochs = " / ".join(map(str, row.epochs))
      texts = epochs, f"{row.learning_rate:g}", f"{row.weight_decay:g}"
      rows.append(cells(f"Mixer-{row.models}", *texts, "no recipe"))
  columns = "", "epochs", "learning rate", "weight decay", "here"
  return Table(
    "JFT-300M, which is not public: no recipe here. Beside crops and flips, "
    "nothing regularises.",
    tuple(("", name) for name in columns),
    (Block("", tuple(rows)),),
  )


_NOTES = (
  Note(
    "wd",
    "The recipes have optimizer.weight_decay=1e-4: decoupled, on kernels "
    "alone, times the schedule (0 to 1) and not times the learning rate. The "
    "paper's 0.1 is multiplied by the learning rate too: 0.1 x 0.001 = 1e-4. "
    "The table shows it in the paper's terms.",
  ),
)
