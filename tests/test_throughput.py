# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks.throughput import __main__ as throughput
from benchmarks.throughput import (
  cells,
  children,
  machine,
  measure,
  programs,
  tables,
)
from benchmarks.throughput.cells import Part
from benchmarks.throughput.results import Results
from mixer import models
from mixer.errors import UserError
from mixer.models import create
from mixer.tools.paper import results_store

DEVICE = {"device": "Abacus (R) 9, 2 cores", "platform": "cpu", "versions": {}}
HOW = {"repeats": 2, "seconds": 0.01, "limit": 300.0}


def part(*batches, model="Mixer-S/32", passes="inference", dtype="float32"):
  return Part(model, 224, passes, dtype, batches)


def row(model, batch, speed, dtype="float32", **more):
  return {
    "model": model,
    "image_size": 224,
    "dtype": dtype,
    "batch": batch,
    "images_per_second": speed,
    **more,
  }


def test_a_model_is_measured_once_and_read_by_the_tables(tmp_path):
  given = dict(
    models="Mixer-S/32",
    batches="1,2",
    dtype=None,
    passes="inference",
    results=tmp_path,
    again=False,
  )
  text = throughput.fill(**given, **HOW)
  [file] = (tmp_path / "throughput").iterdir()
  written = file.read_text()
  again = throughput.fill(**given, **HOW)

  assert file.read_text() == written
  assert again == text
  content = json.loads(written)
  assert file.stem == machine.file_name(content["device"])
  assert [row["batch"] for row in content["rows"]] == [1, 2]
  assert all(row["images_per_second"] > 0 for row in content["rows"])
  assert all(row["bytes"] > 18e6 * 4 for row in content["rows"])
  [read] = results_store.read_devices(tmp_path)
  assert read.name == content["device"]
  assert read.best["Mixer-S/32", 224, "float32"].batches == (1, 2)
  assert "| Mixer-S/32 |" in text and "| 11,489 |" in text


def test_what_takes_too_long_is_noted_and_the_others_go_on():
  [found] = children.measure(part(1, 4), **HOW | {"limit": 0.2})

  assert found == {
    "batch": 1,
    "images_per_second": None,
    "why": "took more than 0.2 s",
    "limit": 0.2,
  }


def test_a_process_that_fails_is_quoted():
  with pytest.raises(UserError, match="(?s)measure --model=Mixer-X.*Nearest"):
    list(children.measure(part(1, model="Mixer-X"), **HOW))


def test_what_needs_more_memory_than_is_free_is_not_run(monkeypatch):
  monkeypatch.setattr(programs, "free_memory", lambda: 2**20)

  [found] = measure.measure(part(1, 4), 1, 0.1)

  assert found["images_per_second"] is None
  assert "needs 0.1 GiB, 0.0 are free" in found["why"]


@pytest.mark.parametrize("make", [programs.infer, programs.train])
def test_programs_compute_on_random_numbers_and_stay_finite(make):
  model = create(
    "Mixer", num_classes=1000, patch=8, hidden=8, blocks=1, tokens_mlp=4,
    channels_mlp=8,
  )  # fmt: skip

  program = make(model, (4, 16, 16, 3))
  results = [program.call() for _ in range(3)]

  assert program.needs > 0 and program.compile_seconds > 0
  for leaf in jax.tree.leaves(results):
    assert jnp.isfinite(leaf).all()
  params = programs.draw_params(
    {"head": {"kernel": jax.ShapeDtypeStruct((8, 7), jnp.float32)}}
  )
  assert (params["head"]["kernel"] != 0).all()


def test_a_batch_beyond_one_that_does_not_fit_is_not_tried(tmp_path):
  results = Results(tmp_path, DEVICE, "python -m benchmarks.throughput")
  results.add(part(8), {"batch": 8, "images_per_second": 70.0})
  why = {"images_per_second": None, "why": "out of memory"}
  results.add(part(32), {"batch": 32, **why})

  opened = Results(tmp_path, DEVICE, "")

  assert opened.missing(part(1, 8, 16, 32, 64), 60.0).batches == [1, 16]
  assert opened.missing(part(1, 8, dtype="bfloat16"), 60.0).batches == [1, 8]
  assert opened.missing(part(8, passes="training"), 60.0).batches == [8]
  assert opened.file.name == "Abacus_R_9_2_cores.json"
  [read] = results_store.read_devices(tmp_path)
  [best] = read.best.values()
  assert (best.images_per_second, best.batch) == (70.0, 8)
  assert best.beyond == (32, "out of memory")


def test_what_took_too_long_is_measured_again_with_a_longer_limit(tmp_path):
  results = Results(tmp_path, DEVICE, "")
  why = {"images_per_second": None, "why": "took more than 60 s", "limit": 60.0}
  results.add(part(8), {"batch": 8, **why})

  assert results.missing(part(8, 16), 60.0).batches == []
  assert results.missing(part(8, 16), 80.0).batches == [8, 16]
  results.add(part(8), {"batch": 8, "images_per_second": 70.0})
  assert [x["images_per_second"] for x in results.rows["inference"]] == [70.0]


def test_a_number_is_not_given_up_for_a_limit_that_is_too_short(tmp_path):
  results = Results(tmp_path, DEVICE, "")
  results.add(part(8), {"batch": 8, "images_per_second": 70.0})
  why = {"images_per_second": None, "why": "took more than 1 s", "limit": 1.0}
  results.add(part(8), {"batch": 8, **why})

  assert [x["images_per_second"] for x in results.rows["inference"]] == [70.0]


