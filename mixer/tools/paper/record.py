# SPDX-License-Identifier: Apache-2.0
"""Records the results of a run, a sweep or an evaluation for a table's row.

The config is compared with that of the row's recipe. A fine-tuned run must
also start from the row's pre-training: from the published weights, or from the
folder of a run by the row's recipe of pre-training. Differences are sentences
"key: the recipe's value -> the run's".
"""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from mixer.config_check import RESUME_SAFE_KEYS, diff_configs, resolve, to_dict
from mixer.errors import UserError
from mixer.storage import storage_errors, storage_path
from mixer.tools.paper.numbers import ROWS, Row
from mixer.tools.paper.protocols import (
  Protocol,
  data_sets,
  extend,
  find_protocol,
  load_recipe,
  obstacle,
)
from mixer.tools.paper.results_store import (
  CORE_DAYS,
  EVALUATION,
  PROJECT,
  RUN,
  SWEEP,
  SWEEPS,
  UNCHECKED,
  add_records,
)
from mixer.tools.paper.run_reader import (
  Run,
  RunResult,
  read_results,
  results_of,
)
from mixer.weights.zoo import REGISTRY

_IMAGENET = "imagenet2012"
# Evaluators of the recipes -> cells; nothing is recorded without ImageNet's.
_FINETUNED = {"test": "imagenet", "real": "real"}
_PRETRAINED = {"val": "imagenet", "real": "real"}
# Keys that may differ from the recipe's. TPUs round float32 products to
# bfloat16 as well, as in the authors' runs: model.dtype is the user's choice.
_FREE_KEYS = (
  *(key for key in RESUME_SAFE_KEYS if key != "sweep"),
  "deterministic_operations",
  "model.dtype",
  "model.gelu",
  "seed",
  "sweep.full_examples",
  "sweep.seeds",
)
_EVALUATOR_KEYS = "type", "name", "split", "image", "label", "ops"


def record(
  row: Row, workdir: str, results: Path, protocol: Protocol | None = None
) -> str:
  """Writes the results in a folder to the row's file, results/tables/ROW.json.

  Args:
    row: of table 2 or 3.
    workdir: folder of a finished run or sweep, or of eval.py.
    results: the folder of results.
    protocol: the row's protocol, if not the project's.

  Returns:
    Text that lists the new cells.

  Raises:
    UserError: the run is of another row; lists the keys that differ.
  """
  protocol = protocol or find_protocol(row)
  if protocol is None:
    raise UserError(f"No run fills the row {row.name}. {obstacle(row)}")
  parts = read_results(workdir)
  if list(parts) == [""]:
    records = make_records(row, protocol, parts[""])
  else:
    records = _average(row, protocol, storage_path(workdir), parts)
  lines = [f"{add_records(results, row, records)}:"]
  for each in records:
    for name, cell in each["cells"].items():
      lines.append(f"  {name:9} {_text(cell)}, from {each['folder']}")
  return "\n".join(lines)


def _text(cell: dict) -> str:
  if days := cell.get("device_days"):
    return " + ".join(
      f"{x:.3g} device-days on {key}" for key, x in days.items()
    )
  if cell["deviation"] is None:
    return f"{cell['value']:.2f} %, {cell['runs']} run"
  return f"{cell['value']:.2f} ± {cell['deviation']:.2f} %, {cell['runs']} runs"


def match_row(run: Run) -> tuple[Row, dict] | None:
  """Returns the row that a run is of, and its cells; None if it is of none.

  The run may be unfinished: its newest results are taken.
  """
  # An installed package has no recipes to compare with.
  if not run.rows or not (PROJECT / "configs").is_dir():
    return None
  newest = {
    name: values[-1]
    for name in run.evaluation_names
    if (values := run.series(name)[1])
  }
  results = results_of(run, newest)
  for row in ROWS.values():
    if protocol := find_protocol(row):
      try:
        return row, make_records(row, protocol, results)[0]["cells"]
      except UserError:  # names the keys that differ
        continue
  return None


def make_records(row: Row, protocol: Protocol, run: RunResult) -> list[dict]:
  """Makes the records of a run, and of the run that it started from.

  Raises:
    UserError: it is no run of the row; lists the keys that differ.
  """
  is_evaluation, more, upstream = run.kind == EVALUATION, {}, []
  if is_evaluation and not protocol.is_pretrained_on_imagenet:
    raise UserError(
      f"{run.folder} is an evaluation of weights as they are, and the row "
      f"{row.name} is fine-tuned: offer a sweep of "
      f"{_on_imagenet(protocol.finetune)}."
    )
  if is_evaluation or (run.kind == RUN and not run.config["init"]):
    recipe, evaluators = protocol.pretrain, {}
    if protocol.is_pretrained_on_imagenet:
      recipe, evaluators = extend(recipe, "extra=True"), _PRETRAINED
    cells, problems = _cost(run), []
    if is_evaluation:
      allowed = repr(protocol.published)
      more["weights"], problems = _check_published(protocol, run, allowed)
    problems += _diff(recipe, run, evaluators)
  else:
    recipe, evaluators = _on_imagenet(protocol.finetune), _FINETUNED
    source, upstream, problems = _trace_init(protocol, run)
    problems += _diff_finetuning(recipe, run)
    cells = {}
    more |= {"upstream": source, "learning_rate": run.learning_rate}
  _refuse(row, run.folder, recipe, problems)
  cells |= _accuracies(run, recipe, evaluators)
  return [_record([run], cells, **more, config=run.config), *upstream]


