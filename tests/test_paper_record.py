# SPDX-License-Identifier: Apache-2.0
"""Runs and sweeps become rows of results/tables, or are refused."""

import hashlib
import json
import os
import re
import shutil
import statistics

import pytest
from runs import read_rows
from sweeps import read_report, write_recipe

from mixer import train
from mixer.cli import EX_OK, EX_USAGE
from mixer.errors import UserError
from mixer.evaluate import evaluate
from mixer.tools.paper import results_store
from mixer.tools.paper.__main__ import main
from mixer.tools.paper.numbers import Row
from mixer.tools.paper.protocols import Protocol, load_recipe
from mixer.tools.paper.record import record
from mixer.tools.paper.result_tables import accuracy_note
from mixer.tools.paper.run_reader import Run
from mixer.tools.sweep import multi_dataset
from mixer.weights.zoo import REGISTRY

pytestmark = pytest.mark.usefixtures("compiled_once")


DATA_SETS = {"imagenet2012": "digits/0to4", "others": "digits/5to9"}
ROW = Row(
  name="i1k/Mixer-tiny",
  table=3,
  model="Mixer-tiny",
  data="i1k",
  epochs=1,
  resolution=8,
  imagenet=99.0,
  real=99.0,
  average5=98.0,
  vtab=97.0,
  images_per_second=1_000,
  thousand_core_days=0.01,
)


def protocol(recipe, vtab=None, **changes):
  options = {
    "pretrain": str(recipe),
    "published": "imagenet1k/Mixer-B_16",
    "finetune": str(recipe),
    "vtab": vtab and str(vtab),
    "is_pretrained_on_imagenet": True,
  }
  return Protocol(**options | changes)


@pytest.fixture(scope="module")
def recipe(half_digits, tmp_path_factory):
  folder = tmp_path_factory.mktemp("recipes")
  return write_recipe(folder, half_digits, DATA_SETS, init_head="zeros")


@pytest.fixture(scope="module")
def pretrained(recipe, tmp_path_factory):
  folder = tmp_path_factory.mktemp("pretrained")
  assert train.train(load_recipe(f"{recipe}:extra=True"), str(folder)) == EX_OK
  return folder


@pytest.fixture(scope="module")
def swept(recipe, pretrained, tmp_path_factory):
  """A sweep on both data sets, with two seeds."""
  folder = tmp_path_factory.mktemp("swept")
  configs = {x: load_recipe(f"{recipe}:dataset={x}") for x in DATA_SETS}
  for config in configs.values():
    config.init = str(pretrained)
  groups = {"Avg 2": tuple(DATA_SETS)}
  several = multi_dataset.MultiDatasetSweep(folder, configs, "Avg 2", groups)
  options = {"skip_missing": False, "accept_changes": False}
  assert multi_dataset.sweep(several, **options) == EX_OK
  return folder


@pytest.fixture(scope="module")
def imagenet(swept):
  """The sweep on one of the data sets."""
  return swept / "imagenet2012"


@pytest.fixture(scope="module")
def evaluated(pretrained, recipe, tmp_path_factory):
  """An evaluation, made to look like one of published weights."""
  folder = tmp_path_factory.mktemp("evaluated") / "weights"
  config = load_recipe(f"{recipe}:extra=True")
  config.init = str(pretrained / "weights.npz")
  assert evaluate(config, str(folder)) == EX_OK
  file = folder / "evaluation.json"
  text = file.read_text()
  assert json.loads(text)["evaluated"] == config.init
  file.write_text(text.replace(config.init, "imagenet1k/Mixer-B_16"))
  return folder


def read_cells(results, workdir, how):
  """Records a folder and returns the row's cells, each with its record."""
  record(ROW, str(workdir), results, how)
  return results_store.read_row(results, ROW)


def percent(value):
  """Tolerates the rounding of recorded numbers."""
  return pytest.approx(100 * value, abs=1e-4)


