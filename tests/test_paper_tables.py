# SPDX-License-Identifier: Apache-2.0
"""Every table as it is printed, written, and filled with what was measured."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import recipes
import reports
from runs import run

from mixer.cli import EX_OK, EX_USAGE
from mixer.config_check import resolve, to_dict
from mixer.tools.paper import results_store, spec_tables
from mixer.tools.paper.__main__ import main
from mixer.tools.paper.numbers import ROWS, TABLE_1, find_row
from mixer.tools.paper.protocols import extend, find_protocol, load_recipe
from mixer.tools.paper.record import make_records
from mixer.tools.paper.run_reader import RunResult

MEASURABLE = [name for name, row in ROWS.items() if find_protocol(row)]
PUBLISHED = [x for x in MEASURABLE if find_protocol(ROWS[x]).published]


@pytest.fixture
def results(tmp_path):
  folder = tmp_path / "results"
  folder.mkdir()
  return folder


def show(capsys, number, results, *flags):
  """Output of the command."""
  code = main(["table", str(number), f"--results={results}", *flags])
  assert code == EX_OK
  return capsys.readouterr().out


def one_line(text):
  return " ".join(text.split())


def line(text, *words):
  """The first line that has all the words."""
  return next(x for x in text.splitlines() if all(w in x for w in words))


def test_table_1_has_the_codes_sizes_and_marks_other_ones(monkeypatch):
  sizes = {"Mixer-S/16": TABLE_1["Mixer-S/16"]}
  monkeypatch.setattr(spec_tables, "TABLE_1", sizes)
  assert "All sizes agree" in spec_tables.table1().intro[0]

  sizes["Mixer-S/32"] = sizes["Mixer-S/16"]
  page = spec_tables.table1()
  [table] = page.tables
  assert [[cell.text for cell in row] for row in table.rows] == [
    ["layers", "8", "8"],
    ["patch, px", "16", "32 (paper 16)"],
    ["hidden size C", "512", "512"],
    ["sequence length S", "196", "49 (paper 196)"],
    ["MLP dimension D_C", "2048", "2048"],
    ["MLP dimension D_S", "256", "256"],
    ["parameters", "18,015,264", "18,591,624"],
    ["millions", "18", "19 (paper 18)"],
  ]
  assert "These differ from the paper: Mixer-S/32." in page.intro[0]


@pytest.mark.parametrize("number, rows", [(2, 10), (3, 26)])
def test_every_row_of_the_paper_is_there_and_no_cell_unexplained(
  number, rows, results, capsys
):
  text = show(capsys, number, results)

  body, _, fillings = text.partition("What would fill the empty cells")
  assert len(re.findall(r"^  [A-Z]", body, re.MULTILINE)) == rows
  marks = set(re.findall(r"\((\d+)\)", body))
  explained = set(re.findall(r"^ +(\d+)  [A-Z]", fillings, re.MULTILINE))
  assert marks == explained and len(marks) >= 9
  assert max(len(x) for x in body.splitlines()) <= 120


def test_table_2_has_the_papers_decimals(results, capsys):
  text = show(capsys, 2, results)

  assert line(text, "HaloNet").split()[:2] == ["HaloNet", "85.8"]
  assert line(text, "ViT-L/16").split()[1] == "85.30"
  cells = line(text, "MPL EffNet-B6-Wide").split()
  assert (cells[2], cells[4]) == ("90.0", "91.12")


def test_table_3_names_recipe_data_and_hours_for_empty_cells(results, capsys):
  text = one_line(show(capsys, 3, results))

  for words in (
    "with 82.84 and 420 img/s/core.",
    "--config=configs/pretrain_i1k.py:B/16,extra=True",
    "eval.py --config=configs/evaluate.py:imagenet1k/Mixer-L_16",
    "0.15k TPUv3 core-days, that is 3,600 core-hours, 28.1 h",
    "Nothing can: JFT-300M is not public",
    "model=Mixer-L/16,res=448 --datasets=all",
    "record i21k/Mixer-L_16-448 --workdir=RUN",
  ):
    assert words in text


@pytest.mark.parametrize("name", MEASURABLE)
def test_every_command_that_would_fill_a_row_resolves(name):
  how = find_protocol(find_row(name))

  variant = load_recipe(how.pretrain)
  tuned = load_recipe(extend(how.finetune, "dataset=imagenet2012,extra=True"))

  assert variant.model.name == tuned.model.name == find_row(name).model
  assert variant.data.name.startswith("imagenet")
  assert "real" in tuned.evals
  assert how.is_pretrained_on_imagenet == (variant.data.name == "imagenet2012")
  squeezed = tuned.evals.test.ops.startswith("resize(")
  assert squeezed == (find_row(name).table == 2)


def sweep_of(name, init=None):
  """Results of a sweep by a row's recipe."""
  how = find_protocol(find_row(name))
  recipe = extend(how.finetune, "dataset=imagenet2012,extra=True")
  config = to_dict(resolve(load_recipe(recipe)))
  config["init"] = how.published if init is None else init
  mean = {"mean": 0.81234, "deviation": 0.0012, "runs": 3}
  means = {"eval/test/accuracy": mean, "eval/real/accuracy": mean}
  start = {
    "date": "2026-08-01T10:00:00",
    "git_commit": "0123456789",
    "git_changes": True,
    "devices": 8,
    "device_kind": "TPU v3",
  }
  folder = Path("tuned")
  return RunResult(folder, results_store.SWEEP, config, means, [start], 0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_sweep_by_a_rows_recipe_is_of_no_other_row(name):
  run = sweep_of(name)

  assert make_records(find_row(name), find_protocol(find_row(name)), run)

  for other in set(PUBLISHED) - {name}:
    with pytest.raises(ValueError, match="is no run of the row"):
      make_records(find_row(other), find_protocol(find_row(other)), run)


@pytest.mark.parametrize(
  "model, init",
  [
    ("Mixer", "imagenet1k/Mixer-B_16"),
    ("Mixer", ""),
    # No weights of this ViT by the paper's recipe were published.
    ("ViT", "imagenet21k/ViT-B_16"),
  ],
)
def test_weights_of_another_pretraining_are_refused(model, init):
  row = find_row(f"i21k/{model}-B_16")

  with pytest.raises(ValueError, match=f"(?m)^  init: .* -> '{init}'$"):
    make_records(row, find_protocol(row), sweep_of(row.name, init))


def test_the_recipe_of_evaluation_judges_as_table_3_does():
  row = find_row("i1k/Mixer-B_16")
  config = recipes.load("evaluate", find_protocol(row).published)
  mean = {"mean": 0.7644, "deviation": None, "runs": 1}
  means = {"eval/val/accuracy": mean, "eval/real/accuracy": mean}
  kind = results_store.EVALUATION
  run = RunResult(Path("weights"), kind, to_dict(resolve(config)), means, [])

  [new] = make_records(row, find_protocol(row), run)

  assert new["cells"]["real"]["value"] == 76.44


def test_a_measured_number_stands_next_to_the_papers_with_its_run(
  results, capsys
):
  row = find_row("i21k/Mixer-B_16")
  new = make_records(row, find_protocol(row), sweep_of(row.name))
  days = {"TPU v3": 120.5, "NVIDIA H100": 3.0}
  cost = new[0] | {"cells": {"core_days": {"device_days": days}}}
  results_store.add_records(results, row, [*new, cost])

  text = show(capsys, 3, results)

  cells = line(text, "Mixer-B/16", "0.15k*").split()
  assert cells[3:8] == ["80.64", "81.23", "a", "85.80", "81.23"]
  assert cells[-2:] == ["124", "b"]
  notes = one_line(text)
  assert (
    "a mean of 3 runs, deviation 0.12, fine-tuned from imagenet21k/Mixer-B_16; "
    "results/tables/i21k/Mixer-B_16.json, sweep tuned, 2026-08-01, commit "
    "0123456 with uncommitted changes, 8 x TPU v3." in notes
  )
  assert "120 device-days on TPU v3 (core-days)" in notes
  assert "3 device-days on NVIDIA H100 (not comparable with TPUv3" in notes

  # A single run's learning rate was not chosen by a sweep.
  single = new[0] | {"kind": results_store.RUN}
  results_store.add_records(results, row, [single])
  notes = one_line(show(capsys, 3, results))
  assert (
    "fine-tuned from imagenet21k/Mixer-B_16 at a learning rate not chosen on "
    "held-out images; results/tables/" in notes
  )


def measure_throughput(results, device, speeds, dtype="float32"):
  """Adds a model's images a second, with batches of 1, 2, ..., to a file."""
  file = results / "throughput" / f"{device}.json"
  file.parent.mkdir(exist_ok=True)
  rows = [
    {
      "model": model,
      "image_size": 224,
      "dtype": dtype,
      "batch": batch,
      "images_per_second": value,
      "why": "took more than 60 s",
      "date": "2026-08-01T10:00:00",
      "git_commit": "abcdef012345",
    }
    for model, values in speeds.items()
    for batch, value in enumerate(values, start=1)
  ]
  if file.exists():
    rows += json.loads(file.read_text())["rows"]
  file.write_text(json.dumps({"device": device, "rows": rows}))


def test_throughput_is_the_best_over_batch_sizes_of_the_fastest_device(
  results, capsys
):
  measure_throughput(results, "cpu", {"Mixer-B/16": [3.0, 4.0]})
  measure_throughput(results, "H100", {"Mixer-B/16": [3000.0, 4000.0]})
  speeds = {"Mixer-B/16": [3000.0, 5000.0, 2000.0]}
  measure_throughput(results, "H100", speeds, "bfloat16")

  text = show(capsys, 3, results)

  assert "1384  5000 a" in line(text, "Mixer-B/16", "0.15k*")
  assert (
    "a images/s on H100 in bfloat16: batch 2, the best of 1, 2 and 3; "
    "results/throughput/H100.json, 2026-08-01, commit abcdef0."
    in one_line(text)
  )


def test_the_ratio_to_vit_is_of_one_dtype(results, capsys):
  measure_throughput(results, "H100", {"Mixer-B/16": [2000.0]}, "bfloat16")
  speeds = {"Mixer-B/16": [900.0], "ViT-B/16": [700.0, 800.0, None]}
  measure_throughput(results, "H100", speeds)

  text = show(capsys, 3, results)

  heads = line(text, "models", "paper, TPUv3")
  assert heads.endswith("here, H100, float32  here, H100, bfloat16")
  cells = line(text, "Mixer-B/16 : ViT-B/16").split()
  assert cells[3:] == ["224", "1.61", "1.12", "c", "-"]
  assert line(text, "Mixer-L/16 : ViT-L/16").endswith("-")
  assert (
    "c images/s on H100 in float32: Mixer-B/16 with batch 1 only; ViT-B/16 "
    "with batch 2, the best of 1 and 2 (a larger one was not measured: 3 took "
    "more than 60 s); results" in one_line(text)
  )


def test_a_damaged_file_is_one_message(results, capsys):
  path = results / "throughput" / "cpu.json"
  path.parent.mkdir()
  path.write_text('{"device": "cpu"')

  assert main(["table", "3", f"--results={results}"]) == EX_USAGE

  text = capsys.readouterr().err
  assert text.startswith(f"error: {path} is damaged") and text.count("\n") == 1


def test_the_recipes_have_the_settings_of_table_4(results, capsys):
  text = show(capsys, 4, results)

  assert text.count(" agrees") == 15 * 4
  assert "differs" not in text
  assert line(text, "weight decay").count("0.1 agrees wd") == 4
  assert "0.1 x 0.001 = 1e-4" in text
  assert line(text, "Mixer-L", "7 / 14").split()[-2:] == ["0.001", "0.03"]


def test_a_setting_that_is_not_the_papers_differs(monkeypatch):
  changed = "configs/pretrain_i1k.py:B/16,epochs=60"
  monkeypatch.setitem(spec_tables.RECIPES, ("B", "i1k"), changed)

  first = spec_tables.table4().tables[0].rows[1]

  texts = [cell.text for cell in first[1:5]]
  assert texts == ["300", "60 differs", "300", "300 agrees"]


@pytest.mark.parametrize("data", ["i1k", "i21k"])
def test_patch_sizes_of_a_letter_share_their_settings(data):
  for one, other in ("B/16", "B/32"), ("L/16", "L/32"):
    found = [
      spec_tables.read_settings(recipes.load(f"pretrain_{data}", variant))
      for variant in (one, other)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("number, rows", [(2, 2 + 3 + 10), (3, 3 + 3 + 26 + 3)])
def test_html_stands_by_itself_and_its_marks_lead_to_notes(
  number, rows, results, tmp_path, capsys
):
  file = tmp_path / "table.html"

  output = show(capsys, number, results, f"--out={file}")

  text = file.read_text()
  page = reports.Page(text)
  assert output.startswith(f"{file}: Table {number}")
  assert page.links and {x.removeprefix("#") for x in page.links} <= {*page.ids}
  assert sum(map(len, page.tables)) == rows
  assert text.count('numbers" tabindex="0"') == len(page.tables)
  assert "http" not in text and "<script" not in text
  assert "width=device-width" in text


def test_markdown_has_a_table_that_github_takes(results, capsys):
  text = show(capsys, 3, results, "--format=markdown")

  rows = [x for x in text.splitlines() if x.startswith("|")]
  table = rows[: rows.index(next(x for x in rows if "models" in x))]
  assert len(table) == 2 + 3 + 26
  assert {x.count("|") for x in table} == {14}
  assert r"0.15k\*" in text
  assert "`python -m mixer paper record i1k/Mixer-B_16 --workdir=RUN`" in text


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["table", "5"], "There is no table 5 to show; there are 1, 2, 3, 4."),
    (["table", "2", "--format=pdf"], "--format=pdf is not written here"),
    (["table", "2", "--format=htlm"], "did you mean html?"),
    (["table", "2", "--results=nowhere"], "There is no folder nowhere"),
    (["figure", "1"], "There is no figure 1 here; there are 2, 3, 4, 5, 6, 7"),
    (["figure"], "Name a figure; there are 2, 3, 4, 5, 6, 7, throughput."),
    (["report"], "Name the folder of a run: --workdir=RUN."),
    (["report", "--workdir=r", "--out=r.txt"], "r.txt must end in .html"),
    (["table", "2", "--out=t.foo"], "must end in .txt or .md or .html"),
    (["record", "--workdir=r"], "Name the row, and the folder"),
  ],
)
def test_bad_input_is_one_message_and_exit_2(arguments, words, capsys):
  assert main(arguments) == EX_USAGE

  text = capsys.readouterr().err
  assert words in text and text.count("\n") == 1


@pytest.mark.parametrize(
  "arguments",
  [("table", "2", "--out=~/t.md"), ("figure", "3", "--out=~/f.svg")],
)
def test_a_file_in_the_home_folder_is_written_there(
  arguments, tmp_path, monkeypatch
):
  (tmp_path / "home").mkdir()
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path)

  assert main(list(arguments)) == EX_OK

  name = arguments[-1].rpartition("/")[2]
  assert (tmp_path / "home" / name).is_file()
  assert [x.name for x in tmp_path.iterdir()] == ["home"]


def test_a_table_of_numbers_needs_no_jax():
  program = (
    "import sys\n"
    "from mixer.tools.paper.__main__ import main\n"
    "assert main(['table', '3']) == 0\n"
    "assert not {'jax', 'tensorflow', 'matplotlib'} & set(sys.modules)\n"
  )
  done = run([sys.executable, "-c", program], os.environ)

  assert (done.returncode, done.stderr) == (EX_OK, "")
  assert done.stdout.startswith("Table 3")
