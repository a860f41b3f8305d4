# SPDX-License-Identifier: Apache-2.0
"""Evaluates a run's checkpoint, or weights, with a config's evaluators."""

import optax
from etils import epath
from ml_collections import ConfigDict

from mixer.cli import EX_OK, sigterm_to_keyboard_interrupt
from mixer.cluster import ONE_HOST, Cluster
from mixer.data_plan import check_classes
from mixer.distributed import initialize
from mixer.errors import UserError
from mixer.evaluators.runner import EvalRunner
from mixer.jax_setup import configure_xla, enable_compilation_cache
from mixer.plan import Plan, make_plan
from mixer.storage import storage_errors, storage_path
from mixer.training import run_dir
from mixer.training.consistency import (
  check_same_config,
  check_same_devices,
  check_same_plan,
  checksum,
)
from mixer.training.optimizer import make_optimizer
from mixer.training.setup import abstract_state, open_checkpoints, saved_steps
from mixer.training.sharding import local_devices, replicate
from mixer.weights import CLASSES, trained_classes


def evaluate(
  config: ConfigDict | None,
  workdir: str | None,
  *,
  step: int | None = None,
  best: bool = False,
  skip_missing: bool = False,
  cluster: Cluster = ONE_HOST,
) -> int:
  """Prints the results of all of a config's evaluators.

  Args:
    config: from a recipe; None for the run's own.
    workdir: a run's folder, whose newest checkpoint is evaluated; if it has
      none, config.init is. The results are written to evaluation.json there.
    step: the step of the checkpoint, instead of the newest.
    best: evaluate the best checkpoint.
    skip_missing: leave out evaluators whose data are missing, and print which.
    cluster: the hosts; each calls this.

  Returns:
    The process's exit code.

  Raises:
    UserError: there is nothing to evaluate, or nothing to evaluate it on.
  """
  folder = storage_path(workdir) if workdir else None
  if config is None:
    if folder is None:
      raise UserError(
        "Name a recipe, such as --config=configs/digits.py, or a run's folder "
        "with --workdir."
      )
    with storage_errors(workdir):
      config = run_dir.load_config(folder)
  configure_xla()
  enable_compilation_cache()
  # After jax.distributed, which would take SIGTERM for its own.
  with (
    initialize(cluster) as hosts,
    storage_errors(workdir),
    sigterm_to_keyboard_interrupt(),
  ):
    check_same_config(hosts, config)
    check_same_devices(hosts)
    with hosts.raise_on_all():
      is_new_run = not saved_steps(folder)
      if not is_new_run:
        run_dir.inherit_gelu(folder, config)
      plan = make_plan(
        config,
        for_training=False,
        load_init=is_new_run,
        skip_missing=skip_missing,
      )
      if not plan.config.evals:
        plan.complaints.problems.append(
          "The config has no evaluators: add to config.evals."
        )
      if is_new_run:
        origin_dir = storage_path(config.init) if config.init else None
        trained = plan.model.initial_classes
      else:
        origin_dir, trained = folder, trained_classes(folder)
      if trained:
        _check_classes(plan, trained, f"{origin_dir}'s {CLASSES}")
      plan.complaints.raise_all()
      params, origin = _find_params(plan, folder, step, best)
    check_same_plan(hosts, plan)
    if hosts.count > 1:  # the checksum of large weights takes seconds
      hosts.check_same(
        {"evaluates": origin, "weights": checksum(params)},
        "evaluates other weights than host 0: give all hosts the same "
        "--workdir and weights",
      )
    if hosts.is_first:
      print(f"Evaluates {origin}. {plan.data.left_out}".strip(), flush=True)
      if warning := run_dir.warn_other_split(origin_dir, plan.config):
        print(warning, flush=True)
    evaluations = EvalRunner(plan, (folder or epath.Path()) / "eval", hosts)
    params = replicate(params, local_devices())
    all_results = {}
    for name in plan.data.evals:
      results = evaluations.run([name], params)
      all_results |= results
      if hosts.is_first:
        _print(results, plan.data.evals[name].options.get("published"))
    if folder and hosts.is_first:
      _write(folder, plan.config, origin, all_results)
    if plan.data.bad_images and (report := plan.data.bad_images.report()):
      print(report)
  return EX_OK


def _print(results: dict[str, float], published: float | None):
  for result, value in results.items():
    comparison = ""
    if published is not None and result.endswith("/accuracy"):
      comparison = f"  published {published:.5f}  {value - published:+.5f}"
    print(f"{result:40} {value:.5f}{comparison}", flush=True)


def _write(folder: epath.Path, config: ConfigDict, origin: str, results: dict):
  """Writes evaluation.json, if the folder can be written to."""
  try:
    run_dir.write_evaluation(folder, config, origin, results)
  except OSError as error:
    print(f"Not written to {folder}: {error.strerror or error}.", flush=True)


def _check_classes(plan: Plan, trained: list[str], origin: str):
  """Compares the classes of image folders with those of the run."""
  for name, evaluation in plan.data.evals.items():
    if evaluation.source is None or evaluation.type.own_classes:
      continue
    with plan.complaints.collect(f"config.evals.{name}: ", once=True):
      check_classes(evaluation.source, trained, origin)


def _find_params(
  plan: Plan, folder: epath.Path | None, step: int | None, best: bool
) -> tuple[dict, str]:
  """Returns the parameters to evaluate, and their origin in words."""
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
    # The state has one count for any schedule.
    optimizer = make_optimizer(
      plan.model.abstract_params,
      optax.constant_schedule(1.0),
      **plan.config.optimizer,
    )
    restored = checkpoints.restore(abstract_state(plan, optimizer), step)
    if restored is not None:
      return restored[1].eval_params, f"step {restored[0]:,} of {folder}"
  return _initial_params(plan, f"There is no checkpoint in {folder}")


def _initial_params(plan: Plan, why: str) -> tuple[dict, str]:
  """Returns the parameters of config.init."""
  if plan.model.initial_params is None:
    raise UserError(
      f"{why}, and config.init is not set: name a run's folder with --workdir, "
      "or weights with --config.init."
    )
  return plan.model.initial_params, plan.config.init
