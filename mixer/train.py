# SPDX-License-Identifier: Apache-2.0
"""A training run, from its config to its weights: `train` shows all of it."""

import contextlib
import time

import jax
from etils import epath
from ml_collections import ConfigDict

from mixer.cli import EX_OK, EX_TEMPFAIL, sigterm_to_keyboard_interrupt
from mixer.cluster import ONE_HOST, Cluster
from mixer.data.shuffle import IndexShuffler
from mixer.distributed import Hosts, initialize
from mixer.errors import RetryableError, UserError, notify
from mixer.evaluators.runner import EvalRunner
from mixer.jax_setup import configure_xla, enable_compilation_cache
from mixer.plan import Plan, make_plan, plan_summary
from mixer.storage import (
  is_in_bucket,
  make_folder,
  storage_errors,
  storage_path,
  write_text,
)
from mixer.training import run_dir
from mixer.training.consistency import (
  check_same_config,
  check_same_devices,
  check_same_plan,
  check_shared_folder,
)
from mixer.training.goodput import Ledger
from mixer.training.lock import locked
from mixer.training.memory import MemoryMonitor
from mixer.training.metrics import MetricWriter, read_rows
from mixer.training.nonfinite import PendingUpdates
from mixer.training.preemption import PreemptedError, catch_signals
from mixer.training.progress import Rates
from mixer.training.setup import (
  abstract_state,
  check_run,
  create_optimizer,
  create_sharding,
  create_update,
  initial_state,
  log_start,
  open_batches,
  open_checkpoints,
  plan_run,
  restore,
  saved_steps,
  teacher_inputs,
)
from mixer.training.sharding import (
  all_devices,
  local_devices,
  replicate,
  to_host,
)
from mixer.training.watchdog import Watchdog


