# SPDX-License-Identifier: Apache-2.0
"""The runs of a sweep: their configs, their folders and what came of them."""

import dataclasses
import math

import jax
from etils import epath
from ml_collections import ConfigDict

from mixer import train, weights
from mixer.atomic_write import atomic_write
from mixer.cli import EX_TEMPFAIL
from mixer.errors import UserError
from mixer.training.checkpoint import Checkpoints
from mixer.training.metrics import read_rows
from mixer.training.nonfinite import DivergedError
from mixer.training.run_dir import CHECKPOINTS

FAILED = "failed.txt"  # in a run's folder: why it came to nothing


@dataclasses.dataclass(frozen=True)
class SweepRun:
  """One run of a sweep; it is in its folder that it is finished or not."""

  folder: epath.Path
  config: ConfigDict = dataclasses.field(repr=False)

  @property
  def learning_rate(self) -> float:
    return self.config.optimizer.learning_rate

  @property
  def seed(self) -> int:
    return self.config.seed

  @property
  def has_failed(self) -> bool:
    return (self.folder / FAILED).exists()

  @property
  def steps_saved(self) -> int:
    """Where it would go on; 0 where it would begin."""
    return max(Checkpoints(self.folder / CHECKPOINTS).steps, default=0)

  @property
  def needs_start(self) -> bool:
    """Whether config.init is still to be read for it."""
    return not self.has_failed and not self.steps_saved


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of a run: results at its last step, or the reason for none."""

  run: SweepRun
  results: dict[str, float] = dataclasses.field(default_factory=dict)
  failure: str = ""

  def value(self, result: str) -> float | None:
    """A result, None where the run has failed or it is not a number."""
    value = self.results.get(result, math.nan)
    return value if math.isfinite(value) else None


def grid_runs(config: ConfigDict, folder: epath.Path) -> list[SweepRun]:
  """One run for each learning rate, in their order."""
  rates = sorted(config.sweep.learning_rates)
  return [_run(config, folder / f"lr_{rate:g}", rate) for rate in rates]


def final_runs(
  config: ConfigDict, folder: epath.Path, rate: float
) -> list[SweepRun]:
  """One run with this rate for each seed, on all the images there are.

  The rate is in the folders' names: a longer grid may lead to another one.
  """
  seeds = [config.seed + i for i in range(config.sweep.seeds)]
  return [
    _run(config, folder / f"final_lr_{rate:g}_seed_{seed}", rate, seed)
    for seed in seeds
  ]


def _run(
  config: ConfigDict, folder: epath.Path, rate: float, seed: int | None = None
) -> SweepRun:
  config = config.copy_and_resolve_references()
  config.optimizer.learning_rate = float(rate)
  if seed is not None:
    config.seed = seed
  return SweepRun(folder, config)


def on_everything(config: ConfigDict, judge: str | None) -> ConfigDict:
  """The config of the final runs.

  Args:
    config: of the sweep.
    judge: the evaluator that the learning rate is chosen by; left out where
      the final runs have another split, because they train on its images.
  """
  config = config.copy_and_resolve_references()
  if config.sweep.full_split in (None, "", config.data.split):
    return config
  config.data.split = config.sweep.full_split
  config.data.examples = config.sweep.full_examples
  if judge in config.evals:
    with config.unlocked():
      del config.evals[judge]
    if judge in config.checkpoint.best.split("/"):
      config.checkpoint.best = ""
  return config


def read_outcome(run: SweepRun, total_steps: int) -> Outcome | None:
  """What came of a run, None if it has not come to its end."""
  if run.has_failed:
    return Outcome(run, failure=(run.folder / FAILED).read_text().strip())
  if not (run.folder / weights.RUN_FILE).exists():  # it is written last
    return None
  rows = read_rows(run.folder)
  if not rows or rows[-1]["step"] != total_steps:
    return None
  results = {k: v for k, v in rows[-1].items() if k.startswith("eval/")}
  return Outcome(run, results)


def carry_out(
  run: SweepRun, total_steps: int, *, accept_changes: bool
) -> Outcome | None:
  """Trains to the end; None if a stop was asked for before, all is saved.

  Raises:
    UserError: for any reason but the run's own divergence.
  """
  config = run.config.copy_and_resolve_references()
  try:
    code = train.train(config, str(run.folder), accept_changes=accept_changes)
  except DivergedError as error:
    with atomic_write(run.folder / FAILED) as aside:
      aside.write_text(f"{error}\n")
  else:
    if code == EX_TEMPFAIL:
      return None
  finally:
    # The next run compiles its own programs; those of many would add up.
    jax.clear_caches()
  outcome = read_outcome(run, total_steps)
  if outcome is None:
    raise UserError(
      f"{run.folder} has no results of step {total_steps:,} although the run "
      "is done: move the folder away and start again."
    )
  return outcome
