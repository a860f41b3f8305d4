# SPDX-License-Identifier: Apache-2.0
"""Checkpoints survive kills, broken files and full disks, or say so."""

import os
import pathlib
import shutil
import sys
import textwrap
import threading

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from runs import TIMEOUT, run
from small_models import assert_same

from mixer.errors import UserError
from mixer.training import checkpoint, checkpoint_io
from mixer.training.checkpoint import Checkpoints
from mixer.training.optimizer import make_optimizer, make_schedule


@pytest.fixture
def open_checkpoints(tmp_path):
  """Returns a function that opens the folder anew, like a fresh process."""
  opened = []

  def open_folder(**options):
    opened.append(Checkpoints(tmp_path / "checkpoints", **options))
    return opened[-1]

  yield open_folder
  for checkpoints in opened:
    checkpoints.close()


def tree_of(value):
  return {
    "params": {"stem": {"kernel": np.full((64, 64), value, np.float32)}},
    "step": np.asarray(value, np.int32),
  }


def save_steps(checkpoints, *steps, metrics=()):
  for i, step in enumerate(steps):
    if metrics and metrics[i] is not None:
      checkpoints.record_metric(step, metrics[i])
    checkpoints.save(step, tree_of(step))
  checkpoints.wait()


def run_python(code, folder):
  """Runs code in a process of its own, where `folder` is a name."""
  code = f"folder = {str(folder)!r}\n" + textwrap.dedent(code)
  return run([sys.executable, "-c", code], os.environ)


@flax.struct.dataclass
class State:
  params: dict
  optimizer: object
  step: np.ndarray


def test_every_kind_of_tree_comes_back_exactly(open_checkpoints):
  random = np.random.default_rng(0)
  params = {
    "stem/with.odd names": random.standard_normal((3, 4), np.float32),
    "half": random.standard_normal((5,)).astype(ml_dtypes.bfloat16),
    "not_a_number": np.asarray([np.nan, -0.0, np.inf], np.float32),
    "transposed": random.standard_normal((3, 4)).T,
    "strided": np.arange(12)[::3],
  }
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(1e-3), optax.ema(0.9)
  )
  state = State(
    params=params,
    optimizer=jax.tree.map(np.asarray, optimizer.init(params)),
    step=np.asarray(7, np.int32),
  )
  tree = (state, [(np.asarray([True, False]), ()), None, {}])

  checkpoints = open_checkpoints()
  checkpoints.save(7, (*tree, np.float32(1.5)))
  tree = (*tree, np.asarray(1.5, np.float32))
  step, from_arrays = checkpoints.restore(tree)
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
  _, from_shapes = open_checkpoints().restore(shapes)

  assert step == 7
  assert_same(from_arrays, tree)
  assert_same(from_shapes, tree)
  leaves = jax.tree.leaves((from_arrays, from_shapes))
  assert all(isinstance(leaf, np.ndarray) for leaf in leaves)


def test_the_newest_the_best_and_the_milestones_stay(open_checkpoints):
  checkpoints = open_checkpoints(keep=2, keep_every_steps=100)
  assert checkpoints.is_best(-1.0)

  metrics = [float("nan"), 0.9, 0.3, 0.4, 0.1, 0.2, None]
  save_steps(checkpoints, 50, 80, 100, 120, 140, 160, 180, metrics=metrics)

  assert checkpoints.steps == [80, 100, 160, 180]
  assert checkpoints.best_step == 80
  assert open_checkpoints().best_step == 80
  assert checkpoints.is_best(0.91) and not checkpoints.is_best(0.9)
  kept = {"80", "100", "160", "180", "metrics.json"}
  assert set(os.listdir(checkpoints._folder)) == kept


def test_the_best_may_be_the_smallest_and_known_after_it_was_saved(
  open_checkpoints,
):
  checkpoints = open_checkpoints(keep=1, best="min")

  for step, metric in (1, 0.5), (2, 0.2), (3, 0.2), (4, 0.7):
    checkpoints.save(step, tree_of(step))
    checkpoints.record_metric(step, metric)
  save_steps(checkpoints, 5)

  assert checkpoints.steps == [3, 5]
  assert open_checkpoints(best="min").best_step == 3