def train(
  config: ConfigDict,
  workdir: str | None,
  *,
  accept_changes: bool = False,
  skip_missing: bool = False,
  from_step: int | None = None,
  cluster: Cluster = ONE_HOST,
  started: float | None = None,
) -> int:
  """Trains to the end, or until it is asked to stop.

  Every host calls this. They are in step: each decision, such as to stop, is
  the same on all of them. The first host writes and prints.

  Args:
    config: from a recipe.
    workdir: the run's folder, shared by all hosts.
    accept_changes: resume although the folder's config is another.
    skip_missing: leave out evaluators whose data are missing, and print which.
    from_step: go back to the checkpoint of this step; later ones are set aside.
    cluster: the hosts.
    started: time.monotonic() of the command's start; default: now.

  Returns:
    The exit code: EX_OK, or EX_TEMPFAIL after saving.

  Raises:
    UserError: something for the user to change; nothing was lost.
  """
  if started is None:
    started = time.monotonic()
  configure_xla(deterministic=config.get("deterministic_operations"))
  enable_compilation_cache()
  with contextlib.ExitStack() as stack:
    # Connect the hosts, which must agree on the config and on the folder. Until
    # signals are caught below, there is nothing to save: SIGTERM ends at once.
    stack.enter_context(sigterm_to_keyboard_interrupt())
    hosts = stack.enter_context(initialize(cluster))
    stack.enter_context(storage_errors(workdir))
    with hosts.raise_on_all():
      folder = make_folder(workdir)
    check_same_config(hosts, config)
    check_shared_folder(hosts, folder)
    check_same_devices(hosts)
    devices = all_devices()

    # Lock the folder. From here on a signal asks for a stop.
    with hosts.raise_on_all():
      if hosts.is_first:
        # The lock of a host that was lost may last for a while.
        wait = cluster.wait if hosts.count > 1 else 0.0
        stack.enter_context(locked(folder, wait=wait))
      should_stop = stack.enter_context(catch_signals(hosts))

    # Plan, and compare the plan with the folder's and with the other hosts'.
    plan = plan_run(
      config,
      folder,
      hosts,
      accept_changes=accept_changes,
      skip_missing=skip_missing,
      from_step=from_step,
    )
    check_same_plan(hosts, plan)
    total_steps = plan.schedule.total_steps
    drop_steps = plan.schedule.drop_steps
    log_every = plan.config.log.every_steps

    # From here on, seconds are written down, and a run that is stuck ends.
    with hosts.raise_on_all():
      ledger = Ledger(folder, started, enabled=hosts.is_first)
    stack.callback(ledger.close)
    watchdog = stack.enter_context(
      Watchdog(plan.config.log.watchdog_minutes, folder, hosts, ledger.phase)
    )

    # Restore the newest checkpoint or initialise; put the state on devices.
    watchdog.phase("restore")
    schedule, optimizer = create_optimizer(plan)
    sharding = create_sharding(plan)
    checkpoints = open_checkpoints(plan, folder)
    template = abstract_state(plan, optimizer)
    start, state = restore(
      plan, folder, checkpoints, template, hosts, from_step
    ) or (0, initial_state(plan, optimizer))
    state = sharding.put(state, devices)

    # Make the steps, without dropout and stochastic depth and with them; open
    # batches, evaluators and the log.
    watchdog.phase("set-up", start)
    updates = [
      create_update(plan, optimizer, devices, drops=drops)
      for drops in (False, True)
    ]
    teacher = replicate(teacher_inputs(plan), local_devices())
    evaluators = EvalRunner(
      plan, folder / "eval", hosts, should_stop, on_batch=watchdog.progress
    )
    pending = PendingUpdates(
      folder,
      from_step=start,
      order=IndexShuffler(
        len(plan.data.source),
        plan.config.seed,
        plan.config.batch,
        plan.config.data.repeats,
      ),
      checkpoints=checkpoints,
      max_skipped=plan.config.max_skipped,
      enabled=hosts.is_first,
    )
    if hosts.is_first:
      log_start(plan, folder, start, from_step)
    with (
      contextlib.closing(open_batches(plan, hosts, start)) as batches,
      contextlib.closing(checkpoints),
      MetricWriter(
        folder,
        from_step=start,
        total_steps=total_steps,
        profile_steps=plan.config.log.profile_steps,
        enabled=hosts.is_first,
      ) as log,
    ):
      rates = Rates(
        step=start,
        batch=plan.config.batch,
        devices=plan.devices,
        flops_per_image=plan.flops_per_image,
      )
      memory = MemoryMonitor(hosts.index)
      saved_step, is_save_due = start, False
      on_error = log.message if plan.config.on_eval_error == "skip" else None

      def save() -> bool:
        """Starts writing this step's checkpoint, unless it has one.

        Returns False, and does not, within a streak of skipped updates.
        """
        nonlocal saved_step
        if step == saved_step:
          return True
        if pending.streak() and step < total_steps:
          return False
        saved_step = step
        watchdog.phase("save", step)
        # A sharded state is gathered by all hosts.
        if hosts.is_first or plan.config.shard_state:
          log.flush()  # rows are on disk before the checkpoint is
          checkpoints.save(step, sharding.fetch(state, template, devices))
        return True

      # At the top of the loop, `step` updates have been applied.
      for step in range(start, total_steps + 1):
        is_last, is_stopping = step == total_steps, should_stop()

        # Save before evaluating: a failing evaluation costs no training.
        is_save_due |= is_last or is_stopping or has_cadence(plan, step)
        if is_save_due:
          is_save_due = not save()
          is_stopping &= not is_save_due
        due = evaluators.due(step) if step > 0 and not is_stopping else []
        if due and not (step == start and is_evaluated(folder, step, hosts)):
          jax.block_until_ready(state)  # to keep updates out of its seconds
          try:
            if hosts.count > 1:  # one that fails ends the others at once
              save()
              checkpoints.wait()
              hosts.gather(None)
            watchdog.phase("evaluation", step)
            params = sharding.gather(state.eval_params, devices)
            results = evaluators.run(due, params, on_error)
          except PreemptedError:
            is_stopping = save()
          except Exception:
            if save():
              notify(
                f"An evaluation failed; step {step:,} is saved. The same"
                " command evaluates it, --config.on_eval_error=skip trains on."
              )
            raise
          else:
            log.write(step, results)
            log.message(format_results(step, results))
            metric = results.get(plan.config.checkpoint.best)
            if metric is not None:
              is_best = hosts.is_first and checkpoints.is_best(metric)
              checkpoints.record_metric(step, metric)
              if hosts.gather(is_best)[0]:
                save()
        if is_last or is_stopping:
          watchdog.phase("end", step)
          break

        log.profile(step)
        watchdog.phase("batch", step)
        batch = next(batches)
        update = updates[step in drop_steps]
        compiles = step in (start, drop_steps.start, drop_steps.stop)
        watchdog.phase("compile" if compiles else "update", step)
        state, metrics = update(state, batch, *teacher)
        if step == start:
          seconds = time.monotonic() - started
          log.message(f"first update after {seconds:.1f} s")
        pending.push(step + 1, metrics)
        if (step + 1) % log_every == 0 or step + 1 in (1, total_steps):
          # The first update has the schedule's value at 0.
          lr = plan.config.optimizer.learning_rate * schedule(step)
          row = to_row(metrics, lr) | memory.read()
          log.write(step + 1, row | rates.read(step + 1, ledger.seconds()))

    if plan.data.bad_images and (report := plan.data.bad_images.report()):
      print(report)
      write_text(folder / f"bad_images_{hosts.index}.txt", f"{report}\n")
    if is_stopping:
      if hosts.is_first:
        saved = f"and saved at step {step:,}" if step else "before any step"
        print(f"Stopped {saved}. The same command goes on.")
      return EX_TEMPFAIL
    params = jax.block_until_ready(sharding.gather(state.eval_params, devices))
    if hosts.is_first:
      best_step = checkpoints.best_step
      streak = pending.streak()
      run_dir.write_end(plan, folder, to_host(params), best_step, streak)
      print(f"goodput        {ledger.end()}")
    return EX_OK


