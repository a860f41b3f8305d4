# SPDX-License-Identifier: Apache-2.0
"""The evaluators of a plan: when they are due, and on a run that is there."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import optax
from ml_collections import ConfigDict

from mixer.data import ops as image_ops
from mixer.data.loader import eval_batches, read_labels
from mixer.data.sources import Source
from mixer.errors import UserError
from mixer.evaluators import Classification, Fewshot, Real, result_name
from mixer.evaluators.passes import Batch
from mixer.front_door import DONE
from mixer.plan import EvalPlan, Plan, make_plan
from mixer.plan.data import check_classes
from mixer.training import run_folder
from mixer.training.checkpoints import Checkpoints
from mixer.training.interruption import Interrupted
from mixer.training.optimizer import make_optimizer
from mixer.training.setup import (
  CHECKPOINTS,
  abstract_state,
  open_checkpoints,
  replicate,
)
from mixer.weights import CLASSES, trained_classes


class Evaluations:
  """All evaluators, made once, compiled when first used."""

  def __init__(
    self,
    plan: Plan,
    folder: Path,
    devices: Sequence[jax.Device],
    interrupted: Callable[[], bool] = lambda: False,
  ):
    self._plan = plan
    self._evaluators = {
      name: _create(plan, name, evaluation, folder, devices, interrupted)
      for name, evaluation in plan.evals.items()
    }

  def due(self, step: int) -> list[str]:
    """Names of the evaluators that run after this many updates."""
    return [
      name
      for name, evaluation in self._plan.evals.items()
      if step == self._plan.total_steps
      or (evaluation.every and step % evaluation.every == 0)
    ]

  def run(self, names: Sequence[str], params: dict) -> dict[str, float]:
    """Runs evaluators on replicated parameters.

    Returns:
      "eval/NAME/RESULT" and the number; "eval/NAME/left_out" where images could
      not be decoded.

    Raises:
      Interrupted: a stop was asked for on the way.
    """
    results = {}
    for name in names:
      bad_images = self._plan.bad_images
      before = bad_images.met if bad_images else 0
      kind = self._plan.evals[name].options.type
      for key, value in self._evaluators[name].run(params).items():
        results[result_name(kind, name, key)] = value
      if bad_images and bad_images.met > before:
        left_out = result_name(kind, name, "left_out")
        results[left_out] = bad_images.met - before
    return results


def _create(
  plan: Plan,
  name: str,
  evaluation: EvalPlan,
  folder: Path,
  devices: Sequence[jax.Device],
  interrupted: Callable[[], bool],
) -> Classification | Real | Fewshot:
  options = evaluation.options
  ops = image_ops.parse(options.ops)

  def batches(source: Source = evaluation.source) -> Iterator[Batch]:
    for batch in eval_batches(
      source,
      ops,
      batch=evaluation.batch,
      workers=plan.workers,
      bad_images=plan.bad_images,
    ):
      if interrupted():
        raise Interrupted
      yield batch

  shared = {"model": plan.model, "devices": devices}
  if options.type == "real":
    return Real(batches, **shared)
  if options.type == "fewshot":
    return Fewshot(
      batches,
      pool=evaluation.pool,
      pool_labels=read_labels(evaluation.pool, plan.workers),
      test=evaluation.source,
      shots=options.shots,
      draws=options.draws,
      l2=options.l2,
      **shared,
    )
  return Classification(
    batches,
    loss=plan.config.loss,
    class_names=evaluation.source.class_names,
    per_class=folder / f"{name}_per_class.csv" if options.per_class else None,
    confusion=folder / f"{name}_confusion.csv" if options.confusion else None,
    **shared,
  )


def evaluate(
  config: ConfigDict,
  workdir: str | None,
  *,
  step: int | None = None,
  best: bool = False,
  skip_missing: bool = False,
) -> int:
  """Prints the results of all of a config's evaluators.

  Args:
    config: from a recipe.
    workdir: a run's folder, whose newest checkpoint is evaluated; without
      one there, config.init is.
    step: of the checkpoint, instead of the newest.
    best: take the best checkpoint.
    skip_missing: leave out evaluators whose data are not there, and say so.

  Returns:
    The process's exit code.

  Raises:
    UserError: there is nothing to evaluate, or nothing to evaluate it on.
  """
  folder = Path(workdir).expanduser() if workdir else None
  begins = folder is None or not Checkpoints(folder / CHECKPOINTS).steps
  if not begins:
    run_folder.take_over(folder, config)
  plan = make_plan(config, trains=False, begins=begins)
  if not plan.evals:
    plan.problems.append("The config has no evaluators: add to config.evals.")
  judged = folder
  if begins:
    judged = Path(config.init).expanduser() if config.init else None
  _check_classes(plan, judged)
  left_out = _leave_out_missing(plan) if skip_missing else ""
  plan.raise_complaints()
  params, origin = _find_params(plan, folder, step, best)
  print(f"Evaluates {origin}.{left_out}", flush=True)
  if warning := run_folder.other_training(judged, plan.config):
    print(warning, flush=True)
  devices = jax.local_devices()
  evaluations = Evaluations(plan, (folder or Path()) / "eval", devices)
  params = replicate(params, devices)
  for name, evaluation in plan.evals.items():
    published = evaluation.options.get("published")
    for result, value in evaluations.run([name], params).items():
      beside = ""
      if published is not None and result.endswith("/accuracy"):
        beside = f"  published {published:.5f}  {value - published:+.5f}"
      print(f"{result:40} {value:.5f}{beside}", flush=True)
  if plan.bad_images and (report := plan.bad_images.report()):
    print(report)
  return DONE


def _leave_out_missing(plan: Plan) -> str:
  """Forgets evaluators without data, unless none would stay; says which."""
  missing = [name for name, each in plan.evals.items() if each.source is None]
  if not plan.missing or len(missing) == len(plan.evals):
    return ""
  reasons = "\n  ".join(plan.missing)
  plan.evals = {
    name: each for name, each in plan.evals.items() if name not in missing
  }
  plan.missing = []
  return f" Leaves out {', '.join(missing)}:\n  {reasons}"


def _check_classes(plan: Plan, folder: Path | None):
  """Compares folders of images with the classes that travel with the run."""
  trained = folder and trained_classes(folder)
  for name, evaluation in plan.evals.items():
    if evaluation.source is None or evaluation.options.type == "fewshot":
      continue  # few-shot data sets have classes of their own
    with plan.collecting(f"config.evals.{name}: "):
      if trained:
        check_classes(evaluation.source, trained, str(folder / CLASSES))


def _find_params(
  plan: Plan, folder: Path | None, step: int | None, best: bool
) -> tuple[dict, str]:
  """The parameters to evaluate, and what they are."""
  if folder is None:
    if best or step is not None:
      raise UserError(
        "--best and --step are of a run's checkpoints: name its folder with "
        "--workdir."
      )
    return _initial_params(plan, "There is no --workdir")
  checkpoints = open_checkpoints(plan, folder)
  if best:
    step = checkpoints.best_step
    if step is None:
      raise UserError(
        f"No checkpoint in {folder} has a metric to be the best by: set "
        "config.checkpoint.best in training, or name a --step."
      )
  if step is not None or checkpoints.steps:
    # Of the schedule nothing is in the state.
    optimizer = make_optimizer(
      plan.abstract_params,
      optax.constant_schedule(1.0),
      **plan.config.optimizer,
    )
    restored = checkpoints.restore(abstract_state(plan, optimizer), step)
    if restored is not None:
      return restored[1].eval_params, f"step {restored[0]:,} of {folder}"
  return _initial_params(plan, f"There is no checkpoint in {folder}")


def _initial_params(plan: Plan, why: str) -> tuple[dict, str]:
  """Those of config.init."""
  if plan.initial_params is None:
    raise UserError(
      f"{why}, and config.init is not set: name a run's folder with --workdir, "
      "or weights with --config.init."
    )
  return plan.initial_params, plan.config.init
