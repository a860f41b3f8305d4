# SPDX-License-Identifier: Apache-2.0
"""Sweeps of real runs on the digits: what they choose and report."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import recipes
from absl import flags
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import config_flags

from mixer.config import evaluator
from mixer.data.__main__ import prepare
from mixer.errors import UserError
from mixer.front_door import CHANGE_SOMETHING, DONE, START_AGAIN
from mixer.models import cost
from mixer.plan import make_plan
from mixer.sweep import data_sets, protocol, stops
from mixer.sweep.plan import choose, plan_sweep
from mixer.sweep.runs import Outcome, grid_runs
from mixer.training import loop

ROOT = Path(__file__).parent.parent
STEPS = 24
METRIC, REPORT = "eval/minival/accuracy", "eval/test/accuracy"
# The digits recipe, small, with a held-out part.
SMALL = {
  "total_epochs": 0.0,
  "total_steps": STEPS,
  "batch": 32,
  "model.hidden": 16,
  "model.blocks": 1,
  "model.tokens_mlp": 8,
  "model.channels_mlp": 32,
  "mixup": 0.0,
  "average_decay": 0.0,
  "schedule.warmup_epochs": 0.0,
  "schedule.warmup_steps": 2,
  "checkpoint.every_epochs": 0.0,
  "checkpoint.every_steps": 8,
  "checkpoint.best": METRIC,
  "evals.test.every_epochs": 0.0,
  "log.every_steps": 1,
  "data.split": "train[:90%]",
  "data.examples": 1_293,
  "sweep.learning_rates": (0.001, 0.01),
  "sweep.metric": METRIC,
  "sweep.full_split": "train",
  "sweep.full_examples": 1_437,
  "sweep.seeds": 2,
}


def small(digits_dir, **changes):
  config = recipes.load("digits")
  config.data.data_dir = digits_dir
  config.evals.minival = evaluator(split="train[90%:]", ops="central_crop(8)")
  config.update_from_flattened_dict(
    SMALL | {key.replace("__", "."): value for key, value in changes.items()}
  )
  return config


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
  """The same program is compiled in one test only."""
  options = {
    "jax_disable_most_optimizations": True,
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  before = {key: jax.config.values[key] for key in options}
  for key, value in options.items():
    jax.config.update(key, value)
  yield
  for key, value in before.items():
    jax.config.update(key, value)
  compilation_cache.reset_cache()


def read_rows(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def read_found(folder):
  return json.loads((folder / "sweep.json").read_text())


def results(found):
  """What is found, without the circumstances."""
  keys = "learning_rate", "means", "grid", "final"
  return {key: found[key] for key in keys}


@pytest.fixture(scope="module")
def swept(digits_dir, tmp_path_factory):
  """The folder of a sweep over two sound learning rates and a bad one."""
  folder = tmp_path_factory.mktemp("swept")
  config = small(digits_dir, sweep__learning_rates=(0.001, 1e30, 0.01))
  assert protocol.sweep(config, str(folder)) == DONE
  return folder


def test_what_a_sweep_reports_is_what_its_runs_have_logged(swept):
  found = read_found(swept)

  last = {
    rate: read_rows(swept / f"lr_{rate}")[-1] for rate in ("0.001", "0.01")
  }
  best = max(last, key=lambda rate: last[rate][METRIC])
  assert last["0.001"][METRIC] != last["0.01"][METRIC]
  assert found["learning_rate"] == float(best)
  finals = [
    read_rows(swept / f"final_lr_{best}_seed_{seed}")[-1] for seed in (0, 1)
  ]
  assert finals[0][REPORT] != finals[1][REPORT]
  for name in (REPORT, "eval/test/loss", "eval/test/accuracy_top5"):
    values = [row[name] for row in finals]
    assert found["means"][name] == {
      "mean": pytest.approx(np.mean(values), rel=1e-12),
      "deviation": pytest.approx(np.std(values, ddof=1), rel=1e-12),
      "runs": 2,
    }
  for runs, rows in (found["grid"], last.values()), (found["final"], finals):
    sound = [run for run in runs if not run["failure"]]
    for run, row in zip(sound, rows, strict=True):
      assert row["step"] == STEPS
      assert run["results"] == {k: v for k, v in row.items() if "eval/" in k}
  assert found["config"]["sweep"]["learning_rates"] == [0.001, 1e30, 0.01]
  assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:+]+", found["date"])


def test_the_table_has_every_run_and_the_mean_in_its_first_line(swept):
  text = (swept / "sweep.md").read_text()

  found = read_found(swept)
  mean = found["means"][REPORT]
  assert f"{REPORT} **{mean['mean']:.5f} ± {mean['deviation']:.5f}**" in text
  rows = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in text.splitlines()
    if line.startswith("|")
  ]
  by_folder = {row[-2]: row for row in rows}
  for run in found["grid"] + found["final"]:
    row = by_folder[run["folder"]]
    for name, value in run["results"].items():
      # Losses are in the JSON file alone: the table would be too wide to read.
      assert (f"{value:.5f}" in row) == (not name.endswith("/loss"))
  assert by_folder[f"lr_{found['learning_rate']:g}"][-1] == "chosen"


def test_a_diverging_rate_is_passed_over_and_said_why(swept):
  [failed] = [run for run in read_found(swept)["grid"] if run["failure"]]

  assert failed["learning_rate"] == 1e30
  assert "nothing is saved any more" in failed["failure"]
  assert "failed: At step" in (swept / "sweep.md").read_text()


def test_final_runs_take_all_images_and_drop_the_evaluator_of_the_rate(swept):
  rate = read_found(swept)["learning_rate"]

  grid = json.loads((swept / f"lr_{rate:g}" / "config.json").read_text())
  assert grid["data"]["split"] == "train[:90%]"
  assert set(grid["evals"]) == {"minival", "test"}
  for seed in (0, 1):
    folder = swept / f"final_lr_{rate:g}_seed_{seed}"
    final = json.loads((folder / "config.json").read_text())
    assert final["seed"] == seed
    assert final["optimizer"]["learning_rate"] == rate
    assert final["data"]["split"] == "train"
    assert final["data"]["examples"] == 1_437
    assert set(final["evals"]) == {"test"}
    assert final["checkpoint"]["best"] == ""


def test_finished_and_failed_runs_are_not_run_again(
  swept, digits_dir, monkeypatch, capsys
):
  before = results(read_found(swept))
  config = small(digits_dir, sweep__learning_rates=(0.001, 1e30, 0.01))
  monkeypatch.setattr(loop, "train", never)

  assert protocol.sweep(config, str(swept)) == DONE

  assert results(read_found(swept)) == before
  assert "lr_0.001: finished" in capsys.readouterr().out


def never(*arguments, **options):
  raise AssertionError("It trains.")


def test_a_longer_grid_adds_runs_and_keeps_those_there_are(
  swept, digits_dir, tmp_path, monkeypatch
):
  folder = shutil.copytree(swept, tmp_path / "swept")
  config = small(
    digits_dir,
    sweep__learning_rates=(0.001, 0.01, 0.05),
    sweep__seeds=1,
  )
  trained = []

  def train(config, workdir, **options):
    trained.append(Path(workdir).name)
    return real(config, workdir, **options)

  real = loop.train
  monkeypatch.setattr(loop, "train", train)
  assert protocol.sweep(config, str(folder)) == DONE

  found, before = read_found(folder), read_found(swept)
  assert found["grid"][:2] == before["grid"][:2]
  assert found["learning_rate"] == 0.05, "the test is for a better one"
  assert trained == [
    "lr_0.05",
    "final_lr_0.05_seed_0",
  ]
  assert read_rows(folder / "final_lr_0.01_seed_0"), "the old ones stay"


def kill_at(folder, step):
  """Sends this process SIGTERM when a run has logged a step."""

  def wait():
    while True:
      rows = folder / "metrics.jsonl"
      if rows.exists() and rows.read_bytes().count(b"\n") >= step:
        os.kill(os.getpid(), signal.SIGTERM)
        return
      time.sleep(0.0005)

  threading.Thread(target=wait, daemon=True).start()


def test_an_interrupted_sweep_goes_on_and_ends_with_the_same_results(
  swept, digits_dir, tmp_path, capsys
):
  config = small(digits_dir, sweep__learning_rates=(0.001, 1e30, 0.01))
  for name in "lr_0.01", "final_lr_0.01_seed_1":
    kill_at(tmp_path / name, 4)
    with stops.heard() as stop_asked:
      code = protocol.sweep(config, str(tmp_path), stop_asked=stop_asked)
    assert code == START_AGAIN
    assert not (tmp_path / "sweep.json").exists()
    assert not (tmp_path / name / "weights.npz").exists()
    assert re.search(r"saved at step \d+", capsys.readouterr().out)

  assert protocol.sweep(config, str(tmp_path)) == DONE

  assert "Goes on from the checkpoint of step" in capsys.readouterr().out
  assert results(read_found(tmp_path)) == results(read_found(swept))


def test_a_stop_that_comes_after_a_runs_last_step_ends_the_sweep(
  digits_dir, tmp_path, monkeypatch, capsys
):
  real = loop.draw_learning_curve

  def signal_first(folder):
    signal.raise_signal(signal.SIGTERM)
    return real(folder)

  monkeypatch.setattr(loop, "draw_learning_curve", signal_first)
  with stops.heard() as stop_asked:
    config = small(digits_dir)
    code = protocol.sweep(config, str(tmp_path), stop_asked=stop_asked)

  assert code == START_AGAIN
  assert "Stopped between two runs" in capsys.readouterr().out
  assert (tmp_path / "lr_0.001" / "weights.npz").exists()
  assert not (tmp_path / "lr_0.01").exists()


def test_a_stop_between_runs_is_ctrl_c_and_handlers_come_back():
  before = signal.getsignal(signal.SIGTERM)

  with pytest.raises(KeyboardInterrupt), stops.heard():
    signal.raise_signal(signal.SIGTERM)

  assert signal.getsignal(signal.SIGTERM) == before
  assert signal.set_wakeup_fd(-1) == -1


def test_of_equal_rates_the_lowest_is_chosen_and_of_losses_the_least(
  digits_dir, tmp_path
):
  config = small(digits_dir, sweep__learning_rates=(0.3, 0.1, 0.2, 0.4))
  runs = grid_runs(config, tmp_path)
  values = (0.5, 0.75, 0.75, float("nan"))
  outcomes = [
    Outcome(run, {METRIC: value, "eval/minival/loss": value})
    for run, value in zip(runs, values, strict=True)
  ]

  assert choose(config, outcomes).run.learning_rate == 0.2
  config.sweep.metric = "eval/minival/loss"
  assert choose(config, outcomes).run.learning_rate == 0.1
  assert choose(config, outcomes[-1:]) is None


def test_where_all_rates_fail_the_reasons_are_the_message(digits_dir, tmp_path):
  config = small(digits_dir, sweep__learning_rates=(1e30,))

  with pytest.raises(UserError) as error:
    protocol.sweep(config, str(tmp_path))

  assert f"has come to {METRIC}: try lower rates" in str(error.value)
  assert "lr_1e+30: At step 8" in str(error.value)
  assert not (tmp_path / "sweep.json").exists()


@pytest.mark.parametrize(
  "changes, words",
  [
    (
      {"sweep.metric": "eval/minval/accuracy"},
      "sweep.metric = 'eval/minval/accuracy' is a result of no evaluator that "
      "the config has; did you mean eval/minival/accuracy?",
    ),
    ({"sweep.metric": ""}, "config.sweep.metric, the result that"),
    (
      {"sweep.report": METRIC},
      "is a result of no evaluator that the final runs have; did you mean",
    ),
    ({"sweep.learning_rates": ()}, "config.sweep.learning_rates is empty"),
    ({"sweep.learning_rates": (0.1, -1)}, "has -1: rates are above 0"),
    ({"sweep.learning_rates": ("x",)}, "has 'x': rates are above 0"),
    (
      {"sweep.learning_rates": (0.1, 0.1)},
      "rates that are the same to six digits (lr_0.1)",
    ),
    ({"sweep.seeds": 0}, "config.sweep.seeds = 0 must be 1 or more"),
    (
      {"sweep.full_examples": 1_436},
      "In the final runs: config.data: digits has 1437 examples in 'train', "
      "and not 1436: set config.sweep.full_examples = 1437",
    ),
    (
      {"sweep.full_split": "trian"},
      "In the final runs: config.data: digits has no split 'trian'",
    ),
    ({"sweep.full_split": None}, "config.sweep.full_examples is set, but"),
    ({"evals.test.name": "cifar10"}, "cifar10 is not prepared"),
    ({"init": "nothing.npz"}, "config.init = nothing.npz"),
  ],
)
def test_what_is_wrong_is_said_before_the_first_run(
  changes, words, digits_dir, tmp_path, capsys
):
  config = small(digits_dir)
  for key, value in changes.items():
    *path, last = key.split(".")
    part = config
    for name in path:
      part = part[name]
    with part.ignore_type():
      part[last] = value

  with pytest.raises(UserError) as error:
    protocol.dry_run(config, str(tmp_path / "new"))

  assert words in str(error.value)
  assert not (tmp_path / "new").exists()


def test_all_that_is_wrong_is_said_together(digits_dir, tmp_path):
  config = small(
    digits_dir,
    sweep__metric="x",
    sweep__full_examples=7,
    evals__test__name="cifar10",
  )

  with pytest.raises(UserError) as error:
    protocol.sweep(config, str(tmp_path))

  for words in ("sweep.metric = 'x'", "full_examples = 1437", "cifar10 is not"):
    assert str(error.value).count(words) == 1
  assert not (tmp_path / "lr_0.001").exists()


def test_a_dry_run_counts_runs_steps_and_images(digits_dir, tmp_path, capsys):
  config = small(digits_dir, sweep__learning_rates=(0.1, 0.2, 0.3))

  assert protocol.dry_run(config, str(tmp_path)) == DONE

  out = capsys.readouterr().out
  assert "grid          3 runs, learning rates 0.1, 0.2, 0.3;" in out
  assert "final         2 runs on train (1,437 examples)" in out
  assert f"in total      5 runs, {5 * STEPS} steps, 3,840 images" in out


def test_folders_with_other_runs_are_refused_unless_told(
  swept, digits_dir, tmp_path
):
  config = small(digits_dir, optimizer__b1=0.8)

  plan = plan_sweep(config, swept)

  [of_grid, of_finals] = plan.problems
  assert f"{swept / 'lr_0.001'} holds a run with another config" in of_grid
  assert "optimizer.b1: 0.9 -> 0.8" in of_grid
  assert f"The same holds for {swept / 'lr_0.01'}" in of_grid
  assert "final_lr_0.01_seed_0 holds a run" in of_finals
  assert not plan_sweep(config, swept, accept_changes=True).problems
  [inside] = plan_sweep(small(digits_dir), swept / "lr_0.01").problems
  assert "holds a run, and no sweep" in inside


def test_a_result_that_finished_runs_lack_is_asked_for_in_vain(
  swept, digits_dir
):
  config = small(digits_dir, sweep__metric="eval/other/accuracy")
  config.evals.other = evaluator(split="train[90%:]", ops="central_crop(8)")

  first, *_ = plan_sweep(config, swept).problems

  assert "lr_0.001 ended without eval/other/accuracy" in first
  assert METRIC in first


def test_where_no_split_is_held_back_the_final_runs_keep_all_evaluators(
  digits_dir, tmp_path
):
  config = small(
    digits_dir,
    sweep__full_split=None,
    sweep__full_examples=None,
    sweep__report=METRIC,
  )

  plan = plan_sweep(config, tmp_path)

  assert not plan.problems
  assert plan.final_config.data.split == "train[:90%]"
  assert set(plan.final_config.evals) == {"minival", "test"}
  assert plan.final_config.checkpoint.best == METRIC


RECIPE = """
import sys
sys.path.append({tests!r})
import test_sweep
from mixer.config import parse_arg

