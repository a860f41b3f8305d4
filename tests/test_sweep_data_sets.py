# SPDX-License-Identifier: Apache-2.0
"""One sweep on several data sets, and its command line."""

import os
import re
import shutil
import sys

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from runs import run
from sweeps import REPORT, never, read_report, write_recipe

from mixer import train
from mixer.cli import EX_OK, EX_TEMPFAIL, EX_USAGE
from mixer.errors import UserError
from mixer.tools.sweep import multi_dataset
from mixer.training.lock import locked

pytestmark = pytest.mark.usefixtures("compiled_once")

DATA_SETS = {"low": "digits/0to4", "high": "digits/5to9"}
QUIETLY = {"skip_missing": False, "accept_changes": False}


@pytest.fixture(scope="module")
def recipe(half_digits, tmp_path_factory):
  """Returns a recipe with three data sets, two of them prepared."""
  folder = tmp_path_factory.mktemp("recipe")
  groups = {"digits": ("low", "high")}
  return write_recipe(
    folder, half_digits, DATA_SETS | {"none": "cifar10"}, groups
  )


@pytest.fixture(scope="module")
def several_swept(recipe, tmp_path_factory):
  """The folder of sweeps on the two data sets that are there."""
  folder = tmp_path_factory.mktemp("several")
  several = chosen(recipe, folder, ["all"], seeds=1)
  options = QUIETLY | {"skip_missing": True}
  assert multi_dataset.sweep(several, **options) == EX_OK
  return folder


def test_several_data_sets_are_swept_and_averaged(several_swept):
  found = read_report(several_swept)
  means = [
    read_report(several_swept / name)["means"][REPORT]["mean"]
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
  assert "left out: not available" in text
  assert "It is not the paper's, which is over 3 data sets" in text
  assert "Avg 3" not in text


def test_the_mean_over_all_data_sets_has_the_papers_name(
  several_swept, recipe, tmp_path, monkeypatch
):
  folder = shutil.copytree(several_swept, tmp_path / "several")
  shutil.copytree(folder / "high", folder / "none")
  means = [
    read_report(folder / name)["means"][REPORT]["mean"]
    for name in ("low", "high", "high")
  ]
  monkeypatch.setattr(train, "train", never)
  recipe.with_name("three.py").write_text(
    recipe.read_text().replace("cifar10", "digits/5to9")
  )
  three = chosen(recipe.with_name("three.py"), folder, ["all"], seeds=1)

  assert multi_dataset.sweep(three, **QUIETLY) == EX_OK

  assert read_report(folder)["means"]["Avg 3"] == pytest.approx(np.mean(means))
  text = (folder / "sweep.md").read_text()
  assert re.search(rf"\| Avg 3 +\| +\| +{np.mean(means):.5f} ", text)
  assert "not the paper's" not in text


def test_a_data_set_without_a_result_does_not_stop_the_others(
  several_swept, recipe, tmp_path, monkeypatch
):
  folder = shutil.copytree(several_swept, tmp_path / "several")
  (folder / "low" / "lr_0.01" / "failed.txt").write_text("It was too warm.\n")
  monkeypatch.setattr(train, "train", never)
  several = chosen(recipe, folder, ["low", "high"], seeds=1)

  with pytest.raises(UserError, match="lr_0.01: It was too warm"):
    multi_dataset.sweep(several, **QUIETLY)

  found = read_report(folder)
  assert found["data_sets"].keys() == {"high"}
  assert "It was too warm" in found["failures"]["low"]
  assert re.search(r"\| +failed ", (folder / "sweep.md").read_text())


def test_a_parallel_sweep_goes_on_with_the_next_data_set(
  several_swept, recipe, tmp_path, capsys
):
  folder = shutil.copytree(several_swept, tmp_path / "several")
  for name in "low/lr_0.01/weights.npz", "high/sweep.json", "sweep.json":
    (folder / name).unlink()
  multi = chosen(recipe, folder, ["low", "high"], seeds=1)

  with locked(folder / "low" / "lr_0.01"):
    code = multi_dataset.sweep(multi, **QUIETLY | {"parallel": True})

  assert code == EX_TEMPFAIL
  assert "Other processes train lr_0.01" in capsys.readouterr().out
  assert (folder / "high" / "sweep.json").exists()
  assert not (folder / "sweep.json").exists()


def chosen(recipe, workdir, names, arg="", **overrides):
  """Returns the sweep that --datasets chooses."""
  values = flags.FlagValues()
  line = [
    "sweep",
    f"--config={recipe}{':' if arg else ''}{arg}",
    *(f"--config.sweep.{key}={value}" for key, value in overrides.items()),
  ]
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=line)
  values(line)
  return multi_dataset.choose(values["config"], names, str(workdir))


def test_the_flags_change_the_config_of_every_data_set(recipe, tmp_path):
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
    (["all"], "dataset=low", "--datasets replaces"),
    (["all"], "low,rates=2", "--datasets replaces"),
  ],
)
def test_data_sets_that_the_recipe_does_not_take_are_named(
  names, arg, words, recipe, tmp_path
):
  with pytest.raises(ValueError, match=words.replace("?", r"\?")):
    chosen(recipe, tmp_path, names, arg)


def test_a_problem_of_all_data_sets_is_reported_once(recipe, tmp_path):
  several = chosen(recipe, tmp_path, ["all"], metric="eval/minivl/loss")

  with pytest.raises(UserError) as error:
    multi_dataset.dry_run(several, skip_missing=True, accept_changes=False)

  missing, problem, *_ = str(error.value).splitlines()
  assert missing.startswith("cifar10 is not prepared")
  assert problem.startswith("low: config.sweep.metric = 'eval/minivl/loss' is")
  assert str(error.value).count("eval/minivl/loss") == 1
  assert str(error.value).count("cifar10 is not prepared") == 1


@pytest.mark.parametrize(
  "flag, words",
  [
    ("--skip_missing", "--skip_missing is for several data sets"),
    ("--datasets=all", "cifar10 is not prepared"),
  ],
)
def test_errors_of_the_user_are_one_message_and_exit_code_2(
  flag, words, recipe, tmp_path
):
  flags = f"--config={recipe}", f"--workdir={tmp_path / 'new'}", flag
  command = [sys.executable, "-m", "mixer", "sweep", "--dry_run", *flags]

  ended = run(command, os.environ)

  assert ended.returncode == EX_USAGE
  assert words in ended.stderr
  assert "Traceback" not in ended.stderr
  assert not (tmp_path / "new").exists()
