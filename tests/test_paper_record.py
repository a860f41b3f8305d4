# SPDX-License-Identifier: Apache-2.0
"""Runs and sweeps become rows of results/tables, or are refused."""

import hashlib
import json
import re
import shutil
import statistics

import paper_runs
import pytest
from paper_runs import ROW, protocol
from sweeps import read_found, read_rows

from mixer.cli import EX_OK, EX_USAGE
from mixer.errors import UserError
from mixer.evaluate import evaluate
from mixer.tools.data import prepare
from mixer.tools.paper import results_store
from mixer.tools.paper.__main__ import main
from mixer.tools.paper.protocols import load_recipe
from mixer.tools.paper.record import record
from mixer.tools.paper.result_tables import accuracy_note
from mixer.weights.zoo import REGISTRY

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def recipe(digits_dir, tmp_path_factory):
  for name in "digits/0to4", "digits/5to9":
    prepare(name, digits_dir)
  folder = tmp_path_factory.mktemp("recipes")
  return paper_runs.write_recipe(folder, digits_dir)


@pytest.fixture(scope="module")
def pretrained(recipe, tmp_path_factory):
  return paper_runs.pretrain(recipe, tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def swept(recipe, pretrained, tmp_path_factory):
  folder = tmp_path_factory.mktemp("swept")
  return paper_runs.sweep(recipe, pretrained, folder)


def recorded(results):
  return json.loads((results / "tables" / f"{ROW.name}.json").read_text())


def test_a_pretraining_run_on_imagenet_is_judged_as_it_is(
  pretrained, recipe, tmp_path
):
  said = record(ROW, str(pretrained), tmp_path, protocol(recipe))

  row = read_rows(pretrained)[-1]
  cells = results_store.read_row(tmp_path, ROW)
  for name, evaluator in ("imagenet", "val"), ("real", "real"):
    accuracy = 100 * row[f"eval/{evaluator}/accuracy"]
    assert cells[name].value == pytest.approx(accuracy, abs=1e-4)
    assert (cells[name].runs, cells[name].deviation) == (1, None)
  assert f"ImNet    {cells['imagenet'].value:.2f} %, 1 run" in said


def test_device_days_are_counted_by_the_runs_own_clock(
  pretrained, recipe, tmp_path
):
  record(ROW, str(pretrained), tmp_path, protocol(recipe))

  cost = results_store.read_row(tmp_path, ROW)["core_days"]
  seconds = sum(
    32 / row["images_per_second"]
    for row in read_rows(pretrained)
    if "images_per_second" in row
  )
  assert cost.device_days == {"cpu": pytest.approx(8 * seconds / 86_400)}


def test_a_record_says_where_its_numbers_come_from(
  pretrained, recipe, tmp_path
):
  record(ROW, str(pretrained), tmp_path, protocol(recipe))

  [found] = recorded(tmp_path)["records"]
  [start] = json.loads((pretrained / "provenance.json").read_text())["starts"]
  assert found["folder"] == pretrained.name
  assert found["kind"] == "run"
  assert found["git_commits"] == [x for x in [start["git_commit"]] if x]
  assert found["devices"] == ["8 x cpu"]
  assert found["date"] == start["date"][:10]
  assert found["config"] == json.loads((pretrained / "config.json").read_text())


def test_a_sweep_on_imagenet_gives_mean_deviation_and_its_upstreams_cost(
  swept, pretrained, recipe, tmp_path
):
  record(ROW, str(swept / "imagenet2012"), tmp_path, protocol(recipe))

  mean = read_found(swept / "imagenet2012")["means"]["eval/test/accuracy"]
  cells = results_store.read_row(tmp_path, ROW)
  assert cells.keys() == {"imagenet", "core_days"}
  assert cells["imagenet"].value == pytest.approx(100 * mean["mean"], abs=1e-4)
  assert cells["imagenet"].deviation == pytest.approx(
    100 * mean["deviation"], abs=1e-4
  )
  assert cells["imagenet"].runs == 2
  assert cells["imagenet"].record["upstream"] == {"folder": pretrained.name}
  assert cells["core_days"].record["folder"] == pretrained.name


def test_the_mean_over_data_sets_has_the_deviation_of_the_seeds_means(
  swept, recipe, tmp_path
):
  how = protocol(recipe, is_pretrained_on_imagenet=False)
  record(ROW, str(swept), tmp_path, how)

  finals = [read_found(swept / name)["final"] for name in paper_runs.DATA_SETS]
  by_seed = [
    statistics.fmean(x["results"]["eval/test/accuracy"] for x in of_seed)
    for of_seed in zip(*finals, strict=True)
  ]
  cells = results_store.read_row(tmp_path, ROW)
  assert cells.keys() == {"imagenet", "average5", "core_days"}
  average = cells["average5"]
  assert average.value == pytest.approx(
    100 * read_found(swept)["means"]["Avg 2"], abs=1e-4
  )
  assert average.deviation == pytest.approx(
    100 * statistics.stdev(by_seed), abs=1e-4
  )
  others = average.record["data_sets"]["others"]
  assert others["config"]["data"]["name"] == "digits/5to9"


def test_data_sets_of_vtab_fill_the_column_of_vtab(
  swept, recipe, digits_dir, tmp_path
):
  one = paper_runs.write_recipe(tmp_path, digits_dir, {"imagenet2012": "x"})
  how = protocol(recipe, finetune=str(one), vtab=recipe)

  record(ROW, str(swept), tmp_path, how)

  cells = results_store.read_row(tmp_path, ROW)
  assert cells.keys() == {"vtab", "core_days"}
  with pytest.raises(UserError, match="no VTAB number of the row"):
    record(ROW, str(swept), tmp_path, protocol(recipe, finetune=how.finetune))


def test_a_fine_tuned_run_counts_as_one(pretrained, recipe, tmp_path):
  config = load_recipe(f"{recipe}:dataset=imagenet2012,full=True")
  config.init = str(pretrained)
  config.optimizer.learning_rate = 0.01
  assert paper_runs.train.train(config, str(tmp_path / "run")) == 0

  record(ROW, str(tmp_path / "run"), tmp_path, protocol(recipe))

  cell = results_store.read_row(tmp_path, ROW)["imagenet"]
  assert (cell.runs, cell.deviation) == (1, None)
  config.optimizer.learning_rate = 0.02
  assert paper_runs.train.train(config, str(tmp_path / "off")) == 0
  with pytest.raises(
    UserError, match=r"learning_rate: one of \[0.01\] -> 0.02"
  ):
    record(ROW, str(tmp_path / "off"), tmp_path, protocol(recipe))


@pytest.fixture(scope="module")
def evaluated(pretrained, recipe, tmp_path_factory):
  """What eval.py leaves of weights, which it thinks are the published ones."""
  folder = tmp_path_factory.mktemp("evaluated") / "weights"
  config = load_recipe(f"{recipe}:extra=True")
  config.init = str(pretrained)
  assert evaluate(config, str(folder)) == EX_OK
  file = folder / "evaluation.json"
  assert json.loads(file.read_text())["evaluated"] == config.init
  file.write_text(
    file.read_text().replace(str(pretrained), "imagenet1k/Mixer-B_16")
  )
  return folder


def test_published_weights_are_judged_as_they_are(
  evaluated, pretrained, recipe, tmp_path
):
  record(ROW, str(evaluated), tmp_path, protocol(recipe))

  cells = results_store.read_row(tmp_path, ROW)
  accuracy = read_rows(pretrained)[-1]["eval/val/accuracy"]
  assert cells.keys() == {"imagenet", "real"}
  assert cells["imagenet"].value == pytest.approx(100 * accuracy, abs=1e-4)
  source = cells["imagenet"].record
  assert source["weights"] == {"published": "imagenet1k/Mixer-B_16"}
  assert (source["folder"], source["devices"]) == ("weights", ["8 x cpu"])


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
  edit(
    "evaluation.json",
    lambda found: found.update(evaluated=file, sha256=digest),
  )(folder)

  record(ROW, str(folder), tmp_path, protocol(recipe))

  found = recorded(tmp_path)["records"][0]
  assert found["weights"] == {"published": "imagenet1k/Mixer-B_16"} | weights
  cell = results_store.read_row(tmp_path, ROW)["imagenet"]
  assert ("unchecked" in accuracy_note(cell)) == bool(weights)
  if not weights:
    edit("evaluation.json", lambda found: found.update(sha256="0" * 64))(folder)
    with pytest.raises(UserError, match="sha256 begins with 76587d61 -> .*pth"):
      record(ROW, str(folder), tmp_path, protocol(recipe))


def test_an_evaluation_tells_what_is_in_the_file(pretrained, recipe, tmp_path):
  config = load_recipe(f"{recipe}:extra=True")
  config.init = str(pretrained / "weights.npz")

  assert evaluate(config, str(tmp_path)) == EX_OK

  found = json.loads((tmp_path / "evaluation.json").read_text())
  data = (pretrained / "weights.npz").read_bytes()
  assert found["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"published": "sam/Mixer-B_16"}, "'sam/Mixer-B_16' -> 'imagenet1k/Mi"),
    ({"is_pretrained_on_imagenet": False}, "is fine-tuned: offer a sweep"),
  ],
)
def test_other_weights_than_the_published_are_refused(
  changes, words, evaluated, recipe, tmp_path
):
  with pytest.raises(UserError, match=words):
    record(ROW, str(evaluated), tmp_path, protocol(recipe, **changes))