def _average(
  row: Row, protocol: Protocol, folder: Path, parts: dict[str, RunResult]
) -> list[dict]:
  """Makes the record of sweeps on several data sets: Avg 5 or VTAB-1k."""
  is_vtab = not set(parts) <= set(data_sets(protocol.finetune))
  recipe = protocol.vtab if is_vtab else protocol.finetune
  cell, title = ("vtab", "VTAB-1k") if is_vtab else ("average5", "Avg 5")
  if recipe is None:
    raise UserError(
      f"The paper has no VTAB number of the row {row.name} to compare {folder} "
      "with."
    )
  names = data_sets(recipe)
  if lacking := [name for name in names if name not in parts]:
    raise UserError(
      f"{folder} lacks {', '.join(lacking)}: {title} is the mean over "
      f"{len(names)} data sets. Prepare them, and give the sweep's command "
      "again, with --datasets=all."
    )
  runs, imagenet = list(parts.values()), {}
  init = runs[0].config["init"]
  source, upstream, problems = _trace_init(protocol, runs[0])
  for name, run in parts.items():
    one = extend(recipe, f"dataset={name}")
    if name == _IMAGENET and not is_vtab:
      one = _on_imagenet(recipe)
      # Rows pre-trained on ImageNet are evaluated without fine-tuning.
      if not protocol.is_pretrained_on_imagenet:
        imagenet = _accuracies(run, one, _FINETUNED)
    differences = _diff_finetuning(one, run)
    if run.config["init"] != init:  # a mean is of one pre-training
      differences.append(f"init: {init!r} -> {run.config['init']!r}")
    problems += [f"{name}: {each}" for each in differences]
  _refuse(row, folder, recipe, problems)

  by_name = {
    name: {
      **_per_cent(**_reported(run)),
      "learning_rate": run.learning_rate,
      "config": run.config,
    }
    for name, run in parts.items()
  }
  cells = imagenet | {cell: _mean(runs)}
  made = _record(runs, cells, upstream=source, data_sets=by_name)
  made |= {"folder": folder.resolve().name, "kind": SWEEPS}
  return [made, *upstream]


def _on_imagenet(finetune: str) -> str:
  return extend(finetune, f"dataset={_IMAGENET},extra=True")


# Comparison with the row's recipes.


def _refuse(row: Row, folder: Path, recipe: str, problems: list[str]):
  if problems:
    listed = "\n  ".join(problems)
    raise UserError(
      f"{folder} is no run of the row {row.name}, which is measured with "
      f"{recipe}. These differ, what the row wants -> what the run has:\n"
      f"  {listed}"
    )


def _diff(
  recipe: str, run: RunResult, evaluators: Iterable[str], *free: str
) -> list[str]:
  """Lists the keys that differ from a recipe's.

  Of an evaluation only evaluators are compared; of these, in any run, the ones
  that it has results of.
  """
  config, problems = to_dict(resolve(load_recipe(recipe))), []
  if run.kind != SWEEP:
    free += ("sweep",)
  if config["data"]["examples"] is None:  # as many as the split has
    free += ("data.examples",)
  if run.kind != EVALUATION:
    ignored = (*_FREE_KEYS, *free)
    problems += diff_configs(config, run.config, ignored=ignored)
  for name in evaluators:
    if f"eval/{name}/accuracy" in run.means:
      ours, theirs = _evaluator(config, name), _evaluator(run.config, name)
      problems += diff_configs(ours, theirs, f"evals.{name}.", ())
  return problems


def _evaluator(config: dict, name: str) -> dict:
  options = config["evals"].get(name, {})
  keys = {key: options.get(key) for key in _EVALUATOR_KEYS}
  return keys | {"name": keys["name"] or config["data"]["name"]}


def _diff_finetuning(recipe: str, run: RunResult) -> list[str]:
  """Compares a sweep, or a run on all training images, with the recipe."""
  free = "init", "optimizer.learning_rate"
  if run.kind == SWEEP:
    return _diff(recipe, run, _FINETUNED, *free)
  problems = _diff(extend(recipe, "full=True"), run, _FINETUNED, *free)
  rates = [*load_recipe(recipe).sweep.learning_rates]
  if run.learning_rate not in rates:
    problems.append(
      f"optimizer.learning_rate: one of {rates!r} -> {run.learning_rate!r}"
    )
  return problems


