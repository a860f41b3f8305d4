# SPDX-License-Identifier: Apache-2.0
"""A run's report has the content of its folder, in any state of the run."""

import html.parser
import json
import math
import re
import shutil

import numpy as np
import pytest
import recipes
import reports
from flax.traverse_util import flatten_dict
from PIL import Image

from mixer import cli
from mixer.config import default, evaluator
from mixer.config_check import resolve, to_dict
from mixer.errors import UserError
from mixer.tools.paper import protocols, record, report


class Page(html.parser.HTMLParser):
  """A page's text, and its tables as lists of rows of cells."""

  def __init__(self, source):
    super().__init__()
    self.tables, self.marked, self.open = [], [], []
    self.links, self.words = [], []
    self.feed(source)
    assert not self.open, "elements that are not closed"
    self.text = " ".join(" ".join(self.words).split())

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.links += [
      attributes[key]
      for key in ("src", "href", "xlink:href", "srcset")
      if key in attributes
    ]
    if tag in ("meta", "img", "link", "br"):
      return
    self.open.append(tag)
    if tag == "table":
      self.tables.append([])
    elif tag == "tr":
      self.tables[-1].append([])
      self.marked.append(attributes.get("class") == "set")
    elif tag in ("td", "th"):
      self.tables[-1][-1].append("")

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_startendtag(self, tag, attributes):
    self.handle_starttag(tag, attributes)
    if self.open and self.open[-1] == tag:
      self.open.pop()

  def handle_data(self, data):
    if "style" in self.open:
      return
    self.words.append(data)
    if "td" in self.open or "th" in self.open:
      self.tables[-1][-1][-1] += data

  def table(self, head):
    """Rows of the table whose head begins with a word, by their first cell."""
    [table] = [t for t in self.tables if t[0][0] == head][:1]
    return {row[0]: row[1:] for row in table[1:]}


def read(folder):
  message = report.write(folder)
  assert message.endswith(f": {folder / 'report.html'}")
  source = (folder / "report.html").read_text()
  return Page(source), source


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "digits"
  return reports.write(folder, config=reports.config(), rows=reports.rows())


def test_a_finished_run_has_its_results_its_speed_and_its_origin(done):
  page, _ = read(done)

  assert "done, 200 steps" in page.text
  assert "80.00 % test accuracy, step 200; best: 90.00 % at step 100" in (
    page.text
  )
  assert page.table("result") == {
    "test accuracy": ["80.00 % at 200", "90.00 % at 100"],
    "test accuracy top5": ["97.50 % at 200", "97.50 % at 50"],
    "test f1": ["0.5000 at 200", "2.0000 at 50"],
    "test loss": ["0.0050 at 200", "0.0050 at 200"],
  }
  speed = page.table("")
  assert speed["images per second"] == ["640", "640"]
  assert speed["of these per device"] == ["320", "320"]
  assert speed["time spent waiting for data"] == ["25.0%", "25.0%"]
  assert "0:20 for 200 updates" in page.text  # 64 images each
  assert page.table("started (UTC)")["2026-01-02 03:04"] == [
    "0",
    "0123456789ab, with changes",
    "2 x TPU v3",
    "1",
  ]
  assert page.table("package") == {"python": ["3.11.7"], "jax": ["0.10.2"]}


def test_the_page_needs_no_other_file(done):
  page, source = read(done)

  assert page.links  # pictures, and parts of drawings by name
  assert all(link.startswith(("data:image/png", "#")) for link in page.links)
  assert not re.search(r"@import|<script|url\((?!#)", source)
  names = re.findall(r'\bid="([^"]+)"', source)
  used = set(re.findall(r'(?:href="|url\()#([^")]+)', source))
  assert len(names) == len(set(names)) and used <= set(names)


def test_exactly_the_keys_that_differ_from_the_defaults_are_marked(done):
  page, _ = read(done)
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


def test_a_run_in_progress_says_how_far_it_is(tmp_path):
  folder = reports.write(
    tmp_path / "run",
    config=reports.config(),
    rows=reports.rows(60),
    done=False,
  )

  page, _ = read(folder)

  assert "not done: step 60 of 200 (30%)" in page.text
  assert "drawn once the run is done" in page.text
  assert "80.00 % test accuracy, step 50" in page.text


def test_a_run_without_rows_or_evaluators_has_a_page(tmp_path):
  config = reports.config()
  config["evals"] = {}
  folder = reports.write(tmp_path / "run", config=config, rows=[], done=False)
  (folder / "provenance.json").unlink()

  page, _ = read(folder)

  assert "not done: step 0 of 200" in page.text
  assert "no rows yet" in page.text
  assert "no evaluators" in page.text
  assert "so its code and devices are unknown" in page.text


