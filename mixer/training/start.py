# SPDX-License-Identifier: Apache-2.0
"""From a command to a run: the hosts connect, plan, and begin or go on."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from mixer import weights
from mixer.atomic_write import DISK_ERRORS
from mixer.cli import EX_OK, sigterm_to_keyboard_interrupt
from mixer.cluster import ONE_HOST, Cluster
from mixer.distributed import Hosts, initialize
from mixer.errors import UserError
from mixer.jax_setup import configure_xla, enable_compilation_cache
from mixer.plan import check_classes, make_plan, plan_summary
from mixer.training import preemption, run_dir
from mixer.training.checkpoint import Checkpoints
from mixer.training.consistency import (
  check_same_config,
  check_same_devices,
  check_same_plan,
  check_shared_folder,
)
from mixer.training.loop import Run
from mixer.training.run_dir import CHECKPOINTS


def train(
  config: ConfigDict,
  workdir: str | None,
  *,
  accept_changes: bool = False,
  cluster: Cluster = ONE_HOST,
) -> int:
  """Trains to the end, or until it is asked to stop.

  Args:
    config: from a recipe.
    workdir: the run's folder, which all hosts share.
    accept_changes: go on although the folder's config is another.
    cluster: the hosts, of which each calls this.

  Returns:
    The process's exit code: EX_OK, or EX_TEMPFAIL after saving.

  Raises:
    UserError: something for the user to change; nothing was lost.
  """
  configure_xla(deterministic=config.get("deterministic_operations"))
  enable_compilation_cache()
  with contextlib.ExitStack() as stack:
    stack.enter_context(sigterm_to_keyboard_interrupt())
    hosts = stack.enter_context(initialize(cluster))
    stack.enter_context(disk_errors(workdir))
    folder = _make_shared_folder(hosts, config, workdir)
    check_same_devices(hosts)
    with hosts.raise_on_all():
      if hosts.is_first:
        # Of a host that was lost, the lock may be left for a while.
        wait = cluster.wait if cluster.hosts > 1 else 0.0
        stack.enter_context(run_dir.locked(folder, wait=wait))
      should_stop = stack.enter_context(preemption.catch_signals(hosts))
    begins = not Checkpoints(folder / CHECKPOINTS).steps
    [begins, *_] = hosts.gather(begins)
    with hosts.raise_on_all():
      if not begins:
        run_dir.inherit_gelu(folder, config)
      plan = make_plan(config, begins=begins)
      plan.raise_complaints()
      run_dir.check_config(folder, plan.config, accept_changes=accept_changes)
      if trained := weights.trained_classes(folder):
        check_classes(plan.source, trained, str(folder / weights.CLASSES))
    check_same_plan(hosts, plan)
    return Run(plan, folder, should_stop, hosts).go()


def _make_shared_folder(
  hosts: Hosts, config: ConfigDict, workdir: str | None
) -> Path:
  """Makes the run's folder; raises UserError if the hosts disagree on it."""
  with hosts.raise_on_all():
    folder = run_dir.make_folder(workdir)
  check_same_config(hosts, config)
  check_shared_folder(hosts, folder)
  return folder


@contextlib.contextmanager
def disk_errors(workdir: str | None) -> Iterator[None]:
  """Turns what the disk refuses into a UserError."""
  try:
    yield
  except OSError as error:
    if error.errno not in DISK_ERRORS:
      raise
    raise UserError(
      f"Cannot write to {error.filename or workdir}: {error.strerror}. Free "
      "some space, or make it writable, and start the same command again."
    ) from error


def dry_run(config: ConfigDict, workdir: str | None = None) -> int:
  """Prints what the config comes to; raises UserError with what is missing."""
  plan = make_plan(config)
  print(plan.config)
  print(plan_summary(plan))
  plan.raise_complaints()
  if workdir:
    run_dir.check_config(Path(workdir), plan.config, accept_changes=False)
  print("Nothing is missing: without --dry_run this trains.")
  return EX_OK