def _trace_init(
  protocol: Protocol, run: RunResult
) -> tuple[dict, list[dict], list[str]]:
  """Follows config.init of a fine-tuned run to its pre-training.

  Returns:
    The source as recorded; the record of its cost, none if it is published
    weights; differences from the row's pre-training.
  """
  init = run.config["init"]
  with storage_errors(init):
    if init and storage_path(init).is_dir():
      upstream = read_results(init)[""]
      problems = _diff(protocol.pretrain, upstream, ())
      named = [f"of config.init = {init}: {each}" for each in problems]
      cost = _record([upstream], _cost(upstream), config=upstream.config)
      source = {"folder": cost["folder"]}
      return source, [cost] if cost["cells"] else [], named
  allowed = f"the folder of a run of {protocol.pretrain}"
  if protocol.published:
    allowed = f"{protocol.published!r}, or {allowed}"
  source, problems = _check_published(protocol, run, allowed)
  if problems and init and not source["published"]:
    problems[0] += (
      ", which is no folder here: bring it back, its config.json says how it "
      "was pre-trained"
    )
  return source, [], problems


def _check_published(
  protocol: Protocol, run: RunResult, allowed: str
) -> tuple[dict, list[str]]:
  """Compares config.init with the row's published weights.

  Returns:
    The weights as recorded; what differs from those `allowed`.
  """
  init = run.config["init"]
  path, name = Path(init), init
  if init not in REGISTRY:  # a file of published weights, if any
    name = "/".join(path.parts[-2:]).removesuffix(path.suffix)
    name = name if path.suffix and name in REGISTRY else None
  source = {"published": name}
  if not name or name != protocol.published:
    return source, [f"init: {allowed} -> {init!r}"]
  if init in REGISTRY:
    return source, []
  known = [
    mirror.sha256
    for mirror in REGISTRY[name].mirrors
    if mirror.sha256 and mirror.suffix == path.suffix
  ]
  if not (known and run.sha256):
    return source | {UNCHECKED: True}, []
  if run.sha256.startswith(tuple(known)):
    return source, []
  return source, [
    f"init: a file whose sha256 begins with {' or '.join(known)} -> {init!r} "
    f"with {run.sha256[: len(known[0])]}"
  ]


# Parts of a record.


def _accuracies(
  run: RunResult, recipe: str, evaluators: dict[str, str]
) -> dict[str, dict]:
  """Makes the cells of the evaluators that a run has results of."""
  cells = {
    cell: _per_cent(**run.means[result])
    for name, cell in evaluators.items()
    if (result := f"eval/{name}/accuracy") in run.means
  }
  if evaluators and "imagenet" not in cells:
    raise UserError(
      f"{run.folder} has no eval/{next(iter(evaluators))}/accuracy at its last "
      f"step, but {', '.join(run.means) or 'nothing'}: run {recipe} as it is."
    )
  return cells


def _mean(runs: Sequence[RunResult]) -> dict:
  """Averages over data sets; the deviation is that of the seeds' means."""
  by_seed = [
    [run.by_seed[seed].get(run.config["sweep"]["report"]) for run in runs]
    for seed in set.intersection(*(set(run.by_seed) for run in runs))
  ]
  means = [statistics.fmean(each) for each in by_seed if None not in each]
  return _per_cent(
    mean=statistics.fmean(_reported(run)["mean"] for run in runs),
    deviation=statistics.stdev(means) if len(means) > 1 else None,
    runs=min(_reported(run)["runs"] for run in runs),
  )


def _reported(run: RunResult) -> dict:
  return run.means[run.config["sweep"]["report"]]


def _per_cent(*, mean: float, deviation: float | None, runs: int) -> dict:
  return {
    "value": round(100 * mean, 4),
    "deviation": None if deviation is None else round(100 * deviation, 4),
    "runs": runs,
  }


def _cost(run: RunResult) -> dict:
  """Makes the cell of a run's cost; none if its log has no throughput."""
  days = run.device_days
  return {CORE_DAYS: {"device_days": days}} if days else {}


def _record(runs: Sequence[RunResult], cells: dict, **more) -> dict:
  """Makes a record with the origin of its cells."""
  starts = [start for run in runs for start in run.starts]
  commits = (start["git_commit"] for start in starts)
  devices = (f"{x['devices']} x {x['device_kind']}" for x in starts)
  return {
    "folder": runs[0].folder.resolve().name,
    "kind": runs[0].kind,
    "date": max((start["date"][:10] for start in starts), default=None),
    "git_commits": list(dict.fromkeys(filter(None, commits))),
    "git_changes": any(start["git_changes"] for start in starts),
    "devices": list(dict.fromkeys(devices)),
    "cells": cells,
    **more,
  }