def test_a_given_step_is_restored_or_those_there_are_named(open_checkpoints):
  checkpoints = open_checkpoints()
  save_steps(checkpoints, 10, 20)
  checkpoints.save(10, tree_of(5))  # a step is written once

  step, tree = checkpoints.restore(tree_of(0), step=10)
  with pytest.raises(UserError, match="step 15 .*there are: 10, 20"):
    checkpoints.restore(tree_of(0), step=15)
  shutil.rmtree(checkpoints._folder / "20" / "d")
  with pytest.raises(UserError, match="/20 is damaged: .*there are: 10"):
    checkpoints.restore(tree_of(0), step=20)

  assert step == 10
  assert_same(tree, tree_of(10))


def test_another_model_is_told_apart_from_damage(open_checkpoints):
  checkpoints = open_checkpoints()
  save_steps(checkpoints, 1, 2)
  template = {
    "params": {
      "stem": {"kernel": np.zeros((64, 5), np.float32)},
      "head": np.zeros((4,), np.float32),
    },
    "step": np.asarray(0, np.int64),
  }

  with pytest.raises(UserError) as caught:
    checkpoints.restore(template)

  message = str(caught.value)
  assert "params/stem/kernel is float32[64, 64] there, float32[64, 5] here" in (
    message
  )
  assert "params/head is absent there, float32[4] here" in message
  assert "step is int32[] there, int64[] here" in message
  assert checkpoints.steps == [1, 2]


def flip(path, position):
  contents = bytearray(path.read_bytes())
  contents[position] ^= 0x04
  path.write_bytes(contents)


def truncate(path, position):
  path.write_bytes(path.read_bytes()[:position])


