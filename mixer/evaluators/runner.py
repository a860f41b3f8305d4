# SPDX-License-Identifier: Apache-2.0
"""Runs the evaluators of a plan when they are due, and names their results."""

import pkgutil
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from mixer.config import result_name
from mixer.data import preprocess
from mixer.data.input_pipeline import eval_batches
from mixer.data.sources import Source
from mixer.distributed import Hosts
from mixer.evaluators import Batch, EvalSetup
from mixer.plan import Plan
from mixer.training.preemption import PreemptedError
from mixer.training.sharding import local_devices


class EvalRunner:
  """All evaluators of a plan, created once and compiled when first used."""

  def __init__(
    self,
    plan: Plan,
    folder: epath.Path,
    hosts: Hosts,
    should_stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[], None] = lambda: None,
  ):
    """Creates the evaluators.

    Args:
      plan: with the evaluators' data opened.
      folder: for files next to the numbers.
      hosts: that share the work, in step.
      should_stop: from `preemption.catch_signals`; called once per batch.
      on_batch: called once per batch, too.
    """
    self._plan = plan
    self._hosts = hosts
    self._should_stop = should_stop
    self._on_batch = on_batch
    self._evaluators = {
      name: pkgutil.resolve_name(evaluation.type.target)(
        EvalSetup(
          name,
          evaluation.options,
          evaluation.source,
          evaluation.pool,
          self._make_batches(name),
          model=plan.model.module,
          loss=plan.data.hierarchy or plan.config.loss,
          devices=local_devices(),
          workers=plan.data.workers,
          folder=folder if hosts.is_first else None,
        )
      )
      for name, evaluation in plan.data.evals.items()
    }

  def due(self, step: int) -> list[str]:
    """Returns the names of the evaluators that run after this many updates."""
    return [
      name
      for name, evaluation in self._plan.data.evals.items()
      if step == self._plan.schedule.total_steps
      or (evaluation.every and step % evaluation.every == 0)
    ]

  def run(
    self,
    names: Sequence[str],
    params: dict,
    on_error: Callable[[str], None] | None = None,
  ) -> dict[str, float]:
    """Runs evaluators on replicated parameters.

    Args:
      names: of evaluators.
      params: replicated.
      on_error: takes a sentence about an evaluator that fails, which is then
        skipped; None raises its error.

    Returns:
      "eval/NAME/RESULT" -> number; "eval/NAME/left_out" counts images that
      could not be decoded; "eval/NAME/failed" is 1 for a skipped evaluator.

    Raises:
      PreemptedError: a stop was requested between two batches.
    """
    results = {}
    for name in names:
      kind = self._plan.data.evals[name].options.type
      try:
        values = self._run(name, params)
      except Exception as error:
        if on_error is None or isinstance(error, PreemptedError):
          raise
        on_error(f"Evaluator {name} failed and was skipped: {error}")
        values = {"failed": 1}
      results |= {result_name(kind, name, x): y for x, y in values.items()}
    return results

  def _run(self, name: str, params: dict) -> dict[str, float]:
    bad_images = self._plan.data.bad_images
    before = bad_images.total if bad_images else 0
    results = dict(self._evaluators[name].run(params))
    left_out = bad_images.total - before if bad_images else 0
    if left_out := sum(self._hosts.gather(left_out)):
      results["left_out"] = left_out
    return results

  def _make_batches(self, name: str) -> Callable[[Source], Iterator[Batch]]:
    """Returns a function that starts a pass over a split."""
    evaluation = self._plan.data.evals[name]
    ops = preprocess.parse(evaluation.options.ops)

    def batches(source: Source) -> Iterator[Batch]:
      for batch in eval_batches(
        source,
        ops,
        batch=evaluation.batch,
        host=self._hosts.index,
        hosts=self._hosts.count,
        workers=self._plan.data.workers,
        bad_images=self._plan.data.bad_images,
      ):
        self._on_batch()
        if self._should_stop():
          raise PreemptedError
        yield batch

    return batches
