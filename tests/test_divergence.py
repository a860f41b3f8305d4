# SPDX-License-Identifier: Apache-2.0
"""Skipped updates: runs that diverge, and their way back to a checkpoint."""

import shutil
import signal

import jax
import numpy as np
import pytest
from runs import assert_same_weights, read_rows, results, small, tensorboard

from benchmarks.train_with_nan import inject_nan
from mixer import train, weights
from mixer.cli import EX_OK, EX_TEMPFAIL
from mixer.data.shuffle import IndexShuffler
from mixer.errors import UserError
from mixer.training import setup
from mixer.training.checkpoint import Checkpoints
from mixer.training.metrics import MetricWriter
from mixer.training.nonfinite import PendingUpdates

pytestmark = pytest.mark.usefixtures("compiled_once")


def short(digits_dir, **changes):
  """A run of 24 steps that saves every 5 and ends by 4 skipped updates."""
  defaults = dict(
    total_steps=24,
    max_skipped=4,
    checkpoint__every_steps=5,
    checkpoint__best="",
    evals__test__every_steps=0,
    schedule__kind="constant",
    schedule__warmup_steps=2,
  )
  return small(digits_dir, **defaults | changes)


def saved_steps(workdir):
  paths = (workdir / "checkpoints").iterdir()
  return sorted(int(path.name) for path in paths if path.name.isdecimal())


BAD = [7, 9, 10, 11, 23, 24]


