# SPDX-License-Identifier: Apache-2.0
"""Runs on folders of images: classes travel, broken images are counted."""

import json
import shutil

import cv2
import numpy as np
import pytest
import recipes
import runs

from mixer import evaluate, train
from mixer.cli import EX_OK
from mixer.config import evaluator
from mixer.errors import UserError
from mixer.plan import make_plan

pytestmark = pytest.mark.usefixtures("compiled_once")

CLASSES = ("dark", "grey", "light")


def write_images(folder, classes, number):
  rng = np.random.default_rng(0)
  for level, name in enumerate(classes):
    (folder / name).mkdir(parents=True)
    for i in range(number):
      image = rng.integers(80 * level, 80 * level + 80, (8, 8, 3), np.uint8)
      cv2.imwrite(str(folder / name / f"{i}.png"), image)


def write_splits(folder, classes=CLASSES):
  write_images(folder / "train", classes, 12)
  write_images(folder / "validation", classes, 5)
  return folder


@pytest.fixture
def images(tmp_path):
  return write_splits(tmp_path / "images")


@pytest.fixture
def config(images):
  return config_of(images)


@pytest.fixture(scope="module")
def learned(tmp_path_factory, compiled_once):
  """The folder of a run that has learned its images."""
  folder = tmp_path_factory.mktemp("learned")
  # A Unicode form that file systems use, and that is not written down.
  names = "dark", "gre\u0301y", "light"
  config = config_of(write_splits(folder / "images", names))
  config.total_steps = 60
  assert train.train(config, str(folder / "run")) == EX_OK
  return folder / "run"


@pytest.fixture
def run(learned, config):
  """A run and its config."""
  config.total_steps = 60
  config.data.name = f"folder:{learned.parent / 'images'}"
  return learned


def config_of(images):
  config = recipes.load("digits")
  config.total_epochs, config.total_steps = 0.0, 4
  config.schedule.warmup_epochs = 0.0
  config.batch = 16
  config.mixup = 0.0
  config.model.num_classes = 3
  config.data.name = f"folder:{images}"
  config.data.examples = None
  config.data.ops = "resize(8)"
  config.checkpoint.best = ""
  config.checkpoint.every_epochs = 0.0
  del config.evals.test
  config.evals.val = evaluator(split="validation", ops="resize(8)")
  return config


def test_a_run_learns_the_classes_of_folders(learned):
  classes = (learned / "classes.txt").read_text().split()
  assert classes == ["dark", "gr\u00e9y", "light"]
  assert runs.read_rows(learned)[-1]["eval/val/accuracy"] > 0.9


def test_broken_images_are_replaced_left_out_and_told(
  config, images, tmp_path, capsys
):
  for broken in "train/dark/3.png", "validation/grey/0.png":
    (images / broken).write_bytes(b"<html>404</html>")

  with pytest.raises(UserError) as error:
    train.train(config, str(tmp_path / "run"))
  assert "dark/3.png" in str(error.value) or "grey/0.png" in str(error.value)
  assert "on_bad_image=replace" in str(error.value)

  # A run that met the error may go on this way.
  config.data.on_bad_image = "replace"
  assert train.train(config, str(tmp_path / "run")) == EX_OK

  out = capsys.readouterr().out
  assert f"1 image of folder:{images}, split train, could not be decoded" in out
  assert f"{images}/train/dark/3.png" in out
  assert f"{images}/validation/grey/0.png" in out
  assert (tmp_path / "run" / "bad_images_0.txt").read_text() in out
  assert runs.read_rows(tmp_path / "run")[-1]["eval/val/left_out"] == 1


def test_images_that_have_changed_under_a_run_are_noticed(
  config, images, tmp_path
):
  config.checkpoint.every_steps = 3
  assert train.train(config, str(tmp_path / "run")) == EX_OK
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
  (tmp_path / "run" / "weights.npz").unlink()
  old = images / "train" / "dark" / "3.png"
  old.rename(old.with_name("renamed.png"))

  with pytest.raises(UserError, match="other files, or other labels, than"):
    train.train(config, str(tmp_path / "run"))

  config.seed = 1
  again = train.train(config, str(tmp_path / "run"), accept_changes=True)
  assert again == EX_OK
  content = json.loads((tmp_path / "run" / "provenance.json").read_text())
  first, second = content["starts"]
  assert first["data_checksum"] != second["data_checksum"]
  assert (first["changes"], second["changes"]) == ([], ["seed: 0 -> 1"])


def test_a_failing_evaluation_costs_no_training(config, images, tmp_path):
  """Neither on the way, where no save is due, nor after the last step."""
  write_images(images / "test", CLASSES, 2)
  config.evals.val.every_steps = 3
  config.evals.end = evaluator(split="test", ops="resize(8)")
  assert train.train(config, str(tmp_path / "sound")) == EX_OK
  pixels = {}
  for split in "validation", "test":
    file = images / split / "grey" / "0.png"
    pixels[file] = file.read_bytes()
    file.write_bytes(b"")

  for file, saved in zip(pixels, ({"3"}, {"3", "4"}), strict=True):
    with pytest.raises(UserError, match=str(file)):
      train.train(config, str(tmp_path / "run"))
    steps = (tmp_path / "run" / "checkpoints").iterdir()
    assert {path.name for path in steps if path.is_dir()} == saved
    file.write_bytes(pixels[file])
  assert train.train(config, str(tmp_path / "run")) == EX_OK

  runs.assert_same_weights(tmp_path / "sound", tmp_path / "run")
  sound, mended = map(runs.read_rows, (tmp_path / "sound", tmp_path / "run"))
  assert runs.results(mended) == runs.results(sound)


