# SPDX-License-Identifier: Apache-2.0
"""The evaluators of a plan: when they are due, and what they come to."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from mixer.data import preprocess
from mixer.data.input_pipeline import eval_batches, read_labels
from mixer.data.sources import Source
from mixer.distributed import Hosts
from mixer.evaluators import Classification, Fewshot, Real, result_name
from mixer.evaluators.common import Batch
from mixer.plan import EvalPlan, Plan
from mixer.training.preemption import PreemptedError


class EvalRunner:
  """All evaluators, made once, compiled when first used."""

  def __init__(
    self,
    plan: Plan,
    folder: Path,
    devices: Sequence[jax.Device],
    hosts: Hosts,
    should_stop: Callable[[], bool] = lambda: False,
  ):
    """Makes them.

    Args:
      plan: whose evaluators they are.
      folder: for what they write beside numbers.
      devices: of this host.
      hosts: that share the work, in step.
      should_stop: from `preemption.catch_signals`; asked once a batch.
    """
    self._plan = plan
    self._hosts = hosts
    self._evaluators = {
      name: _create(plan, name, evaluation, folder, devices, hosts, should_stop)
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
      PreemptedError: a stop was requested on the way.
    """
    results = {}
    for name in names:
      bad_images = self._plan.bad_images
      before = bad_images.met if bad_images else 0
      kind = self._plan.evals[name].options.type
      for key, value in self._evaluators[name].run(params).items():
        results[result_name(kind, name, key)] = value
      met = bad_images.met - before if bad_images else 0
      if left_out := sum(self._hosts.gather(met)):
        results[result_name(kind, name, "left_out")] = left_out
    return results


def _create(
  plan: Plan,
  name: str,
  evaluation: EvalPlan,
  folder: Path,
  devices: Sequence[jax.Device],
  hosts: Hosts,
  should_stop: Callable[[], bool],
) -> Classification | Real | Fewshot:
  options = evaluation.options
  ops = preprocess.parse(options.ops)

  def batches(source: Source = evaluation.source) -> Iterator[Batch]:
    for batch in eval_batches(
      source,
      ops,
      batch=evaluation.batch,
      host=hosts.index,
      hosts=hosts.count,
      workers=plan.workers,
      bad_images=plan.bad_images,
    ):
      if should_stop():
        raise PreemptedError
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

  def file(what: str) -> Path | None:
    is_wanted = hosts.is_first and options[what]
    return folder / f"{name}_{what}.csv" if is_wanted else None

  return Classification(
    batches,
    loss=plan.config.loss,
    class_names=evaluation.source.class_names,
    per_class=file("per_class"),
    confusion=file("confusion"),
    **shared,
  )