def test_numbers_that_are_not_finite_are_reported_and_left_out(tmp_path):
  rows = reports.rows()
  rows[3]["train/loss"], rows[4]["train/loss"] = math.nan, math.inf
  rows[4]["eval/test/loss"] = math.nan
  rows[4]["images_per_second"] = math.nan
  for row in rows:
    if "eval/test/accuracy_top5" in row:
      row["eval/test/accuracy_top5"] = math.nan
  folder = reports.write(tmp_path / "run", config=reports.config(), rows=rows)

  page, _ = read(folder)

  assert (
    "train/loss is not finite in 2 of the log's rows, first at step 40"
    in (page.text)
  )
  assert "eval/test/loss is not finite in 1 of the log's rows" in page.text
  assert page.table("result")["test accuracy top5"] == ["not finite", ""]
  assert page.table("result")["test loss"] == ["0.0050 at 200"] * 2


def test_skipped_updates_are_listed_with_their_examples(tmp_path):
  row = {"loss": math.nan, "gradient_norm": 1.5, "examples": list(range(64))}
  skipped = [{"step": step} | row for step in range(21, 36)]
  folder = reports.write(
    tmp_path / "run",
    config=reports.config(),
    rows=reports.rows(),
    skipped=skipped,
  )

  page, _ = read(folder)

  assert "15 updates had no effect" in page.text
  assert "The first 10 of skipped.jsonl" in page.text
  updates = page.table("update")
  assert list(updates) == [str(step) for step in range(21, 31)]
  assert updates["21"] == ["nan", "1.5", "0, 1, 2, 3, 4, ..."]


def test_published_numbers_are_next_to_the_runs_own(tmp_path):
  config = reports.config()
  config["evals"]["test"]["published"] = 0.75
  folder = reports.write(
    tmp_path / "run", config=config, rows=reports.rows(), done=False
  )

  page, _ = read(folder)

  assert page.table("result")["test accuracy"][-1] == (
    "75.00 %, by the config (here +5.00 points)"
  )
  assert page.table("result")["test loss"][-1] == ""


@pytest.mark.parametrize("mixup, is_row", [(0.5, True), (0.2, False)])
def test_a_run_of_a_row_of_the_paper_has_its_number_next_to_it(
  mixup, is_row, tmp_path
):
  recipe = recipes.load("pretrain_i1k", "B/16")
  recipe.mixup = mixup  # 0.5 in table 4
  rows = [{"step": 92_897, "train/loss": 0.5, "eval/val/accuracy": 0.7544}]
  folder = reports.write(
    tmp_path / "run", config=to_dict(resolve(recipe)), rows=rows, done=False
  )

  page, _ = read(folder)

  assert ("paper, table 3: 76.44 %" in page.text) == is_row
  assert ("(here -1.00 points)" in page.text) == is_row


def test_an_installed_package_reports_runs_without_the_recipes(
  done, tmp_path, monkeypatch
):
  for module in protocols, record:
    monkeypatch.setattr(module, "PROJECT", tmp_path)

  page, _ = read(done)

  assert "done, 200 steps" in page.text


def test_html_in_a_config_is_escaped(tmp_path):
  config = reports.config()
  config["data"]["name"] = 'folder:<img src="x">&'
  folder = reports.write(
    tmp_path / "<b>run", config=config, rows=reports.rows(), done=False
  )

  page, source = read(folder)

  assert 'folder:<img src="x">&' in page.text
  assert '<img src="x"' not in source and "<b>run" not in source


def test_folders_that_are_no_runs_are_explained_in_a_message(tmp_path, capsys):
  def complaint(folder, out=None):
    assert cli.run_cli(report.write, workdir=folder, out=out) == 2
    return capsys.readouterr().err

  assert "There is no folder" in complaint(tmp_path / "nothing")
  assert "is no run's folder" in complaint(tmp_path)

  for name in ("final_lr_0.1_seed_0", "lr_0.1"):
    reports.write(
      tmp_path / "sweep" / name, config=reports.config(), rows=[], done=False
    )
  sweep = tmp_path / "sweep"
  assert f"name one, such as {sweep / 'final_lr_0.1_seed_0'}" in complaint(
    sweep
  )
  (sweep / "sweep.json").write_text("{}")
  assert f"whose table is {sweep / 'sweep.md'}" in complaint(sweep)

  run = sweep / "lr_0.1"
  nowhere = tmp_path / "nothing" / "page.html"
  assert f"no folder for --out={nowhere}" in complaint(run, nowhere)
  folder = tmp_path / "folder.html"
  folder.mkdir()
  assert f"--out={folder} is a folder" in complaint(run, folder)
  assert not list(run.glob("*.html"))


def changed(key, value):
  """Returns a function that changes a config."""

  def change(text):
    *path, last = key.split(".")
    part = content = json.loads(text)
    for name in path:
      part = part[name]
    part[last] = value
    return json.dumps(content)

  return change