def test_a_failing_evaluation_may_be_skipped(config, images, tmp_path, capsys):
  config.evals.val.every_steps = 2
  config.on_eval_error = "skip"
  (images / "validation" / "grey" / "0.png").write_bytes(b"")

  assert train.train(config, str(tmp_path / "run")) == EX_OK

  err = capsys.readouterr().err
  assert "Evaluator val failed and was skipped: Example" in err
  rows = runs.read_rows(tmp_path / "run")
  failed = [row["step"] for row in rows if row.get("eval/val/failed")]
  assert failed == [*range(2, config.total_steps, 2), config.total_steps]


def test_folders_with_other_classes_are_not_evaluated_on(run, config, tmp_path):
  write_images(tmp_path / "others", ("dark", "grey", "pale"), 2)
  workdir = str(run)
  config.evals.val.name = f"folder:{tmp_path / 'others'}"
  config.evals.val.split = "train"

  with pytest.raises(
    UserError, match=r"than training.*only here grey, pale; only there"
  ):
    train.train(config, workdir)
  with pytest.raises(UserError, match=r"other classes than .*classes.txt"):
    evaluate.evaluate(config, workdir)
  config.init = workdir
  with pytest.raises(UserError, match=r"other classes than .*classes.txt"):
    evaluate.evaluate(config, None)


def test_images_of_some_classes_are_evaluated_with_the_run_s_own_classes(
  run, config, tmp_path
):
  write_images(tmp_path / "some", ("dark", "light"), 3)
  config.evals.val.name = f"folder:{tmp_path / 'some'}"
  config.evals.val.split = "train"
  config.data.classes = str(run / "classes.txt")
  config.data.on_bad_image = "replace"

  assert evaluate.evaluate(config, str(run)) == EX_OK

  for file in (tmp_path / "some").glob("*/*"):
    file.write_bytes(b"\x89PNG\r\n\x1a\n")
  with pytest.raises(UserError, match="No image of the evaluator's split"):
    evaluate.evaluate(config, str(run))


def test_a_head_of_other_classes_is_not_taken_for_the_own_one(
  run, config, tmp_path
):
  workdir = shutil.copytree(run, tmp_path / "run")
  (workdir / "classes.txt").write_text("light\ngr\u00e9y\ndark\n")
  config.init = str(workdir)

  assert "another order" in "".join(make_plan(config).complaints.problems)

  # The user may know better, or want the classes of the run.
  config.init_head = "zeros"
  assert not make_plan(config).complaints.problems
  config.init_head = "auto"
  config.data.classes = str(workdir / "classes.txt")
  assert not make_plan(config).complaints.problems


def test_a_run_of_names_in_another_unicode_form_goes_on(run, config, tmp_path):
  workdir = shutil.copytree(run, tmp_path / "run")
  (workdir / "classes.txt").write_text("dark\ngre\u0301y\nlight\n")  # once

  assert evaluate.evaluate(config, str(workdir)) == EX_OK
  config.init = str(workdir)
  assert not make_plan(config).complaints.problems


def test_an_epoch_is_as_long_as_what_there_is(config):
  config.total_epochs, config.total_steps = 4.0, 0
  config.data.examples = 0

  plan = make_plan(config)

  assert not plan.complaints.problems
  assert plan.config.data.examples == 36
  assert plan.schedule.total_steps == 9


def test_a_single_class_is_refused_with_the_layout(config, images):
  for split in "train", "validation":
    for name in "dark", "light":
      shutil.rmtree(images / split / name)

  [problem] = make_plan(config).complaints.problems

  assert "has one class, grey" in problem
  assert "DIR/SPLIT/CLASS/IMAGE" in problem


def test_a_fault_of_a_folder_is_one_complaint(config, images):
  (images / "train" / "emu").mkdir()
  [problem] = make_plan(config).complaints.problems
  assert "no images: emu" in problem

  (images / "train" / "x.png").touch()
  [problem] = make_plan(config).complaints.problems
  assert "mixes images with" in problem


def test_a_few_images_that_the_ops_fail_on_are_no_fault_of_the_config(
  config, images
):
  config.data.ops = config.evals.val.ops = "random_crop(8)"
  files = sorted((images / "train").glob("*/*.png"))
  for file in files[:-12]:
    cv2.imwrite(str(file), np.zeros((1, 9, 3), np.uint8))
  assert not make_plan(config).complaints.problems

  for file in files:
    cv2.imwrite(str(file), np.zeros((1, 9, 3), np.uint8))
  [problem] = make_plan(config).complaints.problems
  assert "The ops fail on example" in problem
  assert ".png" in problem and "1 x 9" in problem


def test_the_config_moves_the_limit_of_pixels(config):
  config.data.max_pixels = 63

  plan = make_plan(config)

  for source in plan.data.source, plan.data.evals["val"].source:
    assert source.max_pixels == 63
