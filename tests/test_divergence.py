# SPDX-License-Identifier: Apache-2.0
"""Skipped updates: runs that diverge, and their way back to a checkpoint."""

import json
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
from mixer.training.metrics import MetricWriter
from mixer.training.nonfinite import PendingUpdates

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(autouse=True)
def restored_step(monkeypatch):
  """Undoes `inject_nan`."""
  monkeypatch.setattr(setup, "train_step", setup.train_step)


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


def test_an_update_that_is_not_finite_is_skipped_and_written_down(
  digits_dir, tmp_path
):
  inject_nan([7, 8, 20])
  config = short(digits_dir)

  assert train.train(config, str(tmp_path)) == EX_OK

  lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
  skipped = [json.loads(line) for line in lines]
  assert [row["step"] for row in skipped] == [7, 8, 20]
  assert skipped[0]["positions"] == [6 * 32, 7 * 32 - 1]
  order = IndexShuffler(1_437, config.seed)
  expected = order(np.arange(6 * 32, 7 * 32))
  np.testing.assert_array_equal(skipped[0]["examples"], expected)
  assert np.isnan(skipped[0]["loss"])
  rows = {row["step"]: row for row in read_rows(tmp_path)}
  assert [rows[n]["train/skipped"] for n in (6, 7, 8, 9, 24)] == [0, 1, 2, 2, 3]
  assert rows[9]["train/loss"] > 0
  assert rows[24]["eval/test/loss"] > 0
  leaves = jax.tree.leaves(weights.load(tmp_path))
  assert all(np.isfinite(leaf).all() for leaf in leaves)


SGD = dict(optimizer__name="momentum", optimizer__clip_norm=0.0)


@pytest.mark.parametrize(
  "kept, before, changes",
  [
    (5, {}, dict(optimizer__clip_norm=0.0, schedule__warmup_steps=15)),
    (10, SGD, dict(optimizer__clip_norm=0.1)),
  ],
)
def test_a_run_that_diverged_goes_back_and_ends_as_if_it_had_not(
  kept, before, changes, digits_dir, tmp_path
):
  """The other run was stopped at the checkpoint; the schedule was constant."""
  diverged, stopped = tmp_path / "diverged", tmp_path / "stopped"
  config = short(digits_dir, total_steps=kept, **before)
  assert train.train(config, str(stopped)) == EX_OK
  advice = "up to step 17 .4 in all.*--from_step=10 --accept_changes"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(setup, "train_step", setup.train_step)
    inject_nan([*range(14, 25)])
    with pytest.raises(UserError, match=advice):
      train.train(short(digits_dir, **before), str(diverged))
  assert saved_steps(diverged) == [5, 10]

  for workdir, step in (diverged, kept), (stopped, None):
    config = short(digits_dir, **before | changes)
    options = dict(accept_changes=True, from_step=step)
    assert train.train(config, str(workdir), **options) == EX_OK

  assert_same_weights(diverged, stopped)
  ours, theirs = results(read_rows(diverged)), results(read_rows(stopped))
  assert [row["step"] for row in ours] == list(range(1, 25))
  assert ours[kept:] == theirs[kept:]
  steps = [step for step, _ in tensorboard(diverged)["train/loss"]]
  assert steps == list(range(1, 25))
  assert (diverged / "set_aside_1").exists() == (kept == 5)


def test_checkpoints_set_aside_are_a_run_that_continues(
  digits_dir, tmp_path, capsys
):
  config = short(digits_dir)
  assert train.train(config, str(tmp_path / "run")) == EX_OK
  names = "metrics.jsonl", "weights.npz", "config.json"
  contents = [(tmp_path / "run" / name).read_bytes() for name in names]
  config.optimizer.learning_rate = 1e-4
  config.checkpoint.keep = 1
  back = dict(from_step=15, accept_changes=True)

  assert train.train(config, str(tmp_path / "run"), **back) == EX_OK
  aside = tmp_path / "run" / "set_aside_1"
  assert f"{aside}, the checkpoints of steps 20, 24" in capsys.readouterr().out
  assert saved_steps(aside) == [20, 24]
  assert contents == [(aside / name).read_bytes() for name in names]
  assert train.train(short(digits_dir), str(aside)) == EX_OK

  # A launcher repeats the command: it goes on, and does not go back again,
  # though that checkpoint has expired.
  assert saved_steps(tmp_path / "run") == [24]
  assert train.train(config, str(tmp_path / "run"), **back) == EX_OK
  assert saved_steps(tmp_path / "run") == [24]
  assert not (tmp_path / "run" / "set_aside_2").exists()


def test_a_step_without_a_checkpoint_is_answered_with_those_that_exist(
  digits_dir, tmp_path
):
  config = short(digits_dir, total_steps=10)
  assert train.train(config, str(tmp_path / "run")) == EX_OK

  for start in train.dry_run, train.train:
    with pytest.raises(UserError, match="from_step=7: .* of steps 5, 10"):
      start(config, str(tmp_path / "run"), from_step=7)
    with pytest.raises(UserError, match="from_step=7: .*none"):
      start(config, str(tmp_path / "new"), from_step=7)
  assert saved_steps(tmp_path / "run") == [5, 10]


def test_a_checkpoint_from_within_a_streak_is_not_advised(
  digits_dir, tmp_path, monkeypatch
):
  """Older versions wrote such."""
  inject_nan([*range(9, 25)])
  with monkeypatch.context() as patch:
    patch.setattr(PendingUpdates, "streak", lambda self: 0)
    with pytest.raises(UserError, match="up to step 12"):
      train.train(short(digits_dir), str(tmp_path))
  assert saved_steps(tmp_path) == [5, 10]

  with pytest.raises(UserError, match="up to step 12.*--from_step=5 "):
    train.train(short(digits_dir), str(tmp_path))


def test_within_a_streak_only_the_last_step_is_saved(
  digits_dir, tmp_path, monkeypatch, capsys
):
  inject_nan([9, 10, 11, 23, 24])
  assert train.train(short(digits_dir), str(tmp_path / "whole")) == EX_OK
  assert saved_steps(tmp_path / "whole") == [15, 20, 24]
  out = capsys.readouterr().out
  assert "last 2 updates had no effect" in out and "of step 22." in out
  write = MetricWriter.write

  def write_and_stop(self, step, scalars):
    write(self, step, scalars)
    if step == 10:
      signal.raise_signal(signal.SIGHUP)

  with monkeypatch.context() as patch:
    patch.setattr(MetricWriter, "write", write_and_stop)
    assert train.train(short(digits_dir), str(tmp_path / "run")) == EX_TEMPFAIL
  assert "saved at step 12." in capsys.readouterr().out
  assert saved_steps(tmp_path / "run") == [5, 12]

  assert train.train(short(digits_dir), str(tmp_path / "run")) == EX_OK
  assert_same_weights(tmp_path / "run", tmp_path / "whole")
  ours, theirs = map(read_rows, (tmp_path / "run", tmp_path / "whole"))
  assert results(ours) == results(theirs)


def test_a_run_that_diverges_at_once_saves_nothing(digits_dir, tmp_path):
  config = small(digits_dir, optimizer__learning_rate=1e30, max_skipped=5)
  config.optimizer.clip_norm = 0.0

  with pytest.raises(UserError, match="updates up to step 7 .*another --work"):
    train.train(config, str(tmp_path))

  assert not list((tmp_path / "checkpoints").glob("*"))
