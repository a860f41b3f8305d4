# SPDX-License-Identifier: Apache-2.0
"""Recipes by which a row of table 2 or 3 is measured here, and how to run them.

A recipe is named as --config takes it, "configs/FILE.py:ARGUMENT".
"""

import dataclasses
import functools
import runpy

from ml_collections import ConfigDict

from mixer.tools.paper.numbers import AVERAGE_5, ROWS, Row
from mixer.tools.paper.results_store import (
  CORE_DAYS,
  PROJECT,
  THROUGHPUT_COMMAND,
)


def load_recipe(recipe: str) -> ConfigDict:
  """Returns the config of a recipe; its file is relative to the project."""
  file, _, argument = recipe.partition(":")
  return _run_file(file)["get_config"](argument or None)


def extend(recipe: str, argument: str) -> str:
  """Appends to a recipe's argument."""
  return f"{recipe}{',' if ':' in recipe else ':'}{argument}"


def data_sets(recipe: str) -> tuple[str, ...]:
  """Returns the data sets that a recipe of fine-tuning takes."""
  return tuple(_run_file(recipe.partition(":")[0])["DATA_SETS"])


@functools.cache
def _run_file(file: str) -> dict:
  return runpy.run_path(str(PROJECT / file))


@dataclasses.dataclass(frozen=True)
class Protocol:
  """Recipes and weights by which a row is measured here."""

  pretrain: str  # recipe
  published: str  # name of the weights that its authors published, "" for none
  finetune: str  # recipe; takes dataset=NAME
  vtab: str | None = None  # recipe, likewise; None without a number to compare
  is_pretrained_on_imagenet: bool = False  # evaluated without fine-tuning


def find_protocol(row: Row) -> Protocol | None:
  """Returns a row's protocol; None where there is none, see `obstacle`."""
  # Trained here: Mixers, and the ViT that table 3 compares them with.
  is_ours = row.model.startswith("Mixer") or row.private
  if row.data not in _WEIGHTS or not is_ours:
    return None
  published, variant = "", row.model
  if row.model.startswith("Mixer"):
    published = f"{_WEIGHTS[row.data]}/{row.model.replace('/', '_')}"
    variant = row.model.removeprefix("Mixer-")
  finetune = f"configs/finetune.py:model={row.model}"
  if row.resolution != 224:
    finetune = extend(finetune, f"res={row.resolution}")
  if row.table == 2:
    # Appendix C: images squeezed to squares, in all five tasks.
    finetune = extend(finetune, "eval=resize")
  return Protocol(
    pretrain=f"configs/pretrain_{row.data}.py:{variant}",
    published=published,
    finetune=finetune,
    vtab=f"configs/vtab.py:model={row.model}" if row.vtab else None,
    is_pretrained_on_imagenet=row.data == "i1k",
  )


def obstacle(row: Row) -> str:
  """Explains why nothing can fill a row that has no protocol."""
  if row.data == "JFT-300M":
    return (
      "Nothing can: JFT-300M is not public, and neither are weights that were "
      "trained on it."
    )
  if row.name in _QUOTED:
    paper, nearest = _QUOTED[row.name]
    return (
      f"Nothing here: quoted from the {paper} paper, by its own fine-tuning. "
      f"Nearest is {nearest}."
    )
  return (
    "Nothing here: quoted from the model's own paper; this project has no such "
    "model."
  )


_WEIGHTS = {"i1k": "imagenet1k", "i21k": "imagenet21k"}
_QUOTED = {
  "table2/i21k/ViT-L_16": ("ViT", "imagenet21k/ViT-L_16"),
  "table2/i21k/BiT-R152x4": ("BiT", "bit/BiT-M-R152x4"),
}


def list_rows() -> str:
  """Lists the names of all rows: those that a run can fill, then the others."""
  lines = ["Rows that a run or a sweep here can fill:"]
  for row in ROWS.values():
    if protocol := find_protocol(row):
      origins = [protocol.published, f"a run of {protocol.pretrain}"]
      lines.append(f"  {row.name:28} from {' or '.join(filter(None, origins))}")
  lines.append("All others, quoted or on data that are not public:")
  lines += [f"  {name}" for name, row in ROWS.items() if not find_protocol(row)]
  return "\n".join(lines)


