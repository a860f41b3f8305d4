# SPDX-License-Identifier: Apache-2.0
"""Plans a run; creates its optimizer, update, state and batches."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from mixer import weights
from mixer.config import is_lower_better
from mixer.data import preprocess
from mixer.data.input_pipeline import train_batches
from mixer.data_plan import check_classes
from mixer.distributed import Hosts
from mixer.errors import UserError, format_list
from mixer.plan import Plan, make_plan, plan_summary
from mixer.storage import write_text
from mixer.training import run_dir
from mixer.training.checkpoint import Checkpoints
from mixer.training.consistency import wait_for_path
from mixer.training.optimizer import make_optimizer, make_schedule
from mixer.training.run_dir import CHECKPOINTS
from mixer.training.sam import make_radius
from mixer.training.sharding import (
  REPLICATED,
  Replicated,
  Sharded,
  local_devices,
  pmap_update,
  prefetch_to_device,
)
from mixer.training.step import LossConfig, TrainState, create_state, train_step


def plan_run(
  config: ConfigDict,
  folder: epath.Path,
  hosts: Hosts,
  *,
  accept_changes: bool,
  skip_missing: bool,
  from_step: int | None,
) -> Plan:
  """Plans the run and compares it with the run that the folder holds.

  Raises:
    UserError: all complaints about the plan, or see `check_run`.
  """
  with hosts.raise_on_all():
    steps = saved_steps(folder)
  [steps, *_] = hosts.gather(steps)
  with hosts.raise_on_all():
    if steps:
      run_dir.inherit_gelu(folder, config)
    plan = make_plan(config, load_init=not steps, skip_missing=skip_missing)
    plan.complaints.raise_all()
    if hosts.count > 1 and plan.config.on_eval_error == "skip":
      raise UserError(
        "config.on_eval_error = 'skip' needs one host: set it to 'stop'."
      )
    check_run(plan, folder, steps, from_step, accept_changes=accept_changes)
  return plan


def saved_steps(folder: epath.Path | None) -> list[int]:
  """Returns the steps of a run's checkpoints, oldest first; none for None."""
  return Checkpoints(folder / CHECKPOINTS).steps if folder else []


def check_run(
  plan: Plan,
  folder: epath.Path,
  steps: list[int],
  from_step: int | None,
  *,
  accept_changes: bool,
):
  """Compares a plan with the run that the folder holds.

  Raises:
    UserError: that run has another config, other classes or other images, or
      it has left results but no checkpoint to go on from, or none of
      `from_step`.
  """
  if not steps and (folder / weights.RUN_FILE).exists():
    raise UserError(
      f"{folder} holds the weights of a finished run and no checkpoint to go "
      f"on from: choose another --workdir, or move {weights.RUN_FILE} away to "
      "start again."
    )
  if from_step not in (None, *steps) and not run_dir.has_gone_back(
    folder, plan.config, from_step
  ):
    raise UserError(
      f"--from_step={from_step}: {folder} has no checkpoint of this step. It "
      f"has those of steps {format_list([*map(str, steps[::-1])]) or '(none)'}."
    )
  run_dir.check_config(
    folder,
    plan.config,
    accept_changes=accept_changes,
    start=from_step or (steps or [0])[-1],
    total_steps=plan.schedule.total_steps,
  )
  source = plan.data.source
  if classes := weights.trained_classes(folder):
    check_classes(source, classes, os.fspath(folder / weights.CLASSES))
  starts = run_dir.read_starts(folder)
  before = starts[-1].get("data_checksum") if starts else None
  if before not in (None, source.checksum) and not accept_changes:
    raise UserError(
      f"{source.name} has other files, or other labels, than when {folder} was "
      "last trained: bring those back, choose another --workdir, or go on with "
      "these (--accept_changes)."
    )


def create_schedule(plan: Plan) -> optax.Schedule:
  """Returns the factor on the peak learning rate."""
  return make_schedule(
    kind=plan.config.schedule.kind,
    total_steps=plan.schedule.total_steps,
    warmup_steps=plan.schedule.warmup_steps,
    end=plan.config.schedule.end,
  )


def create_optimizer(
  plan: Plan,
) -> tuple[optax.Schedule, optax.GradientTransformation]:
  """Returns the schedule (a factor on the peak rate) and the optimizer."""
  schedule = create_schedule(plan)
  return schedule, make_optimizer(
    plan.model.abstract_params, schedule, **plan.config.optimizer
  )