def test_a_new_record_takes_the_place_of_older_cells_alone(
  swept, pretrained, recipe, tmp_path
):
  how = protocol(recipe)
  record(ROW, str(pretrained), tmp_path, how)
  record(ROW, str(swept), tmp_path, how)

  cells = results_store.read_row(tmp_path, ROW)

  folders = {name: cell.record["folder"] for name, cell in cells.items()}
  assert folders == {
    "imagenet": pretrained.name,
    "average5": swept.name,
    "real": pretrained.name,
    "core_days": pretrained.name,
  }
  record(ROW, str(swept / "imagenet2012"), tmp_path, how)
  imagenet = results_store.read_row(tmp_path, ROW)["imagenet"]
  assert imagenet.record["folder"] == "imagenet2012"
  cells = [tuple(x["cells"]) for x in recorded(tmp_path)["records"]]
  assert sorted(cells) == [
    ("average5",),
    ("core_days",),
    ("imagenet",),
    ("real",),
  ]


def test_what_differs_is_listed_with_both_values(pretrained, recipe, tmp_path):
  how = protocol(recipe, pretrain=f"{recipe}:hidden=32,steps=24")

  with pytest.raises(UserError) as error:
    record(ROW, str(pretrained), tmp_path, how)

  said = str(error.value)
  assert f"{pretrained} is no run of the row {ROW.name}" in said
  assert "model.hidden: 32 -> 16" in said
  assert "total_steps: 24 -> 12" in said
  assert not (tmp_path / "tables").exists()