@pytest.mark.parametrize(
  "wrong", [{"repeats": 0}, {"seconds": float("nan")}, {"limit": -1.0}], ids=str
)
def test_timings_that_cannot_be_are_refused_before_anything_runs(wrong):
  [flag] = wrong
  with pytest.raises(UserError, match=f"--{flag}="):
    throughput.fill("*", None, None, "inference", None, False, **HOW | wrong)


def test_each_number_is_of_its_own_date_and_commit(tmp_path):
  folder = tmp_path / "throughput"
  folder.mkdir()
  old = dict(date="2026-01-02T03:04:05+00:00", git_commit="a" * 40)
  new = dict(date="2026-05-06T03:04:05+00:00", git_commit="b" * 40)
  rows = [row("Mixer-B/16", 1, 5.0, **old), row("ViT-B/16", 1, 4.0, **new)]
  content = DEVICE | new | {"rows": rows, "training_rows": []}
  (folder / "abacus.json").write_text(json.dumps(content))

  [read] = results_store.read_devices(tmp_path)

  found = [(x.date, x.git_commit[0]) for x in read.best.values()]
  assert found == [("2026-01-02", "a"), ("2026-05-06", "b")]


def test_a_damaged_file_is_said_to_be(tmp_path):
  results = Results(tmp_path, DEVICE, "")
  results.add(part(8), {"batch": 8, "images_per_second": 70.0})
  results.file.write_text(results.file.read_text()[:-20])

  with pytest.raises(UserError, match="Abacus.*is damaged"):
    Results(tmp_path, DEVICE, "")


def test_the_table_has_the_best_batch_and_the_ratio_to_vit_beside_the_papers():
  inference = [
    row("Mixer-B/16", 1, 20.0),
    row("Mixer-B/16", 8, 3123.4),
    row("ViT-B/16", 8, 1561.7),
    row("BiT-R152x4", 1, None, why="does not fit"),
  ]
  text = tables.page("Abacus", {"inference": inference, "training": []})
  lines = [[c.strip() for c in x.split("|")] for x in text.splitlines()]

  assert ["", "Mixer-B/16", "3,123 @8", "1,384", ""] in lines
  assert ["", "BiT-R152x4", "does not fit", "", ""] in lines
  assert ["", "Mixer-B/16 / ViT-B/16", "2.00", "1.61", ""] in lines


def test_ratios_are_of_one_dtype():
  inference = [
    row("Mixer-B/16", 8, 2000.0, "bfloat16"),
    row("Mixer-B/16", 8, 900.0),
    row("ViT-B/16", 8, 800.0),
  ]
  text = tables.page("Abacus", {"inference": inference, "training": []})
  lines = [[c.strip() for c in x.split("|")] for x in text.splitlines()]

  assert ["", "Mixer-B/16", "900 @8", "2,000 @8", "1,384", ""] in lines
  assert ["", "Mixer-B/16 / ViT-B/16", "1.12", "", "1.61", ""] in lines


def test_the_best_is_of_each_dtype_and_says_what_was_measured():
  rows = [
    row("Mixer-B/16", 8, 30.0),
    row("Mixer-B/16", 1, 20.0),
    row("Mixer-B/16", 32, None, why="took more than 60 s"),
    row("Mixer-B/16", 64, None, why="took more than 60 s"),
    row("Mixer-B/16", 8, None, "bfloat16", why="does not fit"),
    row("Mixer-B/16", 32, 50.0, "bfloat16"),  # when there was more room
  ]

  best = results_store.best_throughputs(rows)

  assert best["Mixer-B/16", 224, "float32"] == results_store.Throughput(
    30.0, "float32", 8, (1, 8), (32, "took more than 60 s"), "", None
  )
  assert best["Mixer-B/16", 224, "bfloat16"] == results_store.Throughput(
    50.0, "bfloat16", 32, (32,), None, "", None
  )


def test_all_models_of_the_families_and_the_papers_other_sizes_are_chosen():
  chosen = cells.choose(["*"])

  assert {(name, 224) for name in models.names()} <= set(chosen)
  assert {("Mixer-L/16", 448), ("Mixer-H/14", 448)} <= set(chosen)
  assert cells.choose(["Mixer-L/16*", "ViT-L/1?"]) == [
    ("Mixer-L/16", 224),
    ("ViT-L/16", 224),
    ("Mixer-L/16", 448),
  ]
  assert cells.fields("Mixer-L/16", 448) == {"tokens_mlp": 4 * 512}
  with pytest.raises(UserError, match="Mixer-X.*Mixer-S/32"):
    cells.choose(["Mixer-X"])


@pytest.mark.parametrize(
  "flags, words",
  [
    ({"batches": "1,none"}, "whole numbers"),
    ({"batches": "0"}, "whole numbers"),
    ({"dtype": "float16"}, "'float16' is none of float32, bfloat16"),
    ({"passes": "sleeping"}, "'sleeping' is none of inference, training"),
  ],
)
def test_flags_that_make_no_sense_are_refused(flags, words, tmp_path):
  given = dict(
    models="*",
    batches=None,
    dtype=None,
    passes="inference",
    results=tmp_path,
    again=False,
  )
  with pytest.raises(UserError, match=words):
    throughput.fill(**given | flags, **HOW)


def test_it_imports_with_jax_flax_and_optax_alone():
  missing = (
    "tensorflow tensorflow_datasets clu grain ml_collections orbax scipy "
    "matplotlib PIL sklearn torch"
  ).split()
  code = (
    f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
    "import benchmarks.throughput.__main__, benchmarks.throughput.measure"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