def create_sharding(plan: Plan) -> Replicated:
  """Returns `Sharded` if the config shards the state, else `Replicated`."""
  if plan.config.shard_state:
    return Sharded(plan.model.abstract_params)
  return REPLICATED


def create_update(
  plan: Plan,
  optimizer: optax.GradientTransformation,
  devices: Sequence[jax.Device],
  *,
  drops: bool = True,
) -> Callable:
  """Returns the plan's `train_step` on all devices; it donates the state.

  With a teacher, it takes `teacher_inputs` after state and batch. `drops` is
  that of `step_options`.
  """
  options = step_options(plan, drops=drops)
  step = functools.partial(train_step, optimizer=optimizer, **options)
  axes = options["sharding"].axes(abstract_state(plan, optimizer))
  has_teacher = plan.teacher.apply is not None
  return pmap_update(step, devices, axes, has_teacher=has_teacher)


def step_options(plan: Plan, *, drops: bool = True) -> dict[str, object]:
  """Returns the options of the plan's `train_step`, but the optimizer.

  Args:
    drops: False for a step outside `SchedulePlan.drop_steps`: its program is
      that of a model without dropout and stochastic depth.
  """
  config, model = plan.config, plan.model.module
  if not drops:
    model = model.clone(dropout=0.0, stoch_depth=0.0)
  loss, smoothing = config.loss, config.label_smoothing
  if plan.data.hierarchy:  # each level has a uniform distribution of its own
    loss = dataclasses.replace(plan.data.hierarchy, label_smoothing=smoothing)
    smoothing = 0.0
  objective = LossConfig(
    loss=loss,
    num_classes=config.model.num_classes,
    label_smoothing=smoothing,
    mixup=config.mixup,
    cutmix=config.cutmix,
    cutmix_share=config.cutmix_share,
    accumulation=plan.data.accumulation,
    ema_decay=config.ema_decay,
    sam_radius=make_radius(
      create_schedule(plan),
      plan.schedule.total_steps,
      rho=config.sam.rho,
      rho_min=config.sam.rho_min,
    ),
    sam_alpha=config.sam.alpha,
    seed=config.seed,
    drop_scale=plan.schedule.drop_scale,
    temperature=config.teacher.temperature,
    teacher_weight=config.teacher.weight,
  )
  return {
    "model": model,
    "objective": objective,
    "sharding": create_sharding(plan),
    "teacher": plan.teacher.apply,
  }


def teacher_inputs(plan: Plan) -> tuple[dict, ...]:
  """Returns the update's further input, a teacher's parameters, if any."""
  return () if plan.teacher.apply is None else (plan.teacher.params,)


def open_checkpoints(plan: Plan, folder: epath.Path) -> Checkpoints:
  """Returns the checkpoints of the run in a folder."""
  options = plan.config.checkpoint
  return Checkpoints(
    folder / CHECKPOINTS,
    keep=options.keep,
    keep_every_steps=plan.schedule.milestone_every,
    best="min" if is_lower_better(options.best) else "max",
  )


def restore(
  plan: Plan,
  folder: epath.Path,
  checkpoints: Checkpoints,
  template: TrainState,
  hosts: Hosts,
  from_step: int | None,
) -> tuple[int, TrainState] | None:
  """Returns step and state of the newest sound checkpoint; None without any.

  The first host chooses the checkpoint, and all restore that one. Going back to
  `from_step` sets later checkpoints aside.

  Raises:
    UserError: the checkpoint is beyond the end of the run, or does not fit.
  """
  restored = None
  with hosts.raise_on_all():
    if hosts.is_first:
      if run_dir.has_gone_back(folder, plan.config, from_step):
        print(f"The last start went back to step {from_step:,} already.")
        from_step = None
      restored = checkpoints.restore(template, from_step)
  step = hosts.gather(restored and restored[0])[0]
  if step is None:
    return None
  with hosts.raise_on_all():
    if step > plan.schedule.total_steps:
      raise UserError(
        f"{folder} has come to step {step:,} already, beyond the "
        f"{plan.schedule.total_steps:,} of this config: choose another "
        "--workdir, or lengthen the run."
      )
    if not hosts.is_first:
      wait_for_path(folder / CHECKPOINTS / str(step))
      restored = checkpoints.restore(template, step)
    elif from_step is not None:
      set_aside(folder, checkpoints, step)
    return restored