def test_a_pretraining_run_on_imagenet_is_recorded_without_fine_tuning(
  pretrained, recipe, tmp_path
):
  text = record(ROW, str(pretrained), tmp_path, protocol(recipe))

  rows = read_rows(pretrained)
  cells = results_store.read_row(tmp_path, ROW)
  for name, evaluator in ("imagenet", "val"), ("real", "real"):
    accuracy = rows[-1][f"eval/{evaluator}/accuracy"]
    cell, origin = cells[name]
    assert cell == {"value": percent(accuracy), "deviation": None, "runs": 1}
  assert f"real      {cell['value']:.2f} %, 1 run" in text
  # The first update, which compiles, counts as much as the second.
  rates = [row["images_per_second"] for row in rows[1:12]]
  seconds = sum(32 / rate for rate in [rates[0], *rates])
  days = {"cpu": pytest.approx(8 * seconds / 86_400)}
  assert cells["core_days"][0] == {"device_days": days}

  [start] = json.loads((pretrained / "provenance.json").read_text())["starts"]
  assert (origin["folder"], origin["kind"]) == (pretrained.name, "run")
  assert origin["git_commits"] == [x for x in [start["git_commit"]] if x]
  assert origin["devices"] == ["8 x cpu"]
  assert origin["date"] == start["date"][:10]
  config = json.loads((pretrained / "config.json").read_text())
  assert origin["config"] == config


def test_a_sweep_on_imagenet_gives_mean_deviation_and_its_upstreams_cost(
  imagenet, pretrained, recipe, tmp_path
):
  cells = read_cells(tmp_path, imagenet, protocol(recipe))

  mean = read_report(imagenet)["means"]["eval/test/accuracy"]
  assert cells.keys() == {"imagenet", "core_days"}
  cell, origin = cells["imagenet"]
  assert cell["value"] == percent(mean["mean"])
  assert cell["deviation"] == percent(mean["deviation"])
  assert cell["runs"] == 2
  assert origin["upstream"] == {"folder": pretrained.name}
  assert cells["core_days"][1]["folder"] == pretrained.name


def test_the_mean_over_data_sets_has_the_deviation_of_the_seeds_means(
  swept, recipe, tmp_path
):
  how = protocol(recipe, is_pretrained_on_imagenet=False)

  cells = read_cells(tmp_path, swept, how)

  finals = [read_report(swept / name)["final"] for name in DATA_SETS]
  by_seed = [
    statistics.fmean(x["results"]["eval/test/accuracy"] for x in of_seed)
    for of_seed in zip(*finals, strict=True)
  ]
  assert cells.keys() == {"imagenet", "average5", "core_days"}
  average, origin = cells["average5"]
  assert average["value"] == percent(read_report(swept)["means"]["Avg 2"])
  assert average["deviation"] == percent(statistics.stdev(by_seed))
  assert (origin["folder"], origin["kind"]) == (swept.name, "sweeps")
  others = origin["data_sets"]["others"]
  assert others["config"]["data"]["name"] == "digits/5to9"


def test_data_sets_of_vtab_fill_the_column_of_vtab(swept, recipe, tmp_path):
  one = write_recipe(tmp_path, "", {"imagenet2012": "x"})
  how = protocol(recipe, finetune=str(one), vtab=recipe)

  assert read_cells(tmp_path, swept, how).keys() == {"vtab", "core_days"}

  with pytest.raises(UserError, match="no VTAB number of the row"):
    record(ROW, str(swept), tmp_path, protocol(recipe, finetune=str(one)))


def test_a_fine_tuned_run_counts_as_one(imagenet, pretrained, recipe, tmp_path):
  """A final run of the sweep is the one that full=True trains."""
  run = imagenet / "final_lr_0.01_seed_0"

  cells = read_cells(tmp_path, run, protocol(recipe))

  cell, _ = cells["imagenet"]
  assert (cell["runs"], cell["deviation"]) == (1, None)
  assert cells["core_days"][1]["folder"] == pretrained.name
  folder = shutil.copytree(run, tmp_path / "off")
  change = {"learning_rate": 0.02}
  edit("config.json", lambda x: x["optimizer"].update(change))(folder)
  with pytest.raises(UserError, match=r"rate: one of \[0.01\] -> 0.02"):
    record(ROW, str(folder), tmp_path, protocol(recipe))


def test_published_weights_are_recorded_as_they_are(
  evaluated, pretrained, recipe, tmp_path
):
  cells = read_cells(tmp_path, evaluated, protocol(recipe))

  cell, origin = cells["imagenet"]
  assert cells.keys() == {"imagenet", "real"}
  accuracy = read_rows(pretrained)[-1]["eval/val/accuracy"]
  assert cell["value"] == percent(accuracy)
  assert origin["weights"] == {"published": "imagenet1k/Mixer-B_16"}
  assert (origin["folder"], origin["devices"]) == ("weights", ["8 x cpu"])