# Orbax's noise; outside of pytest `mixer` silences it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_broken_file_is_harmless_or_found_out(open_checkpoints):
  checkpoints = open_checkpoints()
  save_steps(checkpoints, 1, 2)
  newest = pathlib.Path(checkpoints._folder, "2")
  whole = newest.with_name("whole")
  shutil.copytree(newest, whole)
  found_out = set()

  files = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file()]
  for file in files:
    size = (whole / file).stat().st_size
    damages = [(flip, p) for p in range(0, size, size // 4 + 1)]
    damages += [(flip, size - 1), (truncate, size // 2), (truncate, 0)]
    damages += [(lambda path, _: path.unlink(), None)]
    for damage, position in damages:
      damage(newest / file, position)
      step, tree = open_checkpoints().restore(tree_of(0))
      shutil.copy(whole / file, newest / file)

      assert_same(tree, tree_of(step))
      if step == 1:
        found_out.add(str(file))

  assert "_CHECKPOINT_METADATA" in found_out
  assert any("ocdbt.process_0/d/" in file for file in found_out)
  assert len(files) >= 8


def test_a_damaged_checkpoint_makes_way_for_its_step(open_checkpoints, caplog):
  save_steps(open_checkpoints(), 1, 2, 3)
  checkpoints = open_checkpoints()
  (checkpoints._folder / "3" / "_CHECKPOINT_METADATA").unlink()

  step, _ = checkpoints.restore(tree_of(0))
  steps_after_restore = checkpoints.steps
  save_steps(checkpoints, 3)

  assert step == 2
  assert "checkpoints/3 is damaged: FileNotFoundError: " in caplog.text
  assert steps_after_restore == [1, 2]
  assert checkpoints.steps == [1, 2, 3]
  assert_same(open_checkpoints().restore(tree_of(0))[1], tree_of(3))
  assert (checkpoints._folder / "3.damaged").is_dir()


def test_a_run_is_not_started_anew_because_all_is_damaged(open_checkpoints):
  checkpoints = open_checkpoints()
  save_steps(checkpoints, 1, 2)
  for step in "12":
    shutil.rmtree(checkpoints._folder / step / "ocdbt.process_0")

  with pytest.raises(UserError, match="(?s)checkpoints/2 .*/1 .*None is left"):
    checkpoints.restore(tree_of(0))


def test_reading_changes_nothing_in_the_folder(open_checkpoints):
  checkpoints = open_checkpoints()
  save_steps(checkpoints, 1, 2)
  shutil.rmtree(checkpoints._folder / "2" / "d")
  (checkpoints._folder / "3.orbax-checkpoint-tmp").mkdir()
  before = sorted(pathlib.Path(checkpoints._folder).rglob("*"))

  step, _ = open_checkpoints().restore(tree_of(0))

  assert step == 1
  assert sorted(pathlib.Path(checkpoints._folder).rglob("*")) == before


def test_what_another_process_deletes_while_it_is_read_is_no_damage(
  open_checkpoints, monkeypatch, caplog
):
  checkpoints = open_checkpoints()
  save_steps(checkpoints, 1, 2)
  read_record = checkpoint_io.read_record

  def delete_newest_first(path):
    if path.name == "2":
      shutil.rmtree(path)
    return read_record(path)

  monkeypatch.setattr(checkpoint_io, "read_record", delete_newest_first)
  step, _ = checkpoints.restore(tree_of(0))

  assert step == 1
  assert "damaged" not in caplog.text


def test_a_kill_during_a_save_leaves_the_one_before(open_checkpoints):
  checkpoints = open_checkpoints()
  save_steps(checkpoints, 1)

  killed = run_python(
    """
    import os, pathlib, signal
    import numpy as np
    from mixer.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder)
    checkpoints.save(2, {"large": np.random.rand(8_000_000)})
    half_written = pathlib.Path(folder).glob
    while checkpoints.steps == [1] and not list(half_written("2.*/*")):
      pass
    os.kill(os.getpid(), signal.SIGKILL)
    """,
    checkpoints._folder,
  )
  left_behind = [p.name for p in checkpoints._folder.glob("2.*")]
  resumed = open_checkpoints()
  step, tree = resumed.restore(tree_of(0))
  save_steps(resumed, 2)

  assert killed.returncode == -9, killed.stderr
  assert len(left_behind) == 1
  assert step == 1
  assert_same(tree, tree_of(1))
  assert sorted(p.name for p in resumed._folder.iterdir()) == ["1", "2"]


def test_a_kill_during_a_deletion_leaves_no_half_checkpoint(
  open_checkpoints, monkeypatch
):
  checkpoints = open_checkpoints(keep=1)

  with monkeypatch.context() as context:
    context.setattr(checkpoint, "_remove_tree", lambda path: None)
    save_steps(checkpoints, 1, 2)
  left_behind = [p.name for p in checkpoints._folder.iterdir()]
  steps = open_checkpoints().steps
  save_steps(checkpoints, 3)

  assert sorted(left_behind) == ["1.deleted", "2"]
  assert steps == [2]
  assert [p.name for p in checkpoints._folder.iterdir()] == ["3"]


def test_a_full_disk_ends_in_advice_and_spares_the_one_before(tmp_path):
  """Writes in flight may leave files behind, until the next save."""
  result = run_python(
    """
    import logging, os, resource
    import numpy as np
    from mixer.errors import UserError
    from mixer.training.checkpoint import Checkpoints

    # It may log the errors of Orbax's other writes, when they are collected.
    logging.getLogger("asyncio").disabled = True
    space = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, space[1]))
    checkpoints = Checkpoints(folder)
    small = {str(i): np.random.rand(30) for i in range(20)}
    large = {str(i): np.random.rand(10_000) for i in range(20)}
    try:
      checkpoints.save(2, small)
      checkpoints.save(4, large)
      checkpoints.save(6, small)
    except UserError as error:
      print(error)
    print(checkpoints.steps, checkpoints.restore(small)[0])

    resource.setrlimit(resource.RLIMIT_FSIZE, space)
    checkpoints.save(6, large)
    checkpoints.close()
    print(sorted(os.listdir(folder)), checkpoints.restore(large)[0])
    """,
    tmp_path,
  )

  assert result.stdout.splitlines() == [
    f"Could not save step 4 in {tmp_path}: File too large. The checkpoint of "
    "step 2 is whole; free some space and start the same command again.",
    "[2] 2",
    "['2', '6'] 6",
  ], result.stderr
  assert result.stderr == ""


def test_a_run_starts_without_orbax(open_checkpoints):
  checkpoints = open_checkpoints()
  save_steps(checkpoints, 1, 2, metrics=[0.5, 0.25])

  result = run_python(
    """
    import sys
    from mixer.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder)
    print(checkpoints.steps, checkpoints.best_step)
    print(Checkpoints(folder + "/empty").restore({}))
    print([name for name in sys.modules if name.startswith("orbax")])
    """,
    checkpoints._folder,
  )

  assert result.stdout == "[1, 2] 1\nNone\n[]\n", result.stderr
  assert result.stderr == ""


def test_a_save_does_not_wait_for_the_disk(open_checkpoints, monkeypatch):
  checkpoints = open_checkpoints()
  write = checkpoint_io.write
  save_returned = threading.Event()

  def write_after_save_returned(*arguments):
    assert save_returned.wait(TIMEOUT)
    write(*arguments)

  monkeypatch.setattr(checkpoint_io, "write", write_after_save_returned)
  checkpoints.save(1, tree_of(1))
  steps_before = checkpoints.steps
  save_returned.set()
  checkpoints.wait()

  assert steps_before == []
  assert checkpoints.steps == [1]


def make_state(**options):
  params = {
    "stem": {"kernel": jnp.ones((3, 2))},
    "head": {"kernel": jnp.full((2,), 2.0)},
  }
  schedule = make_schedule(kind="constant", total_steps=10)
  optimizer = make_optimizer(params, schedule, learning_rate=0.1, **options)
  state = optimizer.init(params)
  state = optimizer.update(params, state, params)[1]
  return jax.device_get({"params": params, "opt_state": state})


FROZEN = dict(multipliers=(("head/.*", 1.0), (".*", 0.0)))


@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_options_of_the_optimizer_may_change_in_mid_run(open_checkpoints, name):
  variants = [{}, dict(weight_decay=0.1, clip_norm=0.1), FROZEN]
  checkpoints = open_checkpoints(keep=9)
  states = [make_state(name=name, **options) for options in variants]

  for step, state in enumerate(states):
    checkpoints.save(step, state)
    for template in states:
      _, restored = checkpoints.restore(template, step)
      assert jax.tree.structure(restored) == jax.tree.structure(template)

      def head(tree):
        leaves = jax.tree.leaves_with_path(tree)
        return [x for path, x in leaves if "head" in jax.tree_util.keystr(path)]

      assert_same(head(restored), head(state))


def test_moments_that_froze_come_back_as_zeros(open_checkpoints):
  checkpoints = open_checkpoints()
  checkpoints.save(1, make_state(**FROZEN))

  _, restored = checkpoints.restore(make_state())

  adam = restored["opt_state"][1]
  assert not adam.mu["stem"]["kernel"].any()
  assert adam.mu["head"]["kernel"].all()


@pytest.mark.parametrize(
  "former, options",
  [
    ("opt_state/0/{}", {}),
    ("opt_state/1/{}", dict(clip_norm=1.0, weight_decay=0.1)),
    ("opt_state/0/inner_state/1/{}", FROZEN | dict(clip_norm=1.0)),
    ("opt_state/0/inner_state/0/{}", FROZEN),
  ],
)
def test_former_names_of_the_optimizers_state_are_read(
  open_checkpoints, former, options
):
  """Stages that were off had no number; metrics were in the record."""
  state = make_state(**options)
  prefix = former.removesuffix("1/{}").removesuffix("0/{}")
  old = {
    name.replace("opt_state/1/", former.format(""), 1).replace(
      "opt_state/5/", f"{prefix}4/", 1
    ): leaf
    for name, leaf in checkpoint_io.name_leaves(state).items()
  }
  assert f"{prefix}4/count" in old
  record = {
    "metric": 0.5,
    "arrays": {name: checkpoint_io._describe(x) for name, x in old.items()},
  }
  seal = {"record": record, "checksum": checkpoint_io._checksum_record(record)}
  checkpoints = open_checkpoints()
  checkpoint_io._import_orbax().save(
    checkpoints._folder / "7", old, custom_metadata=seal
  )

  step, restored = checkpoints.restore(state)

  assert step == checkpoints.best_step == 7
  assert_same(restored, state)


@pytest.mark.parametrize("url", ["s3://bucket/run", "gs:/run", "gs://"])
def test_another_storage_is_refused(url):
  with pytest.raises(UserError, match=f"{url}: .*gs://BUCKET/DIR"):
    Checkpoints(url)
