# SPDX-License-Identifier: Apache-2.0
"""Training runs on the digits: files, kills, stops, resumption, errors."""

import contextlib
import dataclasses
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
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
  wait_until,
)

from mixer import evaluate, train, weights
from mixer.cli import EX_OK, EX_TEMPFAIL, EX_USAGE
from mixer.config import EVALUATORS
from mixer.config_check import to_dict
from mixer.data.input_pipeline import eval_batches
from mixer.errors import UserError
from mixer.evaluators import runner
from mixer.training import run_dir
from mixer.training.lock import locked

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def undisturbed(digits_dir, environment, tmp_path_factory):
  """The folder of a run that nothing happened to, in a process of its own."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  done = run(command(digits_dir, workdir), environment)
  assert done.returncode == EX_OK, done.stderr
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
  } <= (rows[-1].keys())
  assert {
    "train/learning_rate",
    "train/gradient_norm",
    "train/update_norm",
    "train/parameter_norm",
    "images_per_second",
    "images_per_second_per_device",
    "data_wait",
  } <= rows[-1].keys()
  assert config["model"]["hidden"] == 16
  assert origin["starts"][0]["packages"]["jax"] == jax.__version__
  assert (undisturbed / "classes.txt").read_text().split() == list("0123456789")
  assert "stem/kernel" in (undisturbed / "parameters.txt").read_text()
  assert weights.load(undisturbed)["stem"]["kernel"].shape == (2, 2, 3, 16)
  picture = (undisturbed / "learning_curve.png").read_bytes()
  assert picture.startswith(b"\x89PNG")
  assert list(undisturbed.glob("events.out.tfevents.*"))


def test_five_kills_at_random_moments_change_nothing(
  undisturbed, digits_dir, environment, tmp_path
):
  """Invariant 2, to the bit; one of the kills falls into a save."""
  moments = random.Random(0)
  fifth = STEPS // 6
  for i in range(5):
    process = subprocess.Popen(
      slowed_down(command(digits_dir, tmp_path), 0.02),
      cwd=ROOT,
      env=environment,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    step = i * fifth + moments.randint(1, fifth)
    wait_until(
      lambda step=step, i=i: (
        has_logged(tmp_path, step) and (i != 2 or is_saving(tmp_path))
      ),
      process,
    )
    process.kill()
    assert process.wait() == -signal.SIGKILL

  done = run(command(digits_dir, tmp_path), environment)

  assert done.returncode == EX_OK, done.stderr
  assert_same_weights(tmp_path, undisturbed)
  assert results(read_rows(tmp_path)) == results(read_rows(undisturbed))
  assert event_steps(tmp_path) == event_steps(undisturbed)
  half_written = [
    path.name
    for path in (tmp_path / "checkpoints").iterdir()
    if not path.name.isdecimal() and path.name != "metrics.json"
  ]
  assert not half_written


def is_saving(workdir):
  folder = workdir / "checkpoints"
  return any(
    path.is_dir() and not path.name.isdecimal() for path in folder.glob("*")
  )


def event_steps(workdir):
  """Steps of every loss that TensorBoard shows, in order."""
  from tensorboard.backend.event_processing import plugin_event_accumulator

  accumulator = plugin_event_accumulator.EventAccumulator(
    str(workdir), size_guidance={plugin_event_accumulator.TENSORS: 0}
  )
  accumulator.Reload()
  return [event.step for event in accumulator.Tensors("train/loss")]


@pytest.mark.parametrize(
  ("number", "kind"), [(signal.SIGINT, "thread"), (signal.SIGTERM, "process")]
)
def test_a_stop_that_is_asked_for_saves_first_and_says_start_again(
  number, kind, undisturbed, digits_dir, environment, tmp_path
):
  changes = {
    "checkpoint.every_steps": 1000,
    "data.workers": 2,
    "data.worker_kind": kind,
  }
  process = subprocess.Popen(
    slowed_down(command(digits_dir, tmp_path, **changes), 0.05),
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  wait_until(lambda: has_logged(tmp_path, 20), process)
  # As a terminal or a scheduler does it: to worker processes as well.
  os.killpg(process.pid, number)
  out, error = process.communicate(timeout=TIMEOUT)

  assert process.returncode == EX_TEMPFAIL, error
  assert "Traceback" not in error
  saved = int(re.search(r"saved at step (\d+)", out)[1])
  assert (tmp_path / "checkpoints" / str(saved)).is_dir()

  # How often it saves and who loads may change on the way.
  done = run(command(digits_dir, tmp_path), environment)

  assert done.returncode == EX_OK, done.stderr
  assert f"Goes on from the checkpoint of step {saved}" in done.stdout
  assert_same_weights(tmp_path, undisturbed)


def test_a_run_whose_terminal_is_closed_saves(
  digits_dir, environment, tmp_path
):
  terminal, end = os.openpty()
  process = subprocess.Popen(
    slowed_down(command(digits_dir, tmp_path), 0.05),
    cwd=ROOT,
    env=environment,
    stdin=end,
    stdout=end,
    stderr=end,
    start_new_session=True,
    preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
  )
  os.close(end)
  wait_until(lambda: has_logged(tmp_path, 13), process)
  os.close(terminal)

  assert process.wait(TIMEOUT) == EX_TEMPFAIL
  steps = [int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")]
  assert max(steps) >= 13


def test_devices_and_accumulation_do_not_change_the_losses(
  undisturbed, digits_dir, tmp_path
):
  """Invariant 2: eight devices, of 4 images each, 2 at once."""
  config = small(digits_dir, max_per_device=2)

  assert train.train(config, str(tmp_path)) == EX_OK

  for one, other in zip(
    read_rows(undisturbed), read_rows(tmp_path), strict=True
  ):
    assert other["train/loss"] == pytest.approx(one["train/loss"], rel=1e-4)
    if one["step"] <= 50:
      assert other["train/loss"] == pytest.approx(one["train/loss"], rel=1e-5)


def test_a_finished_run_started_again_says_so_and_changes_nothing(
  undisturbed, digits_dir, environment
):
  before = read_rows(undisturbed)

  again = run(command(digits_dir, undisturbed), environment)

  assert again.returncode == EX_OK, again.stderr
  assert f"Goes on from the checkpoint of step {STEPS}" in again.stdout
  assert read_rows(undisturbed) == before


def test_eval_finds_the_best_checkpoint_and_a_given_step(
  undisturbed, digits_dir, capsys
):
  rows = [r for r in read_rows(undisturbed) if "eval/test/accuracy" in r]
  best = max(rows, key=lambda row: (row["eval/test/accuracy"], row["step"]))
  config = small(digits_dir)

  assert evaluate.evaluate(config, undisturbed, best=True) == EX_OK

  assert f"step {best['step']} of" in capsys.readouterr().out
  with pytest.raises(UserError, match="no sound checkpoint of step 7|step 7"):
    evaluate.evaluate(config, undisturbed, step=7)


def test_weights_can_be_evaluated_and_trained_on(
  undisturbed, digits_dir, tmp_path, capsys
):
  config = small(digits_dir, init=str(undisturbed))

  assert evaluate.evaluate(config, str(tmp_path)) == EX_OK
  printed = capsys.readouterr().out
  last = read_rows(undisturbed)[-1]
  assert f"{last['eval/test/accuracy']:.5f}" in printed

  config.total_steps = 2
  config.schedule.warmup_steps = 0
  assert train.train(config, str(tmp_path)) == EX_OK
  first = read_rows(tmp_path)[0]
  assert first["train/loss"] < read_rows(undisturbed)[0]["train/loss"]


def test_a_linear_probe_trains_the_head_alone(
  undisturbed, digits_dir, tmp_path
):
  config = small(digits_dir, init=str(undisturbed), init_head="zeros")
  config.total_steps = 3
  config.ema_decay = 0.0
  config.schedule.warmup_steps = 0
  config.optimizer.multipliers = (("head/.*", 1.0), (".*", 0.0))

  assert train.train(config, str(tmp_path)) == EX_OK

  old, new = weights.load(undisturbed), weights.load(tmp_path)
  assert new["head"]["kernel"].any()
  del old["head"], new["head"]
  jax.tree.map(np.testing.assert_array_equal, old, new)


def test_a_run_with_another_config_is_not_gone_on_with_by_mistake(
  undisturbed, digits_dir
):
  config = small(digits_dir, optimizer__learning_rate=0.5)

  with pytest.raises(UserError) as error:
    train.train(config, str(undisturbed))

  assert "optimizer.learning_rate: 0.003 -> 0.5" in str(error.value)
  assert "--accept_changes" in str(error.value)


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


def test_a_checkpoint_of_another_model_is_refused_whole(
  undisturbed, digits_dir
):
  config = small(digits_dir, model__hidden=24)

  with pytest.raises(UserError) as error:
    train.train(config, str(undisturbed), accept_changes=True)

  assert "belongs to another model" in str(error.value)
  assert (undisturbed / "checkpoints" / str(STEPS)).is_dir()


def test_per_class_results_and_confusion_are_written_on_request(
  undisturbed, digits_dir
):
  config = small(
    digits_dir, evals__test__per_class=True, evals__test__confusion=True
  )

  evaluate.evaluate(config, undisturbed)

  per_class = (undisturbed / "eval/test_per_class.csv").read_text()
  rows = [line.split(",") for line in per_class.splitlines()[1:]]
  assert sum(int(row[1]) for row in rows) == 360
  correct = sum(int(row[2]) for row in rows)
  last = read_rows(undisturbed)[-1]
  assert correct / 360 == pytest.approx(last["eval/test/accuracy"])
  confusion = (undisturbed / "eval/test_confusion.csv").read_text()
  matrix = np.array(
    [line.split(",")[1:] for line in confusion.splitlines()[1:]], int
  )
  assert matrix.sum() == 360
  assert np.trace(matrix) == correct
  assert list(matrix.sum(axis=1)) == [int(row[1]) for row in rows]


def test_a_disk_that_takes_nothing_is_said_at_the_start(
  digits_dir, environment, tmp_path
):
  arguments = command(digits_dir, tmp_path)

  done = run(
    ["bash", "-c", 'ulimit -f 0; exec "$@"', "bash", *arguments], environment
  )

  assert done.returncode == EX_USAGE, done.stderr
  assert f"Cannot write to {tmp_path / 'config.json'}: File too" in done.stderr
  assert "Traceback" not in done.stderr


def test_damaged_records_of_a_run_are_named(undisturbed, digits_dir):
  config = small(digits_dir)
  for name, words in (
    ("config.json", "config.json is damaged"),
    ("metrics.jsonl", "Line 2 of .*metrics.jsonl is not a row"),
  ):
    whole = (undisturbed / name).read_bytes()
    (undisturbed / name).write_bytes(b'{"step": 1}\nxx\n' + whole)
    with pytest.raises(UserError, match=words):
      train.train(config, str(undisturbed))
    (undisturbed / name).write_bytes(whole)


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
  undisturbed, digits_dir, tmp_path, monkeypatch
):
  """A stop in the middle of the last evaluation saves and asks for more."""
  config = small(digits_dir, total_steps=4, evals__test__every_steps=0)
  config.schedule.warmup_steps = 1

  with monkeypatch.context() as patch:
    patch.setattr(runner, "eval_batches", signal_first)
    assert train.train(config, str(tmp_path)) == EX_TEMPFAIL
  assert (tmp_path / "checkpoints" / "4").is_dir()
  assert "eval/test/loss" not in read_rows(tmp_path)[-1]

  assert train.train(config, str(tmp_path)) == EX_OK
  assert [row["step"] for row in read_rows(tmp_path)] == [1, 2, 3, 4]
  assert "eval/test/loss" in read_rows(tmp_path)[-1]


def signal_first(*arguments, **options):
  signal.raise_signal(signal.SIGTERM)
  return eval_batches(*arguments, **options)


def test_a_full_disk_leaves_the_checkpoint_before_it(
  undisturbed, digits_dir, environment, tmp_path
):
  """A limit on the size of files stands for the disk's end."""
  arguments = command(digits_dir, tmp_path)
  limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", *arguments]

  full = run(limited, environment)
  assert full.returncode == EX_USAGE, full.stderr
  assert "Traceback" not in full.stderr
  assert "start the same command again" in full.stderr

  done = run(arguments, environment)
  assert done.returncode == EX_OK, done.stderr
  assert_same_weights(tmp_path, undisturbed)