def test_a_variation_of_the_mixer_is_refused_by_its_name(
  pretrained, recipe, tmp_path
):
  folder = shutil.copytree(pretrained, tmp_path / "run")
  model = {"name": "MixerVariation", "untied": True}
  edit("config.json", lambda config: config["model"].update(model))(folder)

  with pytest.raises(UserError) as error:
    record(ROW, str(folder), tmp_path, protocol(recipe))

  assert "model.name: 'Mixer' -> 'MixerVariation'" in str(error.value)
  assert "model.untied: None -> True" in str(error.value)


def test_fine_tuning_from_another_pretraining_is_refused(
  swept, pretrained, recipe, tmp_path
):
  how = protocol(recipe, pretrain=f"{recipe}:steps=24")

  with pytest.raises(UserError) as error:
    record(ROW, str(swept), tmp_path, how)

  assert f"config.init = {pretrained}: total_steps: 24 -> 12" in str(
    error.value
  )


def test_a_learning_rate_chosen_by_the_test_is_refused(swept, recipe, tmp_path):
  folder = shutil.copytree(swept / "imagenet2012", tmp_path / "chosen")
  found = read_found(folder)
  found["config"]["sweep"]["metric"] = "eval/test/accuracy"
  (folder / "sweep.json").write_text(json.dumps(found))

  with pytest.raises(
    UserError,
    match="sweep.metric: 'eval/minival/accuracy' -> 'eval/test/accuracy'",
  ):
    record(ROW, str(folder), tmp_path, protocol(recipe))


