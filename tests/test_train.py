# SPDX-License-Identifier: Apache-2.0
"""Training runs on the digits: files, kills, stops, resumption, errors."""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import tarfile
import termios
import threading

import jax
import numpy as np
import pytest
import recipes
from runs import (
  ROOT,
  STEPS,
  TIMEOUT,
  assert_same_weights,
  command,
  has_logged,
  read_rows,
  results,
  run,
  slowed_down,
  small,
  tensorboard,
  wait_until,
)

from mixer import evaluate, train, weights
from mixer.cli import EX_OK, EX_TEMPFAIL, EX_USAGE
from mixer.config import EVALUATORS
from mixer.config_check import to_dict
from mixer.data.input_pipeline import eval_batches
from mixer.errors import UserError
from mixer.evaluators import runner
from mixer.storage import storage_errors
from mixer.training import run_dir
from mixer.training.lock import locked

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def undisturbed(digits_dir, environment, tmp_path_factory):
  """The folder of a run that nothing happened to, in a process of its own."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  done = run(command(digits_dir, workdir), environment)
  assert done.returncode == EX_OK, done.stderr
  assert re.search(r"first update after \d+\.\d s", done.stderr)
  return workdir


def test_a_run_leaves_what_others_rely_on(undisturbed):
  rows = read_rows(undisturbed)
  config = json.loads((undisturbed / "config.json").read_text())
  origin = json.loads((undisturbed / "provenance.json").read_text())

  assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
  assert rows[-1]["train/loss"] < rows[0]["train/loss"]
  assert {
    "eval/test/loss",
    "eval/test/accuracy",
    "eval/test/accuracy_top5",
    "train/learning_rate",
    "train/gradient_norm",
    "train/update_norm",
    "train/parameter_norm",
    "images_per_second",
    "images_per_second_per_device",
    "data_wait",
    "memory/process_gib",
    "memory/available_gib",
  } <= rows[-1].keys()
  assert config["model"]["hidden"] == 16
  assert origin["starts"][0]["packages"]["jax"] == jax.__version__
  assert (undisturbed / "classes.txt").read_text().split() == list("0123456789")
  assert "stem/kernel" in (undisturbed / "parameters.txt").read_text()
  assert weights.load(undisturbed)["stem"]["kernel"].shape == (2, 2, 3, 16)
  picture = (undisturbed / "learning_curve.png").read_bytes()
  assert picture.startswith(b"\x89PNG")
  assert list(undisturbed.glob("events.out.tfevents.*"))


def test_however_its_processes_end_a_run_ends_the_same(
  undisturbed, digits_dir, environment, tmp_path
):
  """Invariant 2, to the bit: after a full disk, stops and a kill."""

  def start(**options):
    changes = options.pop("changes", {})
    return subprocess.Popen(
      slowed_down(command(digits_dir, tmp_path, **changes), 0.05),
      cwd=ROOT,
      env=environment,
      start_new_session=True,
      **options,
    )

  # A limit on the size of files stands for the disk's end.
  limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash"]
  full = run([*limited, *command(digits_dir, tmp_path)], environment)
  assert full.returncode == EX_USAGE, full.stderr
  assert "Traceback" not in full.stderr
  assert "start the same command again" in full.stderr

  # How often it saves and who loads may change on the way.
  step, goes_on = 20, ""
  for number, kind in (signal.SIGINT, "thread"), (signal.SIGTERM, "process"):
    rare = {"checkpoint.every_steps": 1000, "data.workers": 2}
    process = start(
      changes=rare | {"data.worker_kind": kind},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    wait_until(lambda step=step: has_logged(tmp_path, step), process)
    # As a terminal or a scheduler does it: to worker processes as well.
    os.killpg(process.pid, number)
    out, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == EX_TEMPFAIL, error
    assert "Traceback" not in error
    assert goes_on in out
    saved = int(re.search(r"saved at step (\d+)", out)[1])
    assert (tmp_path / "checkpoints" / str(saved)).is_dir()
    step, goes_on = saved + 10, f"Goes on from the checkpoint of step {saved}"

  # Its terminal is closed.
  terminal, end = os.openpty()
  process = start(
    **dict.fromkeys(("stdin", "stdout", "stderr"), end),
    preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
  )
  os.close(end)
  wait_until(lambda: has_logged(tmp_path, step), process)
  os.close(terminal)
  assert process.wait(TIMEOUT) == EX_TEMPFAIL
  steps = [int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")]
  saved = max(steps)
  assert saved >= step

  process = start(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  wait_until(lambda: has_logged(tmp_path, saved + 15), process)
  process.kill()
  assert process.wait() == -signal.SIGKILL

  done = run(command(digits_dir, tmp_path), environment)

  assert done.returncode == EX_OK, done.stderr
  assert_same_weights(tmp_path, undisturbed)
  assert results(read_rows(tmp_path)) == results(read_rows(undisturbed))
  ours, theirs = tensorboard(tmp_path), tensorboard(undisturbed)
  assert ours["train/loss"] == theirs["train/loss"]


def test_a_finished_run_started_again_says_so_and_changes_nothing(
  undisturbed, digits_dir, capsys
):
  before = read_rows(undisturbed)

  assert train.train(small(digits_dir), str(undisturbed)) == EX_OK

  printed = capsys.readouterr().out
  assert f"Goes on from the checkpoint of step {STEPS}" in printed
  assert read_rows(undisturbed) == before


def test_eval_finds_the_best_checkpoint_and_a_given_step(
  undisturbed, digits_dir, capsys
):
  rows = [r for r in read_rows(undisturbed) if "eval/test/accuracy" in r]
  best = max(rows, key=lambda row: (row["eval/test/accuracy"], row["step"]))
  config = small(digits_dir, evals__test__per_class=True)

  assert evaluate.evaluate(config, undisturbed, best=True) == EX_OK

  assert f"step {best['step']} of" in capsys.readouterr().out
  csv = (undisturbed / "eval/test_per_class.csv").read_text().splitlines()
  correct = sum(int(line.split(",")[2]) for line in csv[1:])
  assert correct / 360 == pytest.approx(best["eval/test/accuracy"])
  with pytest.raises(UserError, match="step 7"):
    evaluate.evaluate(config, undisturbed, step=7)


def test_weights_can_be_evaluated_and_their_head_trained_alone(
  undisturbed, digits_dir, tmp_path, capsys
):
  config = small(digits_dir, init=str(undisturbed))

  assert evaluate.evaluate(config, str(tmp_path)) == EX_OK
  printed = capsys.readouterr().out
  last = read_rows(undisturbed)[-1]
  assert f"{last['eval/test/accuracy']:.5f}" in printed

  config.total_steps = 2
  config.ema_decay = 0.0
  config.schedule.warmup_steps = 0
  config.optimizer.multipliers = (("head/.*", 1.0), (".*", 0.0))
  assert train.train(config, str(tmp_path)) == EX_OK
  first = read_rows(tmp_path)[0]
  assert first["train/loss"] < read_rows(undisturbed)[0]["train/loss"]
  old, new = weights.load(undisturbed), weights.load(tmp_path)
  assert np.any(old.pop("head")["kernel"] != new.pop("head")["kernel"])
  jax.tree.map(np.testing.assert_array_equal, old, new)


@pytest.mark.parametrize(
  "changes, accept_changes, words",
  [
    (
      {"optimizer__learning_rate": 0.5},
      False,
      "--accept_changes.*\n.*optimizer.learning_rate: 0.003 -> 0.5",
    ),
    ({"model__hidden": 24}, True, "belongs to another model"),
  ],
)
def test_a_run_with_another_config_is_not_gone_on_with_by_mistake(
  undisturbed, digits_dir, changes, accept_changes, words
):
  config = small(digits_dir, **changes)

  with pytest.raises(UserError, match=words):
    train.train(config, str(undisturbed), accept_changes=accept_changes)

  assert (undisturbed / "checkpoints" / str(STEPS)).is_dir()


def test_keys_that_a_run_was_started_before_stand_at_their_defaults(
  digits_dir, tmp_path
):
  config = small(digits_dir)
  older = to_dict(config)
  del older["cutmix"], older["data"]["classes"]
  older["shard_optimizer_state"] = older.pop("shard_state")
  older["model"]["token_mixing"] = older["model"].pop("kernels")
  (tmp_path / "config.json").write_text(json.dumps(older))

  run_dir.check_config(tmp_path, config, accept_changes=False)

  config.cutmix = 1.0
  with pytest.raises(UserError, match="cutmix: 0.0 -> 1.0"):
    run_dir.check_config(tmp_path, config, accept_changes=False)


def test_a_disk_that_takes_nothing_is_said(digits_dir, tmp_path):
  start = dict(from_step=0, went_back_to=None, data_checksum=0)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  words = f"Cannot write to {tmp_path / 'config.json'}: File too large"
  with pytest.raises(UserError, match=words), storage_errors(tmp_path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
      run_dir.write_start(tmp_path, small(digits_dir), **start)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_two_runs_in_one_folder_do_not_get_into_each_others_way(
  undisturbed, digits_dir
):
  with locked(undisturbed):
    with pytest.raises(UserError, match="Another process trains in"):
      train.train(small(digits_dir), str(undisturbed))


def test_a_folder_that_is_left_in_time_is_waited_for(tmp_path, caplog):
  with contextlib.ExitStack() as other:
    other.enter_context(locked(tmp_path))
    threading.Timer(0.5, other.close).start()

    with locked(tmp_path, wait=TIMEOUT):
      pass

  assert "Another process trains in" in caplog.text


def test_what_a_stop_left_unevaluated_is_evaluated_when_the_run_goes_on(
  digits_dir, tmp_path, monkeypatch
):
  """A stop in the middle of the last evaluation saves and asks for more."""
  config = four_steps(digits_dir)

  with monkeypatch.context() as patch:
    patch.setattr(runner, "eval_batches", signal_first)
    assert train.train(config, str(tmp_path)) == EX_TEMPFAIL
  assert (tmp_path / "checkpoints" / "4").is_dir()
  assert "eval/test/loss" not in read_rows(tmp_path)[-1]

  assert train.train(config, str(tmp_path)) == EX_OK
  assert [row["step"] for row in read_rows(tmp_path)] == [1, 2, 3, 4]
  assert "eval/test/loss" in read_rows(tmp_path)[-1]


def four_steps(digits_dir, **changes):
  """A run that is evaluated at its end only."""
  changes |= dict(total_steps=4, schedule__warmup_steps=1)
  return small(digits_dir, evals__test__every_steps=0, **changes)


def signal_first(*arguments, **options):
  signal.raise_signal(signal.SIGTERM)
  return eval_batches(*arguments, **options)


def test_a_run_of_an_older_version_goes_on(digits_dir, tmp_path):
  """Its losses are those of the older version, on another number of devices."""
  with tarfile.open(ROOT / "tests" / "goldens" / "old_run.tar.gz") as archive:
    archive.extractall(tmp_path, filter="data")
  expected = results(read_rows(tmp_path))
  config = recipes.load("digits")
  config.data.data_dir = digits_dir
  config.update_from_flattened_dict(
    {
      "total_epochs": 0.0,
      "total_steps": 6,
      "batch": 16,
      "model.hidden": 4,
      "model.blocks": 1,
      "model.tokens_mlp": 4,
      "model.channels_mlp": 4,
      "schedule.warmup_epochs": 0.0,
      "schedule.warmup_steps": 2,
      "checkpoint.every_epochs": 0.0,
      "checkpoint.every_steps": 3,
      "log.every_steps": 1,
    }
  )

  assert train.train(config, str(tmp_path)) == EX_OK

  steps = results(read_rows(tmp_path))
  starts = json.loads((tmp_path / "provenance.json").read_text())["starts"]
  assert starts[0]["from_step"] == 3
  assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
  for row, before in zip(steps, expected, strict=True):
    assert row == pytest.approx(before, rel=1e-3)


def test_results_without_checkpoints_are_not_overwritten(
  undisturbed, digits_dir, tmp_path
):
  shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "checkpoints")
  before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}

  for start in train.dry_run, train.train:
    with pytest.raises(UserError, match="finished run and no checkpoint"):
      start(small(digits_dir), str(tmp_path))

  assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_a_best_result_that_never_comes_is_said_at_the_end(
  digits_dir, tmp_path, monkeypatch, capsys
):
  promised = dataclasses.replace(
    EVALUATORS["classification"], results=lambda options, classes: ["ece"]
  )
  monkeypatch.setitem(EVALUATORS, "classification", promised)
  config = four_steps(digits_dir, checkpoint__best="eval/test/ece")

  assert train.train(config, str(tmp_path)) == EX_OK

  assert "no evaluation gave a number eval/test/ece" in capsys.readouterr().out
