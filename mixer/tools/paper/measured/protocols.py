# SPDX-License-Identifier: Apache-2.0
"""By which recipes a row of table 2 or 3 is measured here, if it can be."""

import dataclasses
import functools
import runpy

from ml_collections import ConfigDict

from mixer.tools.paper.measured import PROJECT
from mixer.tools.paper.numbers import ROWS, Row


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A file of configs/ and its argument.

  file: relative to the project's folder.
  argument: what follows the colon, "" for none.
  """

  file: str
  argument: str = ""

  def __str__(self) -> str:
    return f"{self.file}:{self.argument}" if self.argument else self.file

  def more(self, argument: str) -> "Recipe":
    """The same with another argument behind."""
    parts = filter(None, (self.argument, argument))
    return dataclasses.replace(self, argument=",".join(parts))

  def config(self) -> ConfigDict:
    """What the recipe resolves to."""
    return _run(self.file)["get_config"](self.argument or None)

  @property
  def data_sets(self) -> tuple[str, ...]:
    return tuple(_run(self.file)["DATA_SETS"])


@functools.cache
def _run(file: str) -> dict:
  return runpy.run_path(str(PROJECT / file))


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How a row is measured here.

  pretrain: the recipe of pre-training.
  published: the name of the weights that its authors made so, "" if they
    published none.
  finetune: the recipe of fine-tuning, with dataset= to come.
  vtab: the recipe of VTAB-1k, likewise; None where the paper has no number.
  is_pretrained_on_imagenet: whose pre-training run is judged as it is.
  """

  pretrain: Recipe
  published: str
  finetune: Recipe
  vtab: Recipe | None = None
  is_pretrained_on_imagenet: bool = False


def protocol(row: Row) -> Protocol | None:
  """How a row is measured; None where it cannot be: see `obstacle`."""
  if row.data not in _WEIGHTS or not _is_trained_here(row):
    return None
  published, variant = "", row.model
  if row.model.startswith("Mixer"):
    published = f"{_WEIGHTS[row.data]}/{row.model.replace('/', '_')}"
    variant = row.model.removeprefix("Mixer-")
  finetune = Recipe("configs/finetune.py", f"model={row.model}")
  if row.resolution != 224:
    finetune = finetune.more(f"res={row.resolution}")
  if row.table == 2:
    # Appendix C: images squeezed to squares, in all five tasks.
    finetune = finetune.more("eval=resize")
  return Protocol(
    pretrain=Recipe(f"configs/pretrain_{row.data}.py", variant),
    published=published,
    finetune=finetune,
    vtab=Recipe("configs/vtab.py", f"model={row.model}") if row.vtab else None,
    is_pretrained_on_imagenet=row.data == "i1k",
  )


def obstacle(row: Row) -> str:
  """Why nothing can fill a row that has no protocol."""
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


def _is_trained_here(row: Row) -> bool:
  """Mixers, and the ViT that table 3 sets beside them."""
  return row.model.startswith("Mixer") or row.private


_WEIGHTS = {"i1k": "imagenet1k", "i21k": "imagenet21k"}
_QUOTED = {
  "table2/i21k/ViT-L_16": ("ViT", "imagenet21k/ViT-L_16"),
  "table2/i21k/BiT-R152x4": ("BiT", "bit/BiT-M-R152x4"),
}


def listing() -> str:
  """The names of all rows, and what no run can fill."""
  lines = ["Rows that a run or a sweep here can fill:"]
  for row in ROWS.values():
    if how := protocol(row):
      origins = filter(None, (how.published, f"a run of {how.pretrain}"))
      lines.append(f"  {row.name:28} from {' or '.join(origins)}")
  lines.append("All others, quoted or on data that are not public:")
  lines += [f"  {name}" for name, row in ROWS.items() if not protocol(row)]
  return "\n".join(lines)