@pytest.mark.parametrize(
  "flags, words",
  [
    (["--config=configs/digit.py"], "no recipe to read"),
    (["--config={tmp}/broken.py"], "broken.py, line 1: ModuleNotFoundError"),
    (
      ["--config=configs/digits.py", "--config.optimizer.learning_rat=1"],
      "no key optimizer.learning_rat; did you mean --config.optimizer.learning",
    ),
    (
      ["--config=configs/digits.py", "--config.batch=63.5"],
      "error: --config.batch=63.5: write a whole number.",
    ),
    (
      ["--config=configs/digits.py", "--config.batch=a: b"],
      "error: --config.batch=a: b: write a whole number.",
    ),
    (
      ["--config=configs/digits.py", "--config.total_epochs=None"],
      "error: --config.total_epochs=None: write a number; 0 unsets it.",
    ),
    (
      ["--config=configs/digits.py", "--config.model.scan=maybe"],
      "error: --config.model.scan=maybe: write true or false.",
    ),
    (["--config=configs/pretrain_i21k.py:B/17"], "Mixer-B/16"),
    (
      ["--config=configs/digits.py", "--workdir=s3://bucket/run"],
      "s3://bucket/run: a folder is local, such as /data, or in a bucket",
    ),
    (
      ["--config=configs/digits.py", "--config.data.data_dir={tmp}"],
      "python -m mixer data prepare digits",
    ),
    (
      ["--config=configs/digits.py", "--workdir=/proc/run"],
      "Cannot write to --workdir=/proc/run",
    ),
    (
      ["--config=configs/digits.py", "--workdir=train.py"],
      "--workdir=train.py (File exists)",
    ),
    (
      ["--config=configs/finetune.py:dataset=cifar11"],
      "error: There is no fine-tuning recipe for 'cifar11'; did you mean",
    ),
    (["--config=configs/digits.py", "batch=64"], "batch=64 is no flag"),
    (["--config=configs/digits.py", "--workdir=gs:/run"], "gs://BUCKET/DIR"),
    (["--config=configs/digits.py", "--workdir=gs://"], "gs://BUCKET/DIR"),
    (["--config=RUN/config.json"], "RUN/config.json is no recipe, but the"),
    (
      ["--config=configs/finetune.py:dataset=/photos"],
      "for a folder of images write dataset=folder:/photos",
    ),
    (
      ["--config=configs/digits.py", "--config.optimizer.lr=0.1"],
      "no key optimizer.lr; did you mean --config.optimizer.learning_rate=0.1?",
    ),
    (
      ["--config=configs/digits.py", "--config.batch_size=64"],
      "no key batch_size; did you mean --config.batch=64?",
    ),
    (["configs/digits.py"], "Name a recipe, such as --config="),
    (["--confg=configs/digits.py"], "did you mean --config=configs/digits.py?"),
  ],
)
def test_what_the_user_must_change_is_one_message_and_exit_2(
  flags, words, environment, tmp_path
):
  (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
  flags = [flag.format(tmp=tmp_path) for flag in flags]
  if not any(flag.startswith("--workdir") for flag in flags):
    flags.append(f"--workdir={tmp_path}/run")

  ended = run([sys.executable, "train.py", *flags], environment)

  assert ended.returncode == EX_USAGE
  assert words in ended.stderr
  assert "Traceback" not in ended.stderr


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


def test_results_without_checkpoints_are_not_overwritten(digits_dir, tmp_path):
  config = small(digits_dir, total_steps=6)
  assert train.train(config, str(tmp_path)) == EX_OK
  shutil.rmtree(tmp_path / "checkpoints")
  before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}

  for start in train.dry_run, train.train:
    with pytest.raises(UserError, match="finished run and no checkpoint"):
      start(config, str(tmp_path))

  assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_a_duration_of_a_flag_replaces_the_recipes_in_another_unit(
  digits_dir, environment
):
  """The recipe has 100 epochs, and a warm-up of 5."""
  done = run(
    [
      *(sys.executable, "train.py", "--config=configs/digits.py", "--dry_run"),
      f"--config.data.data_dir={digits_dir}",
      *("--config.total_steps=20", "--config.schedule.warmup_steps=2"),
    ],
    environment,
  )

  assert done.returncode == EX_OK, done.stderr
  assert re.search(r"length +20 steps, .*warm-up 2 steps", done.stdout)


def test_a_best_result_that_never_comes_is_said_at_the_end(
  digits_dir, tmp_path, monkeypatch, capsys
):
  promised = dataclasses.replace(
    EVALUATORS["classification"], results=lambda options, classes: ["ece"]
  )
  monkeypatch.setitem(EVALUATORS, "classification", promised)
  config = small(digits_dir, checkpoint__best="eval/test/ece")

  assert train.train(config, str(tmp_path)) == EX_OK

  assert "no evaluation gave a number eval/test/ece" in capsys.readouterr().out