@pytest.mark.parametrize(
  "file, weights",
  [
    ("weights/imagenet1k/Mixer-B_16.npz", {"unchecked": True}),
    ("weights/imagenet1k/Mixer-B_16.pth", {}),
  ],
)
def test_a_file_is_the_published_one_by_its_sha256_if_that_is_known(
  file, weights, evaluated, recipe, tmp_path
):
  folder = shutil.copytree(evaluated, tmp_path / "evaluated")
  digest = REGISTRY["imagenet1k/Mixer-B_16"].mirrors[-1].sha256 + "0" * 56
  change = {"evaluated": file, "sha256": digest}
  edit("evaluation.json", lambda x: x.update(change))(folder)

  cell = read_cells(tmp_path, folder, protocol(recipe))["imagenet"]

  published = {"published": "imagenet1k/Mixer-B_16"}
  assert cell[1]["weights"] == published | weights
  assert ("unchecked" in accuracy_note(*cell)) == bool(weights)
  if not weights:
    edit("evaluation.json", lambda x: x.update(sha256="0" * 64))(folder)
    with pytest.raises(UserError, match="sha256 begins with 76587d61 -> .*pth"):
      record(ROW, str(folder), tmp_path, protocol(recipe))


def test_an_evaluation_records_the_sha256_of_its_file(evaluated, pretrained):
  content = json.loads((evaluated / "evaluation.json").read_text())

  data = (pretrained / "weights.npz").read_bytes()
  assert content["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_start_from_the_same_step_replaces_the_one_before():
  rows = [{"step": 10, "images_per_second": 64.0}]
  starts = [
    {"from_step": 0, "device_kind": "A", "devices": 4},
    {"from_step": 0, "device_kind": "B", "devices": 2},
  ]

  days = Run(None, {"batch": 64}, rows, starts, 10).device_days()

  assert days == {"B": pytest.approx(2 * 10 / 86_400)}


def test_a_new_record_replaces_only_the_cells_that_it_has(
  swept, imagenet, pretrained, recipe, tmp_path
):
  how = protocol(recipe)
  read_cells(tmp_path, pretrained, how)

  cells = read_cells(tmp_path, swept, how)

  folders = {name: origin["folder"] for name, (_, origin) in cells.items()}
  assert folders == {
    "imagenet": pretrained.name,
    "average5": swept.name,
    "real": pretrained.name,
    "core_days": pretrained.name,
  }
  cells = read_cells(tmp_path, imagenet, how)
  assert cells["imagenet"][1]["folder"] == "imagenet2012"
  content = json.loads(results_store.row_file(tmp_path, ROW).read_text())
  names = [name for x in content["records"] for name in x["cells"]]
  assert sorted(names) == ["average5", "core_days", "imagenet", "real"]


def edit(name, change):
  """Changes a JSON file of a folder, or the last line of its log."""

  def apply(folder):
    before, end, last = (folder / name).read_text().rstrip().rpartition("\n")
    if name != "metrics.jsonl":
      before, end, last = "", "", before + end + last
    content = json.loads(last)
    change(content)
    (folder / name).write_text(f"{before}{end}{json.dumps(content)}\n")

  return apply


def remove(name):
  return lambda folder: (folder / name).unlink()


def tear_sweep(folder):
  os.truncate(folder / "sweep.json", 100)


def stop_early(folder):
  rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
  (folder / "metrics.jsonl").write_text("".join(rows[:7]))


def remove_sweep(folder):
  (folder / "run").mkdir()
  (folder / "config.json").rename(folder / "run" / "config.json")


METRIC = {"metric": "eval/test/accuracy"}


@pytest.mark.parametrize(
  "source, change, words",
  [
    # Unfinished, damaged, or no folder with results.
    ("pretrained", stop_early, "has come to step 7 of 12: let it finish"),
    ("pretrained", remove_sweep, "has not ended: give its command again"),
    ("pretrained", remove("config.json"), "has no results, neither of a run"),
    ("pretrained", remove("provenance.json"), "provenance.json is missing, or"),
    ("imagenet", tear_sweep, "sweep.json is damaged"),
    ("swept", remove("others/sweep.json"), "others/sweep.json is missing"),
    # Of another row.
    (
      "pretrained",
      edit("config.json", lambda x: x["evals"]["val"].update(ops="flip")),
      "evals.val.ops: .* -> 'flip'",
    ),
    (
      "pretrained",
      edit("config.json", lambda x: x["model"].update(untied=True)),
      "model.untied: None -> True",
    ),
    (
      "pretrained",
      edit("metrics.jsonl", lambda x: x.pop("eval/val/accuracy")),
      "has no eval/val/accuracy at its last step, but eval/",
    ),
    (
      "imagenet",
      edit("sweep.json", lambda x: x["config"]["sweep"].update(METRIC)),
      "sweep.metric: 'eval/minival/accuracy' -> 'eval/test/accuracy'",
    ),
    (
      "imagenet",
      edit("sweep.json", lambda x: x["config"].update(init="runs/gone")),
      "'runs/gone', which is no folder here",
    ),
    (
      "swept",
      edit("others/sweep.json", lambda x: x["config"].update(init="other")),
      "others: init: .* -> 'other'",
    ),
    (
      "swept",
      edit("sweep.json", lambda x: x["data_sets"].pop("others")),
      "lacks others: Avg 5 is the mean over 2",
    ),
  ],
)
def test_a_folder_without_the_rows_results_is_refused_with_the_reason(
  source, change, words, recipe, tmp_path, request
):
  folder = tmp_path / "run"
  shutil.copytree(request.getfixturevalue(source), folder)
  change(folder)

  with pytest.raises(UserError, match=words):
    record(ROW, str(folder), tmp_path, protocol(recipe))

  assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize(
  "source, changes, words",
  [
    ("swept", {"pretrain": "{recipe}:steps=24"}, "total_steps: 24 -> 12"),
    ("evaluated", {"published": "sam/Mixer-B_16"}, "'sam/Mixer-B_16' -> 'imag"),
    ("evaluated", {"is_pretrained_on_imagenet": False}, "offer a sweep"),
  ],
)
def test_a_run_by_another_protocol_is_refused_with_both_values(
  source, changes, words, recipe, tmp_path, request
):
  changes = {
    key: x.format(recipe=recipe) if isinstance(x, str) else x
    for key, x in changes.items()
  }
  folder = request.getfixturevalue(source)

  with pytest.raises(UserError, match=words):
    record(ROW, str(folder), tmp_path, protocol(recipe, **changes))

  assert not (tmp_path / "tables").exists()


def test_a_config_of_another_version_has_other_keys(
  pretrained, recipe, tmp_path
):
  folder = shutil.copytree(pretrained, tmp_path / "run")
  edit("config.json", lambda x: x.pop("init"))(folder)
  edit("config.json", lambda x: x.update(former_key=3))(folder)

  cells = read_cells(tmp_path, folder, protocol(recipe))

  assert cells["imagenet"][1]["config"]["init"] == ""


def test_a_damaged_file_of_results_is_not_replaced(tmp_path):
  file = results_store.row_file(tmp_path, ROW)
  file.parent.mkdir(parents=True)
  file.write_text('{"row": "')

  with pytest.raises(UserError, match="is damaged .*move it away"):
    results_store.add_records(tmp_path, ROW, [])


@pytest.mark.parametrize(
  "row, words",
  [
    ("i1k/Mixer-B_16", "model.name: 'Mixer-B/16' -> 'Mixer'"),
    ("jft14/Mixer-H_14", "No run fills the row jft14/Mixer-H_14. Nothing can"),
    ("i21k/Mixer-B-16", "did you mean i21k/Mixer-B_16?"),
  ],
)
def test_on_the_command_line_a_refusal_is_a_message_and_exit_2(
  row, words, pretrained, tmp_path, capsys
):
  flags = f"--workdir={pretrained}", f"--results={tmp_path}"

  assert main(["record", row, *flags]) == EX_USAGE

  assert words in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_without_a_row_all_are_listed(capsys):
  assert main(["record"]) == EX_OK

  text = capsys.readouterr().out
  assert re.search("i21k/Mixer-L_16-448 +from imagenet21k/Mixer-L_16 or", text)
  assert text.index("All others") < text.index("jft7/Mixer-L_16")
