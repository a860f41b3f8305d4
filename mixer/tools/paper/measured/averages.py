# SPDX-License-Identifier: Apache-2.0
"""Records of sweeps on several data sets: "Avg 5" and VTAB-1k."""

import statistics
from collections.abc import Sequence

from mixer.errors import UserError
from mixer.tools.paper.measured import matching
from mixer.tools.paper.measured.evidence import (
  FINETUNED,
  IMAGENET,
  accuracies,
  imagenet,
  of_upstream,
  per_cent,
  refuse,
  to_record,
)
from mixer.tools.paper.measured.offered import Offered, Part
from mixer.tools.paper.numbers import Row
from mixer.tools.paper.protocols import Protocol, extend
from mixer.tools.paper.protocols import data_sets as sets_of


def of_several(row: Row, how: Protocol, found: Offered) -> list[dict]:
  """The record of a mean over data sets, and of ImageNet's part of it.

  Raises:
    UserError: data sets are lacking, or a sweep is not the recipe's.
  """
  is_vtab = not {*found.parts, *found.without} <= set(sets_of(how.finetune))
  recipe = how.vtab if is_vtab else how.finetune
  cell, title = ("vtab", "VTAB-1k") if is_vtab else ("average5", "Avg 5")
  if recipe is None:
    raise UserError(
      f"The paper has no VTAB number of the row {row.name} to set "
      f"{found.folder} beside."
    )
  if lacking := [x for x in sets_of(recipe) if x not in found.parts]:
    raise UserError(
      f"{found.folder} lacks {', '.join(lacking)}: {title} is the mean over "
      f"{len(sets_of(recipe))} data sets. Prepare them, and give the sweep's "
      "command again, with --datasets=all."
    )
  problems, source, run = [], {}, None
  for name, part in found.parts.items():
    own = extend(recipe, f"dataset={name}")
    began, source, run = matching.upstream(how, part)
    problems += began
    problems += [
      f"{name}: {problem}"
      for problem in matching.finetuning(own, part, is_sweep=True)
      + matching.evaluator(own, part, "test")
    ]
  refuse(row, found, recipe, list(dict.fromkeys(problems)))
  cells = {cell: _mean(list(found.parts.values()))}
  if IMAGENET in found.parts and not (is_vtab or how.is_pretrained_on_imagenet):
    # Models of ImageNet are judged as they are, before any fine-tuning.
    part = found.parts[IMAGENET]
    cells = accuracies(row, found, imagenet(recipe), part, FINETUNED) | cells
  common = _shared([part.config for part in found.parts.values()])
  data_sets = {
    name: {
      **per_cent(**_reported(part)),
      "learning_rate": part.learning_rate,
      "config": _without(part.config, common),
    }
    for name, part in found.parts.items()
  }
  record = to_record(found, common, cells, upstream=source, data_sets=data_sets)
  return [record, *of_upstream(run)]


def _reported(part: Part) -> dict:
  """The accuracy that the sweep is about."""
  return part.means[part.config["sweep"]["report"]]


def _mean(parts: Sequence[Part]) -> dict:
  """Over the data sets; its deviation is that of the seeds' own means."""
  seeds = set.intersection(*(set(part.by_seed) for part in parts))
  by_seed = [
    [part.by_seed[seed].get(part.config["sweep"]["report"]) for part in parts]
    for seed in sorted(seeds)
  ]
  means = [statistics.fmean(each) for each in by_seed if None not in each]
  return per_cent(
    mean=statistics.fmean(_reported(part)["mean"] for part in parts),
    deviation=statistics.stdev(means) if len(means) > 1 else None,
    runs=min(_reported(part)["runs"] for part in parts),
  )


def _shared(configs: Sequence[dict]) -> dict:
  """What all configs have in common."""
  first, *others = configs
  result = {}
  for key, value in first.items():
    if all(key in other and other[key] == value for other in others):
      result[key] = value
    elif all(isinstance(config.get(key), dict) for config in configs):
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
