# SPDX-License-Identifier: Apache-2.0
"""From a run's or a sweep's folder to the measured numbers of a row."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from mixer.errors import UserError
from mixer.paper import matching, offered, records
from mixer.paper.numbers import ROWS, Row
from mixer.paper.offered import Offered, Part
from mixer.paper.protocols import Protocol, Recipe, obstacle, protocol

IMAGENET = "imagenet2012"
TITLES = {
  "imagenet": "ImNet",
  "real": "ReaL",
  "average5": "Avg 5",
  "vtab": "VTAB-1k",
  records.CORE_DAYS: "core-days",
}
# Evaluator of the recipes -> cell.
_FINETUNED = {"test": "imagenet", "real": "real"}
_PRETRAINED = {"val": "imagenet", "real": "real"}


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
  file = records.add(results, row, new)
  lines = [f"{file}:"]
  for each in new:
    for name, cell in each["cells"].items():
      lines.append(f"  {TITLES[name]:9} {_text(cell)}, from {each['folder']}")
  return "\n".join(lines)


def _text(cell: dict) -> str:
  if days := cell.get("device_days"):
    return " + ".join(
      f"{x:.3g} device-days on {kind}" for kind, x in days.items()
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
    return _of_several(row, how, found)
  [part] = found.parts.values()
  if found.kind == offered.RUN and not part.config["init"]:
    return [_of_pretraining(row, how, found, part)]
  recipe = imagenet(how.finetune)
  is_sweep = found.kind == offered.SWEEP
  problems = matching.finetuning(recipe, part, is_sweep=is_sweep)
  began, source, run = matching.upstream(how, part)
  refuse(row, found, recipe, began + problems)
  cells = _accuracies(row, found, recipe, part, _FINETUNED)
  return [
    _record(found, part.config, cells, upstream=source)
    | {"learning_rate": part.learning_rate},
    *_of_upstream(run),
  ]


def imagenet(recipe: Recipe) -> Recipe:
  """Fine-tuning on ImageNet, judged by ReaL as well."""
  return recipe.more(f"dataset={IMAGENET},extra=True")


def _of_pretraining(
  row: Row, how: Protocol, found: Offered, part: Part
) -> dict:
  """Its cost; where it is on ImageNet, its accuracies."""
  recipe = how.pretrain
  refuse(row, found, recipe, matching.pretraining(recipe, part))
  cells = _cost(found)
  if how.is_pretrained_on_imagenet:
    extra = recipe.more("extra=True")
    cells |= _accuracies(row, found, extra, part, _PRETRAINED)
  return _record(found, part.config, cells)


def _of_upstream(run: Offered | None) -> list[dict]:
  """What the pre-training has cost that a fine-tuned run began from."""
  if run is None or not (cells := _cost(run)):
    return []
  return [_record(run, run.parts[""].config, cells)]


def _cost(run: Offered) -> dict:
  if not run.device_days:
    return {}
  return {records.CORE_DAYS: {"device_days": run.device_days}}


def _accuracies(
  row: Row, found: Offered, recipe: Recipe, part: Part, names: dict[str, str]
) -> dict:
  """The cells of the evaluators that the run had."""
  cells = {}
  for name, cell in names.items():
    if mean := part.means.get(f"eval/{name}/accuracy"):
      refuse(row, found, recipe, matching.evaluator(recipe, part, name))
      cells[cell] = _per_cent(**mean)
  if "imagenet" not in cells:
    wanted, _ = names
    raise UserError(
      f"{found.folder} has no eval/{wanted}/accuracy at its last step, but "
      f"{', '.join(part.means) or 'nothing'}: run {recipe} as it is."
    )
  return cells


def _of_several(row: Row, how: Protocol, found: Offered) -> list[dict]:
  """The mean over the five data sets, or over VTAB's."""
  names = {*found.parts, *found.without}
  is_vtab = not names <= set(how.finetune.data_sets)
  recipe = how.vtab if is_vtab else how.finetune
  cell = "vtab" if is_vtab else "average5"
  if recipe is None:
    raise UserError(
      f"The paper has no VTAB number of the row {row.name} to set "
      f"{found.folder} beside."
    )
  if lacking := [x for x in recipe.data_sets if x not in found.parts]:
    raise UserError(
      f"{found.folder} lacks {', '.join(lacking)}: {TITLES[cell]} is the mean "
      f"over {len(recipe.data_sets)} data sets. Prepare them, and give the "
      "sweep's command again, with --datasets=all."
    )
  problems, source, run = [], {}, None
  for name, part in found.parts.items():
    own = recipe.more(f"dataset={name}")
    began, source, run = matching.upstream(how, part)
    problems += began
    problems += [
      f"{name}: {problem}"
      for problem in matching.finetuning(own, part, is_sweep=True)
      + matching.evaluator(own, part, "test")
    ]
  refuse(row, found, recipe, list(dict.fromkeys(problems)))
  cells = {cell: _mean(list(found.parts.values()))}
  if IMAGENET in found.parts and not is_vtab:
    part = found.parts[IMAGENET]
    own = imagenet(recipe)
    cells = _accuracies(row, found, own, part, _FINETUNED) | cells
  configs = {name: part.config for name, part in found.parts.items()}
  common = _shared(list(configs.values()))
  return [
    _record(found, common, cells, upstream=source)
    | {
      "data_sets": {
        name: {
          **_per_cent(**_reported(part)),
          "learning_rate": part.learning_rate,
          "config": _without(part.config, common),
        }
        for name, part in found.parts.items()
      }
    },
    *_of_upstream(run),
  ]