def test_other_images_to_be_judged_by_are_refused(pretrained, recipe, tmp_path):
  folder = shutil.copytree(pretrained, tmp_path / "squeezed")
  config = json.loads((folder / "config.json").read_text())
  config["evals"]["val"]["ops"] = "resize(8)"
  (folder / "config.json").write_text(json.dumps(config))

  with pytest.raises(
    UserError, match=r"evals.val.ops: 'central_crop\(8\)' -> 'resize\(8\)'"
  ):
    record(ROW, str(folder), tmp_path, protocol(recipe))


def test_an_upstream_that_is_gone_is_asked_for(
  swept, pretrained, recipe, tmp_path
):
  folder = shutil.copytree(swept / "imagenet2012", tmp_path / "orphan")
  file = folder / "sweep.json"
  file.write_text(file.read_text().replace(str(pretrained), "runs/gone"))

  with pytest.raises(UserError, match="'runs/gone', which is no folder here"):
    record(ROW, str(folder), tmp_path, protocol(recipe))


def test_a_sweep_that_lacks_a_data_set_is_refused(swept, recipe, tmp_path):
  folder = shutil.copytree(swept, tmp_path / "lacks")
  found = read_found(folder)
  del found["data_sets"]["others"]
  (folder / "sweep.json").write_text(
    json.dumps(found | {"left_out": ["others"]})
  )

  with pytest.raises(UserError, match="lacks others: Avg 5 is the mean over 2"):
    record(ROW, str(folder), tmp_path, protocol(recipe))


def break_off(folder):
  rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
  (folder / "metrics.jsonl").write_text("".join(rows[:7]))


def edit(name, change):
  """Changes a JSON file of a folder, or the last line of its log."""

  def apply(folder):
    before, end = (folder / name).read_text().rstrip(), ""
    if name == "metrics.jsonl":
      before, end, last = before.rpartition("\n")
      content = json.loads(last)
      before += end
    else:
      content, before = json.loads(before), ""
    change(content)
    (folder / name).write_text(f"{before}{json.dumps(content)}\n")

  return apply


def row_with(value):
  return edit("metrics.jsonl", lambda row: row.update(value))


def remove(name):
  return lambda folder: (folder / name).unlink()


def break_json(name):
  return lambda folder: (folder / name).write_text('{"starts": [')


def without_sweep(folder):
  (folder / "run").mkdir()
  (folder / "config.json").rename(folder / "run" / "config.json")


@pytest.mark.parametrize(
  "change, words",
  [
    (break_off, "has come to step 7 of 12: let it finish"),
    (remove("metrics.jsonl"), "metrics.jsonl is missing: bring it back"),
    (edit("config.json", dict.clear), "config lacks batch, model, data, eva"),
    (
      edit("config.json", lambda config: config.update(total_steps="q")),
      "config.json is damaged",
    ),
    (remove("provenance.json"), "provenance.json is missing, or has no star"),
    (
      edit("provenance.json", lambda found: found["starts"].clear()),
      "provenance.json is missing, or has no starts: bring it back",
    ),
    (
      edit("provenance.json", lambda found: found["starts"][0].pop("date")),
      "provenance.json is damaged .a start lacks date",
    ),
    (break_json("config.json"), "config.json is damaged"),
    (break_json("provenance.json"), "provenance.json is damaged"),
    (without_sweep, "has not ended: give its command again"),
    (lambda folder: shutil.rmtree(folder), "There is no folder"),
    (
      lambda folder: (folder / "config.json").unlink(),
      "has no results, neither of a run nor of a sweep: name the folder",
    ),
  ],
)
def test_a_folder_without_results_is_refused_with_what_to_do(
  change, words, pretrained, recipe, tmp_path
):
  folder = shutil.copytree(pretrained, tmp_path / "run")
  change(folder)

  with pytest.raises(UserError, match=words):
    record(ROW, str(folder), tmp_path, protocol(recipe))