def train_with_nan(steps, config, workdir):
  """Trains; the loss is not finite at these updates."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(setup, "train_step", setup.train_step)  # is set back
    inject_nan(steps)
    return train.train(config, str(workdir))


@pytest.fixture(scope="module")
def whole(digits_dir, tmp_path_factory, compiled_once):
  """The folder of a run with the updates BAD."""
  workdir = tmp_path_factory.mktemp("whole")
  assert train_with_nan(BAD, short(digits_dir), workdir) == EX_OK
  return workdir


def test_an_update_that_is_not_finite_is_skipped_and_written_down(
  whole, digits_dir
):
  skipped = read_rows(whole, "skipped")
  assert [row["step"] for row in skipped] == BAD
  assert skipped[0]["positions"] == [6 * 32, 7 * 32 - 1]
  order = IndexShuffler(1_437, short(digits_dir).seed)
  expected = order(np.arange(6 * 32, 7 * 32))
  np.testing.assert_array_equal(skipped[0]["examples"], expected)
  assert np.isnan(skipped[0]["loss"])
  rows = {row["step"]: row for row in read_rows(whole)}
  counts = [rows[n]["train/skipped"] for n in (6, 7, 8, 9, 11, 12, 24)]
  assert counts == [0, 1, 1, 2, 4, 4, 6]
  assert rows[8]["train/loss"] > 0
  assert rows[24]["eval/test/loss"] > 0
  leaves = jax.tree.leaves(weights.load(whole))
  assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_within_a_streak_only_the_last_step_is_saved(
  whole, digits_dir, tmp_path, monkeypatch, capsys
):
  assert saved_steps(whole) == [15, 20, 24]
  write = MetricWriter.write

  def write_and_stop(self, step, scalars):
    write(self, step, scalars)
    if step == 10:
      signal.raise_signal(signal.SIGHUP)

  config = short(digits_dir)
  with monkeypatch.context() as patch:
    patch.setattr(MetricWriter, "write", write_and_stop)
    assert train_with_nan(BAD, config, tmp_path) == EX_TEMPFAIL
  assert "saved at step 12." in capsys.readouterr().out
  assert saved_steps(tmp_path) == [5, 12]

  assert train_with_nan(BAD, config, tmp_path) == EX_OK
  out = capsys.readouterr().out
  assert "last 2 updates had no effect" in out and "of step 22." in out
  assert_same_weights(tmp_path, whole)
  assert results(read_rows(tmp_path)) == results(read_rows(whole))


def test_a_step_without_a_checkpoint_is_answered_with_those_that_exist(
  whole, digits_dir, tmp_path
):
  config = short(digits_dir)

  for start in train.dry_run, train.train:
    with pytest.raises(UserError, match="from_step=7: .* of steps 24, 20, 15"):
      start(config, str(whole), from_step=7)
    with pytest.raises(UserError, match="from_step=7: .*none"):
      start(config, str(tmp_path / "new"), from_step=7)
  assert saved_steps(whole) == [15, 20, 24]


def test_a_run_that_diverged_goes_back_and_ends_as_if_it_had_not(
  digits_dir, tmp_path, capsys
):
  """The other run never came further; the schedule was constant."""
  diverged, other = tmp_path / "diverged", tmp_path / "other"
  before = dict(optimizer__name="momentum", optimizer__clip_norm=0.0)
  after = dict(optimizer__clip_norm=0.1, schedule__warmup_steps=15)
  advice = "up to step 17 .4 in all.*--from_step=10 --accept_changes"
  config = short(digits_dir, **before)
  with pytest.raises(UserError, match=advice):
    train_with_nan([*range(14, 25)], config, diverged)
  assert saved_steps(diverged) == [5, 10]
  shutil.copytree(diverged, other)
  shutil.rmtree(other / "checkpoints" / "10")
  (diverged / "weights.npz").write_bytes(b"of a shorter run")
  names = "metrics.jsonl", "weights.npz", "config.json"
  contents = [(diverged / name).read_bytes() for name in names]

  changed = short(digits_dir, **before | after, checkpoint__keep=1)
  back = dict(accept_changes=True, from_step=5)
  assert train.train(changed, str(diverged), **back) == EX_OK
  printed = capsys.readouterr().out
  assert train.train(changed, str(other), accept_changes=True) == EX_OK

  assert_same_weights(diverged, other)
  ours, theirs = results(read_rows(diverged)), results(read_rows(other))
  assert [row["step"] for row in ours] == list(range(1, 25))
  assert ours == theirs
  steps = [step for step, _ in tensorboard(diverged)["train/loss"]]
  assert steps == list(range(1, 25))

  # What is set aside is a run that continues.
  aside = diverged / "set_aside_1"
  assert f"{aside}, the checkpoints of steps 10 and" in printed
  assert saved_steps(aside) == [10]
  assert contents == [(aside / name).read_bytes() for name in names]
  with pytest.raises(UserError, match=advice):
    train_with_nan([*range(14, 25)], config, aside)

  # A launcher repeats the command: it goes on, and does not go back again,
  # though that checkpoint has expired.
  assert saved_steps(diverged) == [24]
  assert train.train(changed, str(diverged), **back) == EX_OK
  assert not (diverged / "set_aside_2").exists()
  # Nothing is later than the newest checkpoint.
  assert train.train(changed, str(other), from_step=24) == EX_OK
  assert not (other / "set_aside_1").exists()


@pytest.mark.parametrize(
  "saved, advice",
  [([5, 10], "--from_step=5 "), ([10], "another --work"), ([], "another --w")],
)
def test_a_checkpoint_from_within_a_streak_is_not_advised(
  saved, advice, tmp_path
):
  """Older versions wrote such."""
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  for step in saved:
    checkpoints.save(step, {"step": np.asarray(step)})
  pending = PendingUpdates(
    tmp_path,
    from_step=0,
    order=IndexShuffler(1_437, 0, 32),
    checkpoints=checkpoints,
    max_skipped=4,
  )

  with pytest.raises(UserError, match=f"up to step 12 .*{advice}"):
    for step in range(1, 25):
      in_a_row = np.int32(max(0, step - 8))
      counts = {"skipped": in_a_row, "skipped_in_a_row": in_a_row}
      pending.push(step, counts | {"loss": np.float32("nan")})