@pytest.mark.parametrize(
  "name, change, words",
  [
    ("metrics.jsonl", "what\n", "Line 1 of .* is not a row"),
    ("metrics.jsonl", None, "is missing: bring it back"),
    ("skipped.jsonl", "what\n", "Line 1 of .* is not a row"),
    ("parameters.txt", b"\xff\xfe", "is damaged"),
    ("provenance.json", '{"starts": 3}', "is damaged"),
    ("config.json", "[]", "not a JSON object"),
    ("eval/test_confusion.csv", "a,b\n", "is damaged"),
    ("eval/test_per_class.csv", "class\nb,2\n", "is damaged"),
    ("predictions.csv", "image,rank\na,1\n", "lacks 'class'"),
    ("config.json", "{}", "its config lacks batch, model, data, evals"),
    ("config.json", changed("data", 3), "data = 3"),
    ("config.json", changed("batch", 0), "config.batch = 0 must be 1 or more"),
    ("config.json", changed("total_steps", "q"), "is damaged"),
    ("config.json", changed("evals.test", None), "evals.test = None"),
  ],
)
def test_a_damaged_file_of_a_run_is_named(name, change, words, done, tmp_path):
  folder = shutil.copytree(done, tmp_path / "run")
  file = folder / name
  if callable(change):
    change = change(file.read_text())
  file.parent.mkdir(exist_ok=True)
  (folder / "classes.txt").write_text("cat\ndog\n")
  file.unlink(missing_ok=True)
  if change:
    file.write_bytes(change if isinstance(change, bytes) else change.encode())

  with pytest.raises(UserError, match=words) as error:
    report.write(folder)

  assert str(file) in str(error.value)


def test_a_run_of_another_version_has_a_page(tmp_path):
  config = reports.config()
  del config["cutmix"], config["log"]
  config["of_old"] = config["model"]["of_old"] = config["evals"]["old"] = {
    "type": "of_old"
  }
  folder = reports.write(
    tmp_path / "run", config=config, rows=reports.rows(), done=False
  )

  page, _ = read(folder)

  assert page.table("key")["of_old.type"][0] == '"of_old"'


@pytest.mark.parametrize(
  "model, fields",
  [
    ("ViT-B/16", dict(model__mlp=8, model__heads=2)),
    ("MixerVariation", {}),
  ],
)
def test_a_model_without_token_mixing_blocks_has_no_pictures_of_units(
  model, fields, tmp_path
):
  fields |= dict(model__hidden=4, model__blocks=1, model__patch=4)
  folder = reports.write(
    tmp_path / "run",
    config=reports.config(model__name=model, **fields),
    rows=reports.rows(),
  )

  page, _ = read(folder)

  assert f"{model} ·" in page.text
  assert "4 filters of 4 x 4 px" in page.text
  assert "token-mixing" not in page.text.lower()


@pytest.fixture
def pets(tmp_path):
  """A run whose classes are a cat and a dog."""
  folder = reports.write(
    tmp_path / "pets", config=reports.config(), rows=reports.rows(), done=False
  )
  (folder / "classes.txt").write_text("cat\ndog\n")
  (folder / "eval").mkdir()
  return folder


def test_mistakes_of_an_evaluator_are_shown_as_a_matrix_and_by_class(pets):
  (pets / "eval/test_per_class.csv").write_text("not read next to a matrix")
  (pets / "eval/test_confusion.csv").write_text(
    "label \\ prediction,cat,dog\ncat,6,2\ndog,1,3\n"
  )

  page, _ = read(pets)

  assert "75.00 % of 12 images are right, by the last pass of" in page.text
  assert page.table("label \\ prediction") == {
    "cat": ["6", "2"],
    "dog": ["1", "3"],
  }
  assert page.table("class") == {
    "cat": ["8", "75.00 %", "dog (2)"],
    "dog": ["4", "75.00 %", "cat (1)"],
  }


def test_results_by_class_are_shown_without_a_matrix_too(pets):
  (pets / "eval/test_per_class.csv").write_text(
    "class,examples,correct,accuracy\ncat,8,6,0.7500\ndog,4,1,0.2500\n"
  )

  page, _ = read(pets)

  assert list(page.table("class").items()) == [
    ("dog", ["4", "25.00 %", "another class (3)"]),
    ("cat", ["8", "75.00 %", "another class (2)"]),
  ]


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

  page, source = read(pets)

  assert "33.33 % of 3 images are right, by predictions.csv" in page.text
  assert page.table("label \\ prediction") == {
    "cat": ["1", "1"],
    "dog": ["1", ""],
  }
  first, second = (
    page.text.index("cat (0.80) label: dog; 3.png"),  # whose file is gone
    page.text.index("dog (0.60) label: cat; 2.png"),
  )
  assert first < second
  assert "4.png" not in page.text
  assert source.count("data:image/png") == 1


def test_a_run_without_records_of_mistakes_says_how_to_get_them(done):
  page, _ = read(done)

  assert f"python -m mixer predict --init={done} IMAGES --out={done}/pred" in (
    page.text
  )


def test_many_classes_are_shown_by_their_most_frequent_confusions(pets):
  names = [f"class {i}" for i in range(30)]
  counts = np.diag(np.full(30, 5))
  counts[3, 7], counts[8, 1] = 4, 2
  rows = [
    ["", *names],
    *([n, *map(str, c)] for n, c in zip(names, counts, strict=True)),
  ]
  text = "\n".join(",".join(row) for row in rows)
  (pets / "eval/test_confusion.csv").write_text(text)

  page, _ = read(pets)

  [table] = [t for t in page.tables if t[0][0] == "label"]
  assert table[1:] == [
    ["class 3", "class 7", "4", "9"],
    ["class 8", "class 1", "2", "7"],
  ]