# Footnotes to empty cells.

_CORES = 128  # of a TPU v3-128, to make hours of core-days
# Data of each recipe for the columns of core-days and ImNet.
_REAL = "imagenet2012, imagenet2012_real and imagenet_v2"


def explain_empty(row: Row, column: str) -> tuple[str, ...]:
  """Returns a text and commands that say how to fill an empty cell.

  column: "imagenet", "real", "average5", "vtab", "images_per_second" or
    CORE_DAYS; the paper has a number there.
  """
  if column == "images_per_second":
    return _explain_throughput(row)
  protocol = find_protocol(row)
  if protocol is None:
    return (obstacle(row),)
  published = protocol.published
  is_evaluated = (
    column in ("imagenet", "real") and protocol.is_pretrained_on_imagenet
  )
  if is_evaluated and published:
    text = (
      f"ImNet and ReaL: {published} as published, in minutes on one GPU; or "
      f"your own pre-training, as for the core-days. Data: {_REAL}."
    )
    command = f"python eval.py --config=configs/evaluate.py:{published}"
  elif is_evaluated or column == CORE_DAYS:
    text, command = _explain_pretraining(row, protocol)
  else:
    text, command = _explain_finetuning(row, protocol, column)
  record = f"python -m mixer paper record {row.name}"
  return text, f"{command} --workdir=RUN", f"{record} --workdir=RUN"


def _explain_pretraining(row: Row, protocol: Protocol) -> tuple[str, str]:
  thousand = row.thousand_core_days
  hours = 1000 * thousand * 24
  cost = (
    f"The paper's cost: {thousand:.2f}k TPUv3 core-days, that is {hours:,.0f} "
    f"core-hours, {hours / _CORES:.3g} h on {_CORES} cores"
    f"{' (extrapolated)' if row.extrapolated else ''}."
  )
  recipe, cells, data = protocol.pretrain, "Core-days", "imagenet21k"
  if protocol.is_pretrained_on_imagenet:
    recipe = extend(recipe, "extra=True")
    cells, data = "Core-days, ImNet, ReaL", _REAL
  if row.private:
    cost += (
      " Its settings are big_vision's: those of the runs that the paper "
      "reports were not published."
    )
  return (
    f"{cells}: {row.model} pre-trained. Data: {data}. {cost}",
    f"python train.py --config={recipe}",
  )


def _explain_finetuning(
  row: Row, protocol: Protocol, column: str
) -> tuple[str, str]:
  origin = protocol.published or f"the folder of a run of {protocol.pretrain}"
  squeezed = "evaluated on squeezed images, " if row.table == 2 else ""
  place = f", {row.resolution} px, {squeezed}from {origin}"
  if column == "vtab":
    recipe = f"{protocol.vtab} --datasets=all"
    cells, tasks, place = "VTAB", "the 19 tasks of VTAB-1k", ""
    data = "those that configs/vtab.py names"
  elif column == "average5":
    recipe = f"{protocol.finetune} --datasets=all"
    cells, tasks, data = "Avg 5", "five data sets", ", ".join(AVERAGE_5)
  else:
    recipe = extend(protocol.finetune, "dataset=imagenet2012,extra=True")
    cells, tasks, data = "ImNet and ReaL", "ImageNet", _REAL
  init = protocol.published or "PRETRAINED"
  return (
    f"{cells}: {row.model} fine-tuned on {tasks}{place}. Data: {data}. The "
    "paper does not give its hours.",
    f"python -m mixer sweep --config={recipe} --config.init={init}",
  )


def _explain_throughput(row: Row) -> tuple[str, ...]:
  if row.model.partition("-")[0] not in ("Mixer", "ViT", "BiT"):
    return (obstacle(row),)
  if row.resolution is None:
    return (
      "Nothing here: the paper does not say at which resolution this "
      "throughput was measured.",
    )
  return (
    "Throughput: images/s of this model, best over batch sizes, on any device. "
    "No data; minutes.",
    THROUGHPUT_COMMAND,
  )