def test_a_config_of_another_version_lacks_keys(pretrained, recipe, tmp_path):
  folder = shutil.copytree(pretrained, tmp_path / "run")
  edit("config.json", lambda config: config.pop("init"))(folder)
  edit("config.json", lambda config: config.update(former_key=3))(folder)

  record(ROW, str(folder), tmp_path, protocol(recipe))

  assert recorded(tmp_path)["records"][0]["config"]["init"] == ""


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda found: found["means"].clear(), "has no eval/test/accuracy"),
    (lambda found: found.update(config=[]), "sweep.json is damaged"),
  ],
)
def test_a_damaged_sweep_is_named(change, words, swept, recipe, tmp_path):
  folder = shutil.copytree(swept / "imagenet2012", tmp_path / "sweep")
  edit("sweep.json", change)(folder)

  with pytest.raises(UserError, match=words):
    record(ROW, str(folder), tmp_path, protocol(recipe))


def test_a_data_set_whose_folder_is_gone_is_asked_for(swept, recipe, tmp_path):
  folder = shutil.copytree(swept, tmp_path / "sweep")
  shutil.rmtree(folder / "others")

  with pytest.raises(UserError, match="others/sweep.json is missing: bring"):
    record(ROW, str(folder), tmp_path, protocol(recipe))


RECORD = {
  "folder": "run",
  "kind": "run",
  "date": "2026-08-01",
  "git_commits": [],
  "git_changes": False,
  "devices": ["8 x cpu"],
}
CELL = {"value": 76.44, "deviation": None, "runs": 1}


def write_record(results, **changes):
  file = results_store.row_file(results, ROW)
  file.parent.mkdir(parents=True)
  found = {**RECORD, "cells": {"imagenet": CELL}} | changes
  found = {key: value for key, value in found.items() if value is not KeyError}
  file.write_text(json.dumps({"row": ROW.name, "records": [found]}))
  return file


def test_a_run_outside_a_repository_has_no_commit(tmp_path):
  write_record(tmp_path)

  assert results_store.read_row(tmp_path, ROW)["imagenet"].value == 76.44


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"folder": KeyError}, "ValueError: a record lacks folder"),
    ({"cells": {"imagenet": CELL | {"value": "abc"}}}, "ValueError: could not"),
    ({"cells": 3}, "AttributeError"),
  ],
)
def test_a_damaged_file_of_results_is_named(changes, words, tmp_path):
  file = write_record(tmp_path, **changes)

  said = f"{re.escape(str(file))} is damaged .*{words}"
  with pytest.raises(UserError, match=said):
    results_store.read_row(tmp_path, ROW)
  with pytest.raises(UserError, match=said):
    results_store.add_records(
      tmp_path, ROW, [RECORD | {"cells": {"real": CELL}}]
    )


@pytest.mark.parametrize(
  "row, words",
  [
    ("i1k/Mixer-B_16", "model.name: 'Mixer-B/16' -> 'Mixer'"),
    ("jft14/Mixer-H_14", "No run fills the row jft14/Mixer-H_14. Nothing can"),
    ("i21k/Mixer-B-16", "Nearest: i21k/Mixer-B_16"),
  ],
)
def test_on_the_command_line_a_refusal_is_a_message_and_exit_2(
  row, words, pretrained, tmp_path, capsys
):
  code = main(
    ["record", row, f"--workdir={pretrained}", f"--results={tmp_path}"]
  )

  assert code == EX_USAGE
  assert words in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_without_a_row_all_are_listed(capsys):
  assert main(["record"]) == EX_OK

  said = capsys.readouterr().out
  assert re.search("i21k/Mixer-L_16-448 +from imagenet21k/Mixer-L_16 or", said)
  assert said.index("All others") < said.index("jft7/Mixer-L_16")


def test_a_row_without_a_folder_asks_for_one(capsys):
  assert main(["record", "i21k/Mixer-B_16"]) == EX_USAGE

  assert "i21k/Mixer-B_16 --workdir=RUN" in capsys.readouterr().err