def dry_run(
  config: ConfigDict,
  workdir: str | None = None,
  *,
  accept_changes: bool = False,
  skip_missing: bool = False,
  from_step: int | None = None,
) -> int:
  """Prints the resolved config and a summary, and checks all that a run does.

  Raises:
    UserError: everything that is missing, or wrong with the folder.
  """
  try:
    with storage_errors(workdir):
      folder = storage_path(workdir) if workdir else None
      if steps := saved_steps(folder):
        run_dir.inherit_gelu(folder, config)
      plan = make_plan(config, load_init=not steps, skip_missing=skip_missing)
      print(plan.config)
      print(plan_summary(plan))
      plan.complaints.raise_all()
      if folder is not None:
        check_run(plan, folder, steps, from_step, accept_changes=accept_changes)
        place = folder
        while not is_in_bucket(place) and not place.exists():
          place = place.parent  # the run will make the folder
        make_folder(place)
  except RetryableError as error:
    raise UserError(str(error)) from error  # there is nothing to start again
  print("Nothing is missing: without --dry_run this trains.")
  return EX_OK


def has_cadence(plan: Plan, step: int) -> bool:
  """Returns whether a checkpoint is due by its cadence."""
  cadences = plan.schedule.checkpoint_every, plan.schedule.milestone_every
  return any(n and step % n == 0 for n in cadences)


def is_evaluated(folder: epath.Path, step: int, hosts: Hosts) -> bool:
  """Returns whether the log has results of the step that the run resumes at."""
  is_logged = hosts.is_first and any(
    name.startswith("eval/")
    for row in read_rows(folder)
    if row["step"] == step
    for name in row
  )
  return hosts.gather(is_logged)[0]


def format_results(step: int, results: dict[str, float]) -> str:
  listed = ", ".join(f"{name} {x:.4f}" for name, x in results.items())
  return f"step {step:,}: {listed}"


def to_row(metrics: dict[str, jax.Array], learning_rate) -> dict:
  """Names an update's metrics as the log does."""
  return {
    f"train/{name}": value
    for name, value in metrics.items()
    if name != "skipped_in_a_row"
  } | {"train/learning_rate": learning_rate}
