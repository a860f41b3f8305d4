# SPDX-License-Identifier: Apache-2.0
"""From a run's or a sweep's folder to the measured numbers of a row."""

from pathlib import Path

from mixer.errors import UserError
from mixer.tools.paper import results_store as records
from mixer.tools.paper.measured import matching, offered
from mixer.tools.paper.measured.averages import of_several
from mixer.tools.paper.measured.evidence import (
  FINETUNED,
  PRETRAINED,
  accuracies,
  cost,
  imagenet,
  of_upstream,
  refuse,
  to_record,
)
from mixer.tools.paper.measured.offered import Offered, Part
from mixer.tools.paper.numbers import Row
from mixer.tools.paper.protocols import Protocol, extend, obstacle, protocol

_TITLES = {
  "imagenet": "ImNet",
  "real": "ReaL",
  "average5": "Avg 5",
  "vtab": "VTAB-1k",
  records.CORE_DAYS: "cost",
}


def record(
  row: Row, workdir: str, results: Path, how: Protocol | None = None
) -> str:
  """Writes what a folder has measured of a row to results/tables/ROW.json.

  Args:
    row: of table 2 or 3.
    workdir: folder of a finished run or sweep.
    results: the folder of results.
    how: the row's protocol, if not the project's own.

  Returns:
    What was written.

  Raises:
    UserError: the folder has no results, or is of something else.
  """
  how = how or protocol(row)
  if how is None:
    raise UserError(f"No run fills the row {row.name}. {obstacle(row)}")
  new = collect(row, how, offered.read(workdir))
  file = records.add_records(results, row, new)
  lines = [f"{file}:"]
  for each in new:
    for name, cell in each["cells"].items():
      lines.append(f"  {_TITLES[name]:8} {_text(cell)}, from {each['folder']}")
  return "\n".join(lines)


def _text(cell: dict) -> str:
  if days := cell.get("device_days"):
    return " + ".join(
      f"{x:.3g} device-days on {key}" for key, x in days.items()
    )
  if cell["deviation"] is None:
    return f"{cell['value']:.2f} %, {cell['runs']} run"
  return f"{cell['value']:.2f} ± {cell['deviation']:.2f} %, {cell['runs']} runs"


def collect(row: Row, how: Protocol, found: Offered) -> list[dict]:
  """The records that a folder gives, of it and of where it began.

  Raises:
    UserError: it is no run of the row; lists the keys that differ.
  """
  if found.kind == offered.SWEEPS:
    return of_several(row, how, found)
  [part] = found.parts.values()
  if found.kind == offered.EVALUATION:
    return [_of_published(row, how, found, part)]
  if found.kind == offered.RUN and not part.config["init"]:
    return [_of_pretraining(row, how, found, part)]
  recipe = imagenet(how.finetune)
  problems = matching.finetuning(
    recipe, part, is_sweep=found.kind == offered.SWEEP
  )
  began, source, run = matching.upstream(how, part)
  refuse(row, found, recipe, began + problems)
  cells = accuracies(row, found, recipe, part, FINETUNED)
  record = to_record(
    found,
    part.config,
    cells,
    upstream=source,
    learning_rate=part.learning_rate,
  )
  return [record, *of_upstream(run)]


def _of_published(row: Row, how: Protocol, found: Offered, part: Part) -> dict:
  """Accuracies of the weights that the row's authors published."""
  if not how.is_pretrained_on_imagenet:
    raise UserError(
      f"{found.folder} is an evaluation of weights as they are, and the row "
      f"{row.name} is fine-tuned: offer a sweep of {imagenet(how.finetune)}."
    )
  recipe = extend(how.pretrain, "extra=True")
  problems, weights = matching.published(how, part, found.sha256)
  refuse(row, found, recipe, problems)
  cells = accuracies(row, found, recipe, part, PRETRAINED)
  return to_record(found, part.config, cells, weights=weights)


def _of_pretraining(
  row: Row, how: Protocol, found: Offered, part: Part
) -> dict:
  """Its cost; where it is on ImageNet, its accuracies."""
  recipe = how.pretrain
  refuse(row, found, recipe, matching.pretraining(recipe, part))
  cells = cost(found)
  if how.is_pretrained_on_imagenet:
    extra = extend(recipe, "extra=True")
    cells |= accuracies(row, found, extra, part, PRETRAINED)
  return to_record(found, part.config, cells)
