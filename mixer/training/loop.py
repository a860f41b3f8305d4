# SPDX-License-Identifier: Apache-2.0
"""A run from its config to its weights; goes on where its folder left off."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from clu import parameter_overview

from mixer import weights
from mixer.atomic_write import atomic_write
from mixer.cli import EX_OK, EX_TEMPFAIL, PROCESS_START
from mixer.data import preprocess
from mixer.data.input_pipeline import train_batches
from mixer.data.prefetch import prefetch_to_device
from mixer.data.shuffle import IndexShuffler
from mixer.distributed import Hosts
from mixer.errors import UserError
from mixer.evaluators.runner import EvalRunner
from mixer.plan import Plan, plan_summary
from mixer.training import run_dir
from mixer.training.consistency import wait_for_path
from mixer.training.in_flight import InFlight
from mixer.training.metrics import MetricWriter, read_rows
from mixer.training.plots import draw_learning_curve
from mixer.training.preemption import PreemptedError
from mixer.training.run_dir import CHECKPOINTS
from mixer.training.setup import (
  abstract_state,
  create_optimizer,
  create_sharding,
  create_update,
  initial_state,
  open_checkpoints,
)
from mixer.training.sharding import all_devices, local_devices, to_host
from mixer.training.skipped import SkippedUpdates
from mixer.training.step import TrainState


class Run:
  """One start of a run: its parts, and the loop over them.

  With several hosts every one of them has its own, and they are in step: what
  one decides, such as to stop, all do. The first writes and speaks.
  """

  def __init__(
    self,
    plan: Plan,
    folder: Path,
    should_stop: Callable[[], bool],
    hosts: Hosts,
  ):
    config = plan.config
    self.plan = plan
    self.folder = folder
    self.hosts = hosts
    self.devices = all_devices()
    self.should_stop, self.is_stopped = should_stop, False
    self.schedule, self.optimizer = create_optimizer(plan)
    self.checkpoints = open_checkpoints(plan, folder)
    self.evaluations = EvalRunner(
      plan, folder / "eval", local_devices(), hosts, should_stop
    )
    self.start, state = self.resume_or_begin()
    self.sharding = create_sharding(plan)
    self.state = self.sharding.put(state, self.devices)
    self.update = create_update(plan, self.optimizer, self.devices)
    batches = train_batches(
      plan.source,
      preprocess.parse(config.data.ops),
      batch=config.batch,
      seed=config.seed,
      start_step=self.start,
      host=hosts.index,
      hosts=hosts.count,
      workers=plan.workers,
      bad_images=plan.bad_images,
    )
    self.batches = prefetch_to_device(
      index_examples(batches, config.batch),
      local_devices(),
      config.data.prefetch,
    )
    skipped = SkippedUpdates(
      folder,
      from_step=self.start,
      batch=config.batch,
      order=IndexShuffler(len(plan.source), config.seed),
      enabled=hosts.is_first,
    )
    self.in_flight = InFlight(
      skipped, self.checkpoints, max_skipped=config.max_skipped
    )

  def resume_or_begin(self) -> tuple[int, TrainState]:
    """The newest sound checkpoint's step and state, or a run's first."""
    template = abstract_state(self.plan, self.optimizer)
    restored = None
    with self.hosts.raise_on_all():
      if self.hosts.is_first:
        restored = self.checkpoints.restore(template)
    # What the first host could read is what all go on from.
    step = self.hosts.gather(restored and restored[0])[0]
    if step is None:
      return 0, initial_state(self.plan, self.optimizer)
    with self.hosts.raise_on_all():
      if step > self.plan.total_steps:
        raise UserError(
          f"{self.folder} has come to step {step:,} already, beyond the "
          f"{self.plan.total_steps:,} of this config: choose another "
          "--workdir, or lengthen the run."
        )
      if not self.hosts.is_first:
        wait_for_path(self.folder / CHECKPOINTS / str(step))
        restored = self.checkpoints.restore(template, step)
      return restored

  def go(self) -> int:
    """Trains and returns the process's exit code."""
    if self.hosts.is_first:
      self.introduce()
    with (
      contextlib.closing(self.batches),
      contextlib.closing(self.checkpoints),
      MetricWriter(
        self.folder,
        from_step=self.start,
        total_steps=self.plan.total_steps,
        batch=self.plan.config.batch,
        devices=self.plan.devices,
        # The backward pass needs twice the arithmetic of the forward pass.
        flops_per_image=6 * self.plan.multiply_accumulates,
        profile_steps=self.plan.config.log.profile_steps,
        enabled=self.hosts.is_first,
      ) as self.metrics,
    ):
      step = self.loop()
    if self.plan.bad_images and (report := self.plan.bad_images.report()):
      print(report)
    if self.is_stopped:
      if self.hosts.is_first:
        print(f"Stopped and saved at step {step:,}. The same command goes on.")
      return EX_TEMPFAIL
    # Waited for by all hosts, for whose devices it may be a collective.
    params = jax.block_until_ready(
      self.sharding.gather(self.state.eval_params, self.devices)
    )
    if self.hosts.is_first:
      self.conclude(to_host(params))
    return EX_OK

  def introduce(self):
    """Says on paper and on the terminal what this run is."""
    if self.start < self.plan.total_steps:
      # Of a run that was shorter, and went on.
      (self.folder / weights.RUN_FILE).unlink(missing_ok=True)
    run_dir.write_start(self.folder, self.plan.config, from_step=self.start)
    names = "".join(f"{name}\n" for name in self.plan.source.class_names)
    with atomic_write(self.folder / weights.CLASSES) as aside:
      aside.write_text(names)
    overview = parameter_overview.get_parameter_overview(
      self.plan.abstract_params, include_stats=False
    )
    (self.folder / "parameters.txt").write_text(f"{overview}\n")
    print(plan_summary(self.plan), flush=True)
    if self.start:
      print(f"Goes on from the checkpoint of step {self.start:,}.", flush=True)

  def loop(self) -> int:
    """Applies updates until all are done or a stop is asked for.

    Returns:
      How many are applied and saved.
    """
    config, total = self.plan.config, self.plan.total_steps
    for step in range(self.start, total + 1):
      # Here `step` updates are applied to the state.
      results = self.evaluate(step)
      self.is_stopped = self.should_stop()
      stop = step == total or self.is_stopped
      if step > self.start and (stop or self.is_save_due(step, results)):
        self.save(step, results)
      if stop:
        break

      self.metrics.profile(step)
      if step == self.start:
        metrics = self.first_update()
      else:
        with self.metrics.timer.wait_for_data():
          batch = next(self.batches)
        self.state, metrics = self.update(self.state, batch)
      self.in_flight.add(step + 1, metrics)
      if (step + 1) % config.log.every_steps == 0 or step + 1 in (1, total):
        self.log_update(step + 1, metrics)
    return step

  def first_update(self) -> dict[str, jax.Array]:
    """Compiles the update and applies it; says how long all of it took."""
    with self.metrics.timer.wait_for_data():
      batch = next(self.batches)
    with self.metrics.timer.pause():
      self.state, metrics = self.update(self.state, batch)
    seconds = time.monotonic() - PROCESS_START
    self.metrics.message(f"first update after {seconds:.1f} s")
    return metrics

  def evaluate(self, step: int) -> dict[str, float]:
    """Runs what is due and logs it; an empty dict if nothing is.

    When a stop is asked for, saving comes first: what is not evaluated then is
    evaluated when the run goes on.
    """
    due = self.evaluations.due(step)
    if not due or (step == self.start and self.is_start_evaluated()):
      return {}
    jax.block_until_ready(self.state)  # the updates up to here are no pause
    with (
      self.metrics.timer.pause(),
      contextlib.suppress(PreemptedError),
    ):
      params = self.sharding.gather(self.state.eval_params, self.devices)
      results = self.evaluations.run(due, params)
      self.metrics.write(step, results)
      self.metrics.message(
        f"step {step:,}: "
        + ", ".join(f"{name} {x:.4f}" for name, x in results.items())
      )
      return results
    return {}

  def is_start_evaluated(self) -> bool:
    """Whether nothing is left to evaluate at the step it goes on from."""
    if self.start == 0:
      return True
    done = self.hosts.is_first and any(
      name.startswith("eval/")
      for row in read_rows(self.folder)
      if row["step"] == self.start
      for name in row
    )
    return self.hosts.gather(done)[0]

  def is_save_due(self, step: int, results: dict[str, float]) -> bool:
    every = self.plan.checkpoint_every, self.plan.milestone_every
    if any(n and step % n == 0 for n in every):
      return True
    metric = results.get(self.plan.config.checkpoint.best)
    if metric is None:
      return False
    is_best = self.hosts.is_first and self.checkpoints.is_best(metric)
    return self.hosts.gather(is_best)[0]

  def save(self, step: int, results: dict[str, float]):
    """Starts writing a checkpoint; rows up to it are on disk before it is."""
    self.in_flight.finish()
    config = self.plan.config
    if not (self.hosts.is_first or config.shard_state):
      return  # the first has the whole state, and writes it
    with self.metrics.timer.pause():
      self.metrics.flush()
      if config.checkpoint.best in results:
        self.checkpoints.record_metric(step, results[config.checkpoint.best])
      self.checkpoints.save(
        step,
        self.sharding.fetch(
          self.state, abstract_state(self.plan, self.optimizer), self.devices
        ),
      )

  def log_update(self, step: int, metrics: dict[str, jax.Array]):
    """Logs update number `step`, without waiting for it."""
    rates = self.metrics.timer.rates(step)
    # The first update has the schedule's value at 0.
    lr = self.plan.config.optimizer.learning_rate * self.schedule(step - 1)
    values = {
      f"train/{name}": value
      for name, value in metrics.items()
      if name != "skipped_in_a_row"
    }
    self.metrics.write(step, values | {"train/learning_rate": lr} | rates)

  def conclude(self, params: dict):
    """Writes the weights and the picture, and says where everything is."""
    weights.save(
      self.folder / weights.RUN_FILE,
      params,
      gelu=getattr(self.plan.model, "gelu", "tanh"),  # BiT has none
    )
    curve = draw_learning_curve(self.folder)
    print(
      f"Done: {self.plan.total_steps:,} steps.\n"
      f"weights        {self.folder / weights.RUN_FILE}\n"
      f"checkpoints    {self.folder / CHECKPOINTS}\n"
      f"numbers        {self.folder / 'metrics.jsonl'}, and for TensorBoard: "
      f"tensorboard --logdir={self.folder}\n"
      f"learning curve {curve}"
    )


def index_examples(
  batches: Iterable[dict[str, np.ndarray]], batch: int
) -> Iterator[dict[str, np.ndarray]]:
  """Replaces int64 positions, which devices lack, by the place in the batch."""
  for examples in batches:
    position = examples.pop("position")
    yield examples | {"index": (position % batch).astype(np.uint32)}