def set_aside(folder: epath.Path, checkpoints: Checkpoints, step: int):
  """Moves later checkpoints, with copies of the log, to a folder of the run."""
  later = [str(each) for each in checkpoints.steps if each > step]
  if not later:
    return
  names = (f"set_aside_{i}" for i in itertools.count(1))
  target = next(x for name in names if not (x := folder / name).exists())
  target.mkdir()
  for file in folder.iterdir():
    if file.is_file() and file.suffix in (".json", ".jsonl", ".npz", ".txt"):
      file.copy(target / file.name)
  checkpoints.move_after(step, target / CHECKPOINTS)
  print(
    f"Sets aside, in {target}, the checkpoints of steps {format_list(later)} "
    "and copies of the log and the weights."
  )


def log_start(
  plan: Plan, folder: epath.Path, start: int, from_step: int | None
):
  """Writes the files that describe the run, and prints its summary."""
  if start < plan.schedule.total_steps:
    # The weights of a shorter run, which this one continues.
    (folder / weights.RUN_FILE).unlink(missing_ok=True)
  run_dir.write_start(
    folder,
    plan.config,
    from_step=start,
    went_back_to=from_step,
    data_checksum=plan.data.source.checksum,
  )
  names = "".join(f"{name}\n" for name in plan.data.source.class_names)
  write_text(folder / weights.CLASSES, names)
  overview = parameter_overview.get_parameter_overview(
    plan.model.abstract_params, include_stats=False
  )
  (folder / "parameters.txt").write_text(f"{overview}\n")
  print(plan_summary(plan), flush=True)
  if start:
    print(f"Goes on from the checkpoint of step {start:,}.", flush=True)


def initial_state(
  plan: Plan, optimizer: optax.GradientTransformation
) -> TrainState:
  """Returns the state at step 0, on the host."""

  def init():
    images = jnp.zeros(
      (1, *plan.data.image_size, plan.model.module.image_channels)
    )
    key = jax.random.key(plan.config.seed, impl="threefry2x32")
    return plan.model.module.init(key, images)["params"]

  params = plan.model.initial_params
  if params is None:
    params = jax.jit(init)()
  return jax.device_get(jax.jit(_create(plan, optimizer))(params))


def abstract_state(
  plan: Plan, optimizer: optax.GradientTransformation
) -> TrainState:
  """Returns shapes and dtypes of the whole state, as checkpoints hold it."""
  return jax.eval_shape(_create(plan, optimizer), plan.model.abstract_params)


def _create(plan: Plan, optimizer: optax.GradientTransformation) -> Callable:
  return functools.partial(
    create_state, optimizer=optimizer, average=plan.config.ema_decay > 0
  )


def abstract_inputs(
  plan: Plan,
  optimizer: optax.GradientTransformation,
  devices: Sequence[jax.Device],
) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct], *tuple[dict, ...]]:
  """Returns shapes and dtypes of the update's state, batch and teacher."""
  n = len(devices)
  rows = n, plan.config.batch // n
  image = (*plan.data.image_size, plan.model.module.image_channels)
  batch = {
    "image": jax.ShapeDtypeStruct((*rows, *image), jnp.uint8),
    "label": jax.ShapeDtypeStruct(rows, jnp.int32),
    "index": jax.ShapeDtypeStruct(rows, jnp.uint32),
  }
  state = abstract_state(plan, optimizer)
  teacher = jax.eval_shape(lambda: teacher_inputs(plan))
  return create_sharding(plan).abstract(state, n), batch, *teacher


def open_batches(plan: Plan, hosts: Hosts, start: int) -> Iterator[dict]:
  """Yields the batches from step `start` on, on this host's devices."""
  config = plan.config

  def load():
    for examples in train_batches(
      plan.data.source,
      preprocess.parse(config.data.ops),
      batch=config.batch,
      seed=config.seed,
      repeats=config.data.repeats,
      start_step=start,
      host=hosts.index,
      hosts=hosts.count,
      workers=plan.data.workers,
      bad_images=plan.data.bad_images,
    ):
      # Devices lack the int64 of positions: the place in the batch instead.
      position = examples.pop("position")
      yield examples | {"index": (position % config.batch).astype(np.uint32)}

  return prefetch_to_device(load(), local_devices(), config.data.prefetch)