DATA_SETS = {{"low": "digits/0to4", "high": "digits/5to9", "none": "cifar10"}}
AVERAGE = "Avg 3"
GROUPS = {{"digits": ("low", "high")}}

def get_config(arg=None):
  arg = parse_arg(arg, dataset="low", rates=1)
  config = test_sweep.small({data!r}, total_steps=12)
  config.model.num_classes = 5
  config.data.name = DATA_SETS[arg.dataset]
  config.data.examples = config.sweep.full_examples = None
  config.evals.test.examples = None
  config.sweep.learning_rates = (0.01, 0.02)[:arg.rates]
  return config
"""


@pytest.fixture(scope="module")
def recipe(digits_dir, tmp_path_factory):
  """A recipe with three data sets, of which two are there."""
  for name in "digits/0to4", "digits/5to9":
    prepare(name, digits_dir)
  file = tmp_path_factory.mktemp("recipe") / "recipe.py"
  file.write_text(RECIPE.format(tests=str(ROOT / "tests"), data=digits_dir))
  return file


@pytest.fixture(scope="module")
def several_swept(recipe, tmp_path_factory):
  """The folder of sweeps on the two data sets that are there."""
  folder = tmp_path_factory.mktemp("several")
  several = chosen(recipe, folder, ["all"], seeds=1)
  assert data_sets.sweep(several, **QUIETLY | {"skip_missing": True}) == DONE
  return folder


QUIETLY = {
  "skip_missing": False,
  "accept_changes": False,
  "stop_asked": lambda: False,
}


def test_several_data_sets_are_swept_and_averaged(several_swept):
  found = read_found(several_swept)
  means = [
    read_found(several_swept / name)["means"][REPORT]["mean"]
    for name in ("low", "high")
  ]

  assert means[0] != means[1]
  assert found["means"] == {
    "digits": pytest.approx(np.mean(means)),
    "mean of these": pytest.approx(np.mean(means)),
  }
  assert found["left_out"] == ["none"]
  text = (several_swept / "sweep.md").read_text()
  for name, mean in zip(("low", "high"), means, strict=True):
    assert re.search(rf"\| {name} +\| +0.01 +\| +{mean:.5f} +\| +1 +\|", text)
  assert re.search(rf"\| digits +\| +\| +{np.mean(means):.5f} ", text)
  assert "left out: not there" in text
  assert "It is not the paper's, which is over 3 data sets" in text
  assert "Avg 3" not in text


def test_the_mean_over_all_data_sets_has_the_papers_name(
  several_swept, recipe, tmp_path, monkeypatch
):
  folder = shutil.copytree(several_swept, tmp_path / "several")
  shutil.copytree(folder / "high", folder / "none")
  means = [
    read_found(folder / name)["means"][REPORT]["mean"]
    for name in ("low", "high", "high")
  ]
  monkeypatch.setattr(loop, "train", never)
  file = recipe.with_name("three.py")
  file.write_text(recipe.read_text().replace("cifar10", "digits/5to9"))

  assert (
    data_sets.sweep(chosen(file, folder, ["all"], seeds=1), **QUIETLY) == DONE
  )

  assert read_found(folder)["means"]["Avg 3"] == pytest.approx(np.mean(means))
  text = (folder / "sweep.md").read_text()
  assert re.search(rf"\| Avg 3 +\| +\| +{np.mean(means):.5f} ", text)
  assert "not the paper's" not in text


def test_a_data_set_without_a_result_does_not_stop_the_others(
  several_swept, recipe, tmp_path, monkeypatch
):
  folder = shutil.copytree(several_swept, tmp_path / "several")
  (folder / "low" / "lr_0.01" / "failed.txt").write_text("It was too warm.\n")
  monkeypatch.setattr(loop, "train", never)
  several = chosen(recipe, folder, ["low", "high"], seeds=1)

  with pytest.raises(UserError, match="lr_0.01: It was too warm"):
    data_sets.sweep(several, **QUIETLY)

  found = read_found(folder)
  assert found["data_sets"].keys() == {"high"}
  assert "It was too warm" in found["failures"]["low"]
  assert re.search(r"\| +failed ", (folder / "sweep.md").read_text())


def chosen(recipe, workdir, names, arg="", **overrides):
  """What --datasets comes to."""
  values = flags.FlagValues()
  line = [
    "sweep",
    f"--config={recipe}{':' if arg else ''}{arg}",
    *(f"--config.sweep.{key}={value}" for key, value in overrides.items()),
  ]
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=line)
  values(line)
  return data_sets.choose(values["config"], names, str(workdir))


def test_every_data_set_has_what_the_command_line_says(recipe, tmp_path):
  several = chosen(recipe, tmp_path, ["all"], arg="rates=2", seeds=5)

  assert list(several.configs) == ["low", "high", "none"]
  assert several.configs["high"].data.name == "digits/5to9"
  for config in several.configs.values():
    assert config.sweep.learning_rates == (0.01, 0.02)
    assert config.sweep.seeds == 5


@pytest.mark.parametrize(
  "names, arg, words",
  [
    (["low", "hgih"], "", "has no 'hgih'; did you mean high?"),
    (["all"], "dataset=low", "--datasets stands in the place"),
    (["all"], "low,rates=2", "--datasets stands in the place"),
  ],
)
def test_data_sets_that_the_recipe_does_not_take_are_named(
  names, arg, words, recipe, tmp_path
):
  with pytest.raises(ValueError, match=words.replace("?", r"\?")):
    chosen(recipe, tmp_path, names, arg)


def test_what_is_wrong_with_several_is_said_once(recipe, tmp_path):
  several = chosen(recipe, tmp_path, ["all"], metric="eval/minivl/loss")

  with pytest.raises(UserError) as error:
    data_sets.dry_run(several, skip_missing=True, accept_changes=False)

  said = str(error.value)
  assert said.startswith("low: config.sweep.metric = 'eval/minivl/loss' is")
  assert said.count("eval/minivl/loss") == 1
  assert said.count("cifar10 is not prepared") == 1


def command(recipe, workdir, *flags):
  """Runs `python -m mixer.sweep`."""
  return subprocess.run(
    [
      sys.executable,
      "-m",
      "mixer.sweep",
      f"--config={recipe}",
      f"--workdir={workdir}",
      *flags,
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.parametrize(
  "flag, words",
  [
    ("--skip_missing", "--skip_missing is for several data sets"),
    ("--datasets=all", "cifar10 is not prepared"),
  ],
)
def test_what_the_user_must_change_is_one_message_and_exit_2(
  flag, words, recipe, tmp_path
):
  ended = command(recipe, tmp_path / "new", "--dry_run", flag)

  assert ended.returncode == CHANGE_SOMETHING
  assert words in ended.stderr
  assert "Traceback" not in ended.stderr
  assert not (tmp_path / "new").exists()


def write_images(folder, classes, number):
  rng = np.random.default_rng(0)
  for name in classes:
    (folder / name).mkdir(parents=True)
    for i in range(number):
      image = rng.integers(0, 255, (40, 30, 3), np.uint8)
      cv2.imwrite(str(folder / name / f"{i}.png"), image)


def finetune(arg):
  return recipes.load("finetune", arg)


@pytest.fixture
def images(tmp_path):
  """A folder of images, with signs in its name that arguments split at."""
  folder = tmp_path / "my=images:1"
  for split in "train", "val":
    write_images(folder / split, "abc", 20)
  return folder


def test_images_of_ones_own_are_counted_and_take_the_settings_of_their_number(
  images,
):
  config = finetune(f"dataset=folder:{images},res=32")

  plan = make_plan(config, begins=False)

  assert not plan.problems
  assert config.model.num_classes == 3
  assert plan.config.data.examples == 54
  assert len(plan.evals["minival"].source) == 6
  assert len(plan.evals["test"].source) == 60
  assert (plan.total_steps, plan.warmup_steps) == (500, 100)
  assert config.sweep.full_split == "train"


def test_without_a_test_split_the_held_out_part_is_what_is_reported(images):
  shutil.rmtree(images / "val")
  config = finetune(f"dataset=folder:{images},res=32")

  assert set(config.evals) == {"minival"}
  assert config.sweep.report == METRIC
  assert config.sweep.full_split is None


@pytest.mark.parametrize(
  "examples, settings",
  [
    (19_999, (500, 100, "train[90%:]")),
    (20_000, (10_000, 500, "train[98%:]")),
    (499_999, (10_000, 500, "train[98%:]")),
    (500_000, (20_000, 500, "train[99%:]")),
  ],
)
def test_steps_follow_the_number_of_images_in_a_folder(
  examples, settings, images, monkeypatch
):
  from mixer.data.sources.folder_layout import FolderSplit

  monkeypatch.setattr(FolderSplit, "num_examples", examples)
  config = finetune(f"dataset=folder:{images}")

  assert settings == (
    config.total_steps,
    config.schedule.warmup_steps,
    config.evals.minival.split,
  )


def test_a_folder_that_is_not_there_or_has_no_train_is_named(images):
  with pytest.raises(UserError, match="There is no folder .*my=image"):
    finetune(f"dataset=folder:{images.parent / 'my=image'}")
  (images / "train").rename(images / "training")
  with pytest.raises(UserError, match="no split train, but training, val"):
    finetune(f"dataset=folder:{images}")


def test_a_sweep_on_images_of_ones_own_is_checked_whole(images, tmp_path):
  config = finetune(f"dataset=folder:{images},res=32,model=Mixer-S/32")
  config.init_head, config.init_growth = "auto", "none"  # no weights are here

  plan = plan_sweep(config, tmp_path / "sweep")

  assert not plan.problems + plan.missing
  assert plan.whole.config.data.examples == 60


@pytest.mark.parametrize(
  "arg, growth, tokens_mlp, ops",
  [
    ("res=224", "none", None, "resize_small(256) | random_crop(224) | flip"),
    (
      "res=448",
      "tiles",
      4 * 256,
      "resize_small(512) | random_crop(448) | flip",
    ),
    (
      "res=672",
      "tiles",
      9 * 256,
      "resize_small(768) | random_crop(672) | flip",
    ),
    (
      "res=384",
      "interpolate",
      None,
      "resize_small(439) | random_crop(384) | flip",
    ),
    (
      "res=128",
      "interpolate",
      None,
      "resize_small(146) | random_crop(128) | flip",
    ),
  ],
)
def test_fine_tuning_goes_to_any_resolution(arg, growth, tokens_mlp, ops):
  config = finetune(f"dataset=cifar10,model=Mixer-S/32,{arg}")

  assert config.init_growth == growth
  assert config.model.tokens_mlp == tokens_mlp
  assert config.data.ops == ops
  assert make_plan(config, begins=False).abstract_params is not None


@pytest.mark.parametrize(
  "arg, tokens, tokens_mlp", [("res=224", 784, 256), ("res=448", 3136, 1024)]
)
def test_fine_tuning_takes_the_published_s_8(arg, tokens, tokens_mlp):
  config = finetune(f"dataset=cifar10,model=Mixer-S/16,{arg}")
  config.model.patch = 8

  plan = make_plan(config, begins=False)

  mixing = plan.abstract_params["MixerBlock_0"]["token_mixing"]["Dense_0"]
  assert mixing["kernel"].shape == (tokens, tokens_mlp)
  if arg == "res=224":
    # 78.79 MiB of float32 with the head of ImageNet's 1,000 classes.
    published = 78.79 * 2**20 / 4
    head = 512 * (1000 - 10)
    assert cost.count_params(plan.abstract_params) + head == pytest.approx(
      published, rel=1e-3
    )


def test_the_fine_tuning_grid_is_the_papers():
  for name in recipes.DATA_SETS:
    sweep = finetune(f"dataset={name}").sweep
    assert sweep.learning_rates == (0.003, 0.01, 0.03, 0.06)
    assert (sweep.seeds, sweep.metric, sweep.report) == (3, METRIC, REPORT)
    full = finetune(f"dataset={name},full=True").data
    assert (sweep.full_split, sweep.full_examples) == (
      full.split,
      full.examples,
    )
