# SPDX-License-Identifier: Apache-2.0
"""Tables 1 and 4: sizes and settings as this project's code has them."""

import math
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from mixer import models
from mixer.data import preprocess
from mixer.jax_setup import device_count
from mixer.models.flops import abstract_params, count_params
from mixer.tools.paper.numbers import SETTINGS, SIZES, TABLE_1, TABLE_4
from mixer.tools.paper.protocols import load_recipe
from mixer.tools.paper.render import Cell, Page, Table

_PX = 224


def table1() -> Page:
  """Returns table 1; sizes that differ from the paper's are marked."""
  device_count()
  ours = {name: measure(name) for name in TABLE_1}
  rows, differing = [], {}
  for label in SIZES:
    row = [label]
    for name, published in TABLE_1.items():
      size = ours[name][label]
      row.append(str(size))
      if size != published[label]:
        row[-1] += f" (paper {published[label]})"
        differing[name] = True
    rows.append(row)
  counts = (f"{size['parameters']:,}" for size in ours.values())
  rows.insert(-1, ["parameters", *counts])
  verdict = "All sizes agree with the paper, and so do the rounded parameters."
  if differing:
    verdict = f"These differ from the paper: {', '.join(differing)}."
  heads = ["", *(name.removeprefix("Mixer-") for name in TABLE_1)]
  return Page(
    "Table 1: specifications of Mixer (MLP-Mixer, arXiv 2105.01601)",
    [
      f"As mixer.models.create makes them for images of {_PX} px, without the "
      f"head; counted in the shapes of all parameters. {verdict}"
    ],
    [_plain_table(heads, rows)],
  )


def _plain_table(
  heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str = ""
) -> Table:
  """Returns a table without groups, headings and footnotes."""
  cells = [[Cell(text) for text in row] for row in rows]
  return Table([("", head) for head in heads], cells, caption)


def measure(name: str) -> dict[str, int]:
  """Reads a variant's sizes off its parameters and counts them."""
  params = abstract_params(models.create(name), (_PX, _PX))
  block = params["MixerBlock_0"]
  patch, _, _, hidden = params["stem"]["kernel"].shape
  tokens, tokens_mlp = block["token_mixing"]["Dense_0"]["kernel"].shape
  _, channels_mlp = block["channel_mixing"]["Dense_0"]["kernel"].shape
  count = count_params(params)
  return {
    "layers": sum(key.startswith("MixerBlock_") for key in params),
    "patch, px": patch,
    "hidden size C": hidden,
    "sequence length S": tokens,
    "MLP dimension D_C": channels_mlp,
    "MLP dimension D_S": tokens_mlp,
    "millions": round(count / 1e6),
    "parameters": count,
  }


RECIPES = {
  (letter, data): f"configs/pretrain_{data}.py:{letter}/16"
  for data in ("i1k", "i21k")
  for letter in ("B", "L")
}
_WEIGHT_DECAY = (
  "The recipes have optimizer.weight_decay=1e-4: decoupled, only on "
  "kernels, times the schedule (0 to 1) and not times the learning rate. The "
  "paper's 0.1 is multiplied by the learning rate too: 0.1 x 0.001 = 1e-4. "
  "The table shows it in the paper's terms."
)


def table4() -> Page:
  """Returns table 4 and section 3; each setting agrees or differs."""
  ours = {
    key: read_settings(load_recipe(recipe)) for key, recipe in RECIPES.items()
  }
  columns = [("", "")]
  for letter, data in RECIPES:
    columns += [(f"Mixer-{letter}, {data}", name) for name in ("paper", "here")]
  rows = []
  sections = {"Table 4": TABLE_4["B", "i1k"], "Section 3": SETTINGS}
  for heading, labels in sections.items():
    rows.append(heading)
    for label in labels:
      rows.append([Cell(label)])
      for key in RECIPES:
        published = TABLE_4[key] | SETTINGS
        rows[-1] += _pair(published[label], ours[key][label], label)
  listed = "; ".join(
    f"Mixer-{letter} on {data}: {recipe}"
    for (letter, data), recipe in RECIPES.items()
  )
  return Page(
    "Table 4: settings of pre-training (MLP-Mixer, arXiv 2105.01601)",
    [
      f"As the recipes resolve. {listed}.",
      "Every patch size of a letter has the same settings. RandAugment is of 2 "
      "operations. The paper has no S or H on i1k and i21k: the recipes' "
      "docstrings explain their settings.",
    ],
    [Table(columns, rows), _jft()],
    {"Notes": [("wd", _WEIGHT_DECAY, ())]},
  )


def read_settings(config: ConfigDict) -> dict[str, float | int | str | None]:
  """Expresses a recipe's settings in the paper's terms."""
  randaugment = re.search(r"randaug\((\d+), *(\d+)\)", config.data.ops)
  height, _ = preprocess.output_size(config.data.ops)
  optimizer = config.optimizer
  return {
    "epochs": config.total_epochs,
    "learning rate": optimizer.learning_rate,
    # The schedule multiplies it here; in the paper the learning rate does too.
    "weight decay": optimizer.weight_decay / optimizer.learning_rate,
    "RandAugment, magnitude": int(randaugment[2]) if randaugment else None,
    "mixup, p": config.mixup,
    "dropout": config.model.dropout,
    "stochastic depth": config.model.stoch_depth,
    "optimizer": optimizer.name,
    "beta 1": optimizer.b1,
    "beta 2": optimizer.b2,
    "batch": config.batch,
    "resolution, px": height,
    "warm-up, steps": config.schedule.warmup_steps,
    "decay": config.schedule.kind,
    "clip at global norm": optimizer.clip_norm,
  }


def _pair(published, ours, label: str) -> list[Cell]:
  """Returns the paper's cell, and ours with a verdict."""
  is_same = published == ours
  if isinstance(published, float) and ours is not None:
    is_same = math.isclose(published, ours)
  mark = "wd" if label == "weight decay" else ""
  verdict = "agrees" if is_same else "differs"
  return [Cell(_text(published)), Cell(f"{_text(ours)} {verdict}", mark)]


def _text(value) -> str:
  if value is None:
    return "-"
  return value if isinstance(value, str) else f"{value:g}"


def _jft() -> Table:
  labels = "epochs", "learning rate", "weight decay"
  rows = [
    [f"Mixer-{letter}", *(_text(settings[label]) for label in labels)]
    for (letter, data), settings in TABLE_4.items()
    if data == "JFT-300M"
  ]
  return _plain_table(
    ["", *labels],
    rows,
    "JFT-300M, which is not public: configs/pretrain_large.py takes these "
    "settings to another large data set. Besides crops and flips there is no "
    "regularisation.",
  )