def _reported(part: Part) -> dict:
  """The accuracy that the sweep is about."""
  return part.means[part.config["sweep"]["report"]]


def _mean(parts: Sequence[Part]) -> dict:
  """Of all data sets; its deviation is that of the seeds' own means."""
  seeds = set.intersection(*(set(part.by_seed) for part in parts))
  by_seed = [
    statistics.fmean(
      part.by_seed[seed][part.config["sweep"]["report"]] for part in parts
    )
    for seed in sorted(seeds)
    if all(part.by_seed[seed] for part in parts)
  ]
  return _per_cent(
    mean=statistics.fmean(_reported(part)["mean"] for part in parts),
    deviation=statistics.stdev(by_seed) if len(by_seed) > 1 else None,
    runs=min(_reported(part)["runs"] for part in parts),
  )


def _per_cent(*, mean: float, deviation: float | None, runs: int) -> dict:
  return {
    "value": round(100 * mean, 4),
    "deviation": None if deviation is None else round(100 * deviation, 4),
    "runs": runs,
  }


def _record(found: Offered, config: dict, cells: dict, **more) -> dict:
  return {
    "folder": found.folder.resolve().name,
    "kind": found.kind,
    **found.origin,
    "cells": cells,
    **more,
    "config": config,
  }


def _shared(configs: Sequence[dict]) -> dict:
  """What all configs have in common."""
  first, *others = configs
  result = {}
  for key, value in first.items():
    if all(key in other and other[key] == value for other in others):
      result[key] = value
    elif all(isinstance(other.get(key), dict) for other in configs):
      result[key] = _shared([config[key] for config in configs])
  return result


def _without(config: dict, common: dict) -> dict:
  """What a config has beyond what all have in common."""
  result = {}
  for key, value in config.items():
    if key not in common:
      result[key] = value
    elif value != common[key]:
      result[key] = _without(value, common[key])
  return result


def refuse(row: Row, found: Offered, recipe: Recipe, problems: list[str]):
  """Raises UserError with the keys that differ, if any do."""
  if not problems:
    return
  listed = "\n  ".join(problems)
  raise UserError(
    f"{found.folder} is no run of the row {row.name}, which is measured with "
    f"{recipe}. These differ, what the row wants -> what the run has:\n"
    f"  {listed}"
  )


def listing() -> str:
  """The names of all rows, and what no run can fill."""
  lines = ["Rows that a run or a sweep here can fill:"]
  for row in ROWS.values():
    if how := protocol(row):
      lines.append(f"  {row.name:28} from {how.published} or {how.pretrain}")
  lines.append("All others, quoted or on data that are not public:")
  lines += [f"  {name}" for name, row in ROWS.items() if not protocol(row)]
  return "\n".join(lines)
