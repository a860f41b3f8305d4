# SPDX-License-Identifier: Apache-2.0
import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import harness, programs, throughput
from benchmarks.device import file_name
from benchmarks.harness import ChildError
from mixer import models
from mixer.errors import UserError
from mixer.models import create
from mixer.tools.paper import results_store

DEVICE = {"device": "Abacus (R) 9, 2 cores", "platform": "cpu", "versions": {}}
TIMING = {"repeats": 2, "seconds": 0.01, "limit": 300.0}
KEY = {"model": "Mixer-S/32", "image_size": 224, "dtype": "float32"}


def flags(results, **changes):
  default = {"models": "Mixer-S/32", "batches": "1,2", "dtype": None}
  default |= {"passes": "inference", "results": results, "again": False}
  return default | TIMING | changes


def row(model, batch, speed, dtype="float32", **more):
  changes = {"model": model, "dtype": dtype, "batch": batch}
  return KEY | changes | {"images_per_second": speed} | more


def test_a_model_is_measured_once_and_read_by_the_tables(tmp_path):
  text = throughput.fill(**flags(tmp_path, batches="1"))
  [file] = (tmp_path / "throughput").iterdir()
  written = file.read_text()
  again = throughput.fill(**flags(tmp_path, batches="1"))

  assert file.read_text() == written
  assert again == text
  content = json.loads(written)
  assert file.stem == file_name(content["device"])
  [row] = content["rows"]
  assert row["images_per_second"] > 0
  assert row["bytes"] > 18e6 * 4
  [read] = results_store.read_devices(tmp_path)
  assert read.name == content["device"]
  assert read.best["Mixer-S/32", 224, "float32"].batches == (1,)
  assert "| Mixer-S/32 |" in text and "| 11,489 |" in text


@pytest.fixture
def children(monkeypatch):
  """Replaces child processes: each yields its rows, then raises."""
  script = {"calls": [], "rows": [], "error": None}

  def run_child(function, limit, **arguments):
    batches = arguments["batches"]
    script["calls"].append(batches)
    yield from (row for row in script["rows"] if row["batch"] in batches)
    if script["error"]:
      raise script["error"]

  monkeypatch.setattr(harness, "describe_device", lambda: DEVICE)
  monkeypatch.setattr(harness, "run_child", run_child)
  return script


def test_a_batch_that_takes_too_long_is_noted_and_larger_ones_are_not_tried(
  tmp_path, children
):
  children["rows"] = [{"batch": 8, "images_per_second": 70.0}]
  children["error"] = ChildError("took more than 60 s", 60.0)

  throughput.fill(**flags(tmp_path, batches="8,32,64", limit=60.0))
  throughput.fill(**flags(tmp_path, batches="1,8,16,32,64", limit=60.0))
  throughput.fill(**flags(tmp_path, batches="1,8,16,32,64", limit=90.0))

  assert children["calls"] == [[8, 32, 64], [1, 16], [1, 16, 32, 64]]
  [read] = results_store.read_devices(tmp_path)
  [best] = read.best.values()
  assert (best.images_per_second, best.batch) == (70.0, 8)
  assert best.beyond == (32, "took more than 60 s")


def test_a_speed_is_not_replaced_by_a_failure(tmp_path, children):
  children["rows"] = [{"batch": 8, "images_per_second": 70.0}]
  # The time-out comes after the last batch.
  children["error"] = ChildError("took more than 60 s", 60.0)
  throughput.fill(**flags(tmp_path, batches="8"))
  children["rows"], children["error"] = [], ChildError("killed")

  throughput.fill(**flags(tmp_path, batches="8", again=True))

  [file] = (tmp_path / "throughput").iterdir()
  [found] = json.loads(file.read_text())["rows"]
  assert found["images_per_second"] == 70.0


def test_a_program_that_needs_more_memory_than_is_free_is_not_run(monkeypatch):
  monkeypatch.setattr(programs, "free_memory", lambda: 2**20)

  [found] = throughput.measure(
    **KEY, passes="inference", batches=[1, 4], repeats=1, seconds=0.1
  )

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
  head = {"head": {"kernel": jax.ShapeDtypeStruct((8, 7), jnp.float32)}}
  assert (programs.draw_params(head)["head"]["kernel"] != 0).all()


def test_the_table_has_the_best_batch_and_ratios_of_equal_dtypes():
  inference = [
    row("Mixer-B/16", 1, 20.0),
    row("Mixer-B/16", 8, 3123.4),
    row("ViT-B/16", 8, 1561.7),
    row("Mixer-B/16", 8, 5000.0, "bfloat16"),
    row("BiT-R152x4", 1, None, why="does not fit"),
  ]

  text = throughput.page("Abacus", {"inference": inference, "training": []})

  lines = [[c.strip() for c in x.split("|")] for x in text.splitlines()]
  assert ["", "Mixer-B/16", "3,123 @8", "5,000 @8", "1,384", ""] in lines
  assert ["", "BiT-R152x4", "does not fit", "", "", ""] in lines
  assert ["", "Mixer-B/16 / ViT-B/16", "2.00", "", "1.61", ""] in lines


def test_models_are_those_of_the_families_and_the_papers_other_sizes():
  every = throughput.every_model()

  assert {(name, 224) for name in models.names()} <= set(every)
  assert {("Mixer-L/16", 448), ("Mixer-H/14", 448)} <= set(every)
  grown = throughput.grow_tokens("Mixer-L/16", 448)
  assert grown == {"tokens_mlp": 4 * 512}


@pytest.mark.parametrize(
  "change", [{"models": "Mixer-X"}, {"batches": "0"}, {"repeats": 0}], ids=str
)
def test_wrong_flags_are_refused(change, tmp_path, children):
  [flag] = change
  with pytest.raises(UserError, match=f"--{flag}"):
    throughput.fill(**flags(tmp_path, **change))
