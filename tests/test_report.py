# SPDX-License-Identifier: Apache-2.0
"""A run's report has the content of its folder, in any state of the run."""

import json
import math
import os
import re
import shutil

import numpy as np
import pytest
import recipes
import reports
from flax.traverse_util import flatten_dict
from PIL import Image

from mixer.config import default, evaluator
from mixer.config_check import resolve, to_dict
from mixer.errors import UserError
from mixer.tools.paper import protocols, record, report


def read(folder):
  message = report.write(folder)
  assert message.endswith(f": {folder / 'report.html'}")
  return reports.Page((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "digits"
  return reports.write(folder, done=True)


@pytest.fixture(scope="module")
def page(done):
  return read(done)


def test_a_finished_run_has_its_results_its_speed_and_its_origin(page, done):
  assert "done, 200 steps" in page.text
  words = "80.00 % test accuracy, step 200; best: 90.00 % at step 100"
  assert words in page.text
  assert page.table("result") == {
    "test accuracy": ["80.00 % at 200", "90.00 % at 100"],
    "test accuracy top5": ["97.50 % at 200", "97.50 % at 200"],
    "test f1": ["0.5000 at 200", "2.0000 at 50"],
    "test loss": ["0.0050 at 200", "0.0050 at 200"],
  }
  speed = page.table("")
  assert speed["images per second"] == ["640", "640"]
  assert speed["of these per device"] == ["320", "320"]
  assert speed["time spent waiting for data"] == ["25.0%", "25.0%"]
  assert "0:20 for 200 updates" in page.text  # 64 images each
  start = ["0", "0123456789ab, with changes", "2 x TPU v3", "1"]
  assert page.table("started (UTC)")["2026-01-02 03:04"] == start
  assert "Changed from step 0 on: seed: 1 -> 0" in page.text
  assert page.table("package") == {"python": ["3.11.7"], "jax": ["0.10.2"]}
  # No mistakes were recorded.
  words = f"python -m mixer predict --init={done} IMAGES --out={done}/pred"
  assert words in page.text


def test_the_page_needs_no_other_file(page, done):
  source = (done / "report.html").read_text()

  assert page.links  # pictures, and parts of drawings by name
  assert all(link.startswith(("data:image/png", "#")) for link in page.links)
  assert not re.search(r"@import|<script|url\((?!#)", source)
  assert set(re.findall(r'(?:href="|url\()#([^")]+)', source)) <= {*page.ids}


def test_exactly_the_keys_that_differ_from_the_defaults_are_marked(page, done):
  config = json.loads((done / "config.json").read_text())
  usual = to_dict(default()) | {"evals": {"test": to_dict(evaluator())}}
  config, usual = (flatten_dict(x, sep=".") for x in (config, usual))
  differing = {key for key in config if config[key] != usual[key]}
  changed, every = [t for t in page.tables if t[0][0] == "key"]

  assert {row[0] for row in changed[1:]} == differing
  assert {row[0] for row in every[1:]} == set(config)
  assert sum(page.marked) == 2 * len(differing)
  assert page.table("key")["optimizer.learning_rate"] == ["0.003", "0.001"]
  assert page.table("key")["evals.test.ops"] == ['"central_crop(8)"', "none"]


def test_a_run_without_rows_evaluators_or_provenance_has_a_page(tmp_path):
  config = reports.config() | {"evals": {}}
  folder = reports.write(tmp_path / "run", config, [])
  (folder / "provenance.json").unlink()

  text = read(folder).text

  assert "not done: step 0 of 200" in text
  assert "no rows yet" in text
  assert "no evaluators" in text
  assert "so its code and devices are unknown" in text


@pytest.fixture(scope="module")
def in_progress(tmp_path_factory):
  """A run in progress; some numbers are not finite, and updates skipped."""
  config = reports.config()
  config["data"]["name"] = 'folder:<img src="x">&'
  config["evals"]["test"]["published"] = 0.75
  rows = reports.rows(100)
  rows[3]["train/loss"], rows[4]["train/loss"] = math.nan, math.inf
  rows[4]["eval/test/loss"] = rows[4]["images_per_second"] = math.nan
  rows[4]["eval/test/f1"] = rows[9]["eval/test/f1"] = math.nan
  row = {"loss": math.nan, "gradient_norm": 1.5, "examples": list(range(64))}
  skipped = [{"step": step} | row for step in range(21, 36)]
  folder = tmp_path_factory.mktemp("runs") / "<b>run"
  return reports.write(folder, config, rows, skipped=skipped)


@pytest.fixture(scope="module")
def progress(in_progress):
  return read(in_progress)


def test_a_run_in_progress_says_how_far_it_is(progress):
  assert "not done: step 100 of 200 (50%)" in progress.text
  assert "drawn once the run is done" in progress.text
  assert "90.00 % test accuracy, step 100" in progress.text


def test_numbers_that_are_not_finite_are_reported_and_left_out(progress):
  words = "train/loss is not finite in 2 of the log's rows, first at step 40"
  assert words in progress.text
  assert "eval/test/loss is not finite in 1 of the log's rows" in progress.text
  assert progress.table("result")["test f1"][:2] == ["not finite", ""]
  assert progress.table("result")["test loss"][:2] == ["0.0100 at 100", ""]


def test_skipped_updates_are_listed_with_their_examples(progress):
  assert "15 updates had no effect" in progress.text
  assert "The first 10 of skipped.jsonl" in progress.text
  updates = progress.table("update")
  assert list(updates) == [str(step) for step in range(21, 31)]
  assert updates["21"] == ["nan", "1.5", "0, 1, 2, 3, 4, ..."]


def test_published_numbers_are_next_to_the_runs_own(progress):
  results = progress.table("result")

  stated = "75.00 %, by the config (here +15.00 points)"
  assert results["test accuracy"][-1] == stated
  assert results["test loss"][-1] == ""


def test_html_in_a_config_is_escaped(progress, in_progress):
  assert 'folder:<img src="x">&' in progress.text
  source = (in_progress / "report.html").read_text()
  assert '<img src="x"' not in source and "<b>run" not in source


@pytest.mark.parametrize("mixup, is_row", [(0.5, True), (0.2, False)])
def test_a_run_of_a_row_of_the_paper_has_its_number_next_to_it(
  mixup, is_row, tmp_path
):
  recipe = recipes.load("pretrain_i1k", "B/16")
  recipe.mixup = mixup  # 0.5 in table 4
  rows = [{"step": 92_897, "train/loss": 0.5, "eval/val/accuracy": 0.7544}]

  text = read(reports.write(tmp_path / "run", to_dict(resolve(recipe)), rows))

  assert ("paper, table 3: 76.44 %" in text.text) == is_row
  assert ("(here -1.00 points)" in text.text) == is_row


def test_an_installed_package_reports_runs_without_the_recipes(
  tmp_path, monkeypatch
):
  for module in protocols, record:
    monkeypatch.setattr(module, "PROJECT", tmp_path)

  assert "step 200" in read(reports.write(tmp_path / "run")).text


def test_folders_that_are_no_runs_are_explained_in_a_message(tmp_path):
  def refuse(folder, words, out=None):
    with pytest.raises(UserError, match=words):
      report.write(folder, out)

  refuse(tmp_path / "nothing", "There is no folder")
  refuse(tmp_path, "is no run's folder")

  sweep = tmp_path / "sweep"
  for name in ("lr_0.1", "final_lr_0.1_seed_0"):
    reports.write(sweep / name, log=[])
  refuse(sweep, "such as final_lr_0.1_seed_0, lr_0.1 in it")

  run = sweep / "lr_0.1"
  nowhere = tmp_path / "nothing" / "page.html"
  refuse(run, f"no folder for --out={nowhere}", nowhere)
  assert not list(run.glob("*.html"))


@pytest.mark.parametrize(
  "name, change, words",
  [
    ("provenance.json", '{"starts": [', "is damaged"),
    ("predictions.csv", "image,rank\ncat/a,1\n", "lacks 'class'"),
    ("config.json", "{", "is damaged"),
  ],
)
def test_a_damaged_file_of_a_run_is_named(name, change, words, done, tmp_path):
  folder = shutil.copytree(done, tmp_path / "run")
  (folder / "classes.txt").write_text("cat\ndog\n")
  file = folder / name
  file.write_text(change)

  with pytest.raises(UserError, match=words) as error:
    report.write(folder)

  assert str(file) in str(error.value)


def test_a_run_of_another_version_has_a_page(tmp_path):
  config = reports.config()
  del config["cutmix"], config["log"]
  old = {"type": "of_old"}
  config["of_old"] = config["model"]["of_old"] = config["evals"]["old"] = old

  page = read(reports.write(tmp_path / "run", config))

  assert page.table("key")["of_old.type"][0] == '"of_old"'


@pytest.mark.parametrize(
  "model, fields",
  [("ViT-B/16", dict(model__mlp=8, model__heads=2)), ("MixerVariation", {})],
)
def test_a_model_without_token_mixing_blocks_has_no_pictures_of_units(
  model, fields, tmp_path
):
  fields |= dict(model__hidden=4, model__blocks=1, model__patch=4)
  config = reports.config(model__name=model, **fields)

  page = read(reports.write(tmp_path / "run", config, done=True))

  assert f"{model} ·" in page.text
  assert "4 filters of 4 x 4 px" in page.text
  assert "token-mixing" not in page.text.lower()


@pytest.fixture
def pets(tmp_path):
  """A run whose classes are a cat and a dog."""
  folder = reports.write(tmp_path / "pets")
  (folder / "classes.txt").write_text("cat\ndog\n")
  (folder / "eval").mkdir()
  return folder


def test_mistakes_of_an_evaluator_are_shown_as_a_matrix_and_by_class(pets):
  (pets / "eval/test_per_class.csv").write_text(
    "class,examples,correct,accuracy\ncat,8,6,0.7500\ndog,4,1,0.2500\n"
  )
  assert list(read(pets).table("class").items()) == [
    ("dog", ["4", "25.00 %", "another class (3)"]),
    ("cat", ["8", "75.00 %", "another class (2)"]),
  ]

  # A matrix, where there is one, is shown instead.
  (pets / "eval/test_confusion.csv").write_text(
    "label \\ prediction,cat,dog\ncat,6,2\ndog,1,3\n"
  )
  page = read(pets)
  assert "75.00 % of 12 images are right, by the last pass of" in page.text
  matrix = page.table("label \\ prediction")
  assert matrix == {"cat": ["6", "2"], "dog": ["1", "3"]}
  assert page.table("class") == {
    "cat": ["8", "75.00 %", "dog (2)"],
    "dog": ["4", "75.00 %", "cat (1)"],
  }


def test_predictions_in_the_folder_show_the_most_confident_mistakes(
  pets, tmp_path
):
  lines = ["image,rank,class,label,probability"]
  for name, guess, probability in (
    ("cat/1.png", 0, 0.9),
    ("cat/2.png", 1, 0.6),
    ("dog/3.png", 0, 0.8),
    ("else/4.png", 0, 0.7),
  ):
    file = tmp_path / "images" / name
    lines.append(f"{file},1,{guess},{'cat dog'.split()[guess]},{probability}")
    lines.append(f"{file},2,{1 - guess},of no interest,0.1")
  (pets / "predictions.csv").write_text("\n".join(lines) + "\n")
  (tmp_path / "images/cat").mkdir(parents=True)
  Image.new("RGB", (20, 10)).save(tmp_path / "images/cat/2.png")

  page = read(pets)

  assert "33.33 % of 3 images are right, by predictions.csv" in page.text
  matrix = page.table("label \\ prediction")
  assert matrix == {"cat": ["1", "1"], "dog": ["1", ""]}
  gone, second = "cat (0.80) label: dog; 3.png", "dog (0.60) label: cat; 2.png"
  assert page.text.index(gone) < page.text.index(second)
  assert "4.png" not in page.text
  assert sum(link.startswith("data:image/png") for link in page.links) == 1
  assert "older than the weights" not in page.text

  (pets / "weights.npz").write_bytes(b"")
  os.utime(pets / "predictions.csv", (0, 0))
  assert "predictions.csv, which is older than the weights" in read(pets).text


def test_many_classes_are_shown_by_their_most_frequent_confusions(pets):
  names = [f"class {i}" for i in range(30)]
  counts = np.diag(np.full(30, 5))
  counts[8, 1], counts[3, 7] = 2, 4
  rows = [["", *names], *zip(names, *counts.T, strict=True)]
  text = "\n".join(",".join(map(str, row)) for row in rows)
  (pets / "eval/test_confusion.csv").write_text(text)

  assert read(pets).table("label") == {
    "class 3": ["class 7", "4", "9"],
    "class 8": ["class 1", "2", "7"],
  }
