# SPDX-License-Identifier: Apache-2.0
"""The recipes by which a row of table 2 or 3 is measured here.

A recipe is named as --config takes it, "configs/FILE.py:ARGUMENT".
"""

import dataclasses
import functools
import runpy

from ml_collections import ConfigDict

from mixer.tools.paper.numbers import ROWS, Row
from mixer.tools.paper.results_store import PROJECT


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
  """Recipes and weights by which a row is measured here.

  pretrain: recipe of pre-training.
  published: name of the weights that its authors published, "" for none.
  finetune: recipe of fine-tuning; takes dataset=NAME.
  vtab: recipe of VTAB-1k, likewise; None where the paper has no number.
  is_pretrained_on_imagenet: the pre-trained model itself is evaluated.
  """

  pretrain: str
  published: str
  finetune: str
  vtab: str | None = None
  is_pretrained_on_imagenet: bool = False


def protocol(row: Row) -> Protocol | None:
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
    if how := protocol(row):
      origins = filter(None, (how.published, f"a run of {how.pretrain}"))
      lines.append(f"  {row.name:28} from {' or '.join(origins)}")
  lines.append("All others, quoted or on data that are not public:")
  lines += [f"  {name}" for name, row in ROWS.items() if not protocol(row)]
  return "\n".join(lines)
