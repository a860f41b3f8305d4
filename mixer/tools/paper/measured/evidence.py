# SPDX-License-Identifier: Apache-2.0
"""What goes into a record: cells, and the run that they are of."""

from mixer.errors import UserError
from mixer.tools.paper.measured import matching
from mixer.tools.paper.measured.offered import Offered, Part
from mixer.tools.paper.numbers import Row
from mixer.tools.paper.protocols import extend
from mixer.tools.paper.results_store import CORE_DAYS

IMAGENET = "imagenet2012"
# Evaluator of the recipes -> cell.
FINETUNED = {"test": "imagenet", "real": "real"}
PRETRAINED = {"val": "imagenet", "real": "real"}


def imagenet(recipe: str) -> str:
  """Fine-tuning on ImageNet, judged by ReaL as well."""
  return extend(recipe, f"dataset={IMAGENET},extra=True")


def refuse(row: Row, found: Offered, recipe: str, problems: list[str]):
  """Raises UserError with the keys that differ, if any do."""
  if not problems:
    return
  listed = "\n  ".join(problems)
  raise UserError(
    f"{found.folder} is no run of the row {row.name}, which is measured with "
    f"{recipe}. These differ, what the row wants -> what the run has:\n"
    f"  {listed}"
  )


def accuracies(
  row: Row, found: Offered, recipe: str, part: Part, names: dict[str, str]
) -> dict:
  """The cells of the evaluators that a run had.

  Args:
    row: of the table.
    found: the run's, or the sweep's, folder.
    recipe: that has these evaluators.
    part: of `found`.
    names: of the evaluators, and the cells of their accuracies; without the
      first there is nothing to record.
  """
  cells = {}
  for name, cell in names.items():
    if mean := part.means.get(f"eval/{name}/accuracy"):
      refuse(row, found, recipe, matching.evaluator(recipe, part, name))
      cells[cell] = per_cent(**mean)
  first = next(iter(names))
  if names[first] not in cells:
    raise UserError(
      f"{found.folder} has no eval/{first}/accuracy at its last step, but "
      f"{', '.join(part.means) or 'nothing'}: run {recipe} as it is."
    )
  return cells


def per_cent(*, mean: float, deviation: float | None, runs: int) -> dict:
  """A cell of accuracies that are 0 to 1 in runs."""
  return {
    "value": round(100 * mean, 4),
    "deviation": None if deviation is None else round(100 * deviation, 4),
    "runs": runs,
  }


def cost(run: Offered) -> dict:
  """The cell of what a run has cost; none if its log does not say."""
  if not run.device_days:
    return {}
  return {CORE_DAYS: {"device_days": run.device_days}}


def to_record(found: Offered, config: dict, cells: dict, **more) -> dict:
  return {
    "folder": found.folder.resolve().name,
    "kind": found.kind,
    **found.origin,
    "cells": cells,
    **more,
    "config": config,
  }


def of_upstream(run: Offered | None) -> list[dict]:
  """What the pre-training has cost that a fine-tuned run began from."""
  if run is None or not (cells := cost(run)):
    return []
  return [to_record(run, run.parts[""].config, cells)]
