# SPDX-License-Identifier: Apache-2.0
"""Timings, child processes, result files and flags of the benchmarks."""

import json
import subprocess
import sys

import pytest

from benchmarks import cells, harness
from benchmarks.harness import ChildError, Results
from mixer.errors import UserError

DEVICE = {"device": "Abacus (R) 9, 2 cores", "versions": {"jax": "0"}}
KEY = {"model": "Mixer-S/32", "dtype": "float32", "batch": 8}
LARGER = KEY | {"batch": 32}
FAILED = {"images_per_second": None, "why": "out of memory"}


def open_results(folder, limit=60.0, **options):
  return Results(folder, "sums", DEVICE, limit=limit, **options)


def row(speed):
  return {"images_per_second": speed}


def test_a_timing_follows_two_calls_of_warm_up():
  calls = []

  timings = harness.time_calls(lambda: calls.append(1), 3, 0.0, lambda _: None)

  assert len(timings) == 3 and min(timings) >= 0
  assert len(calls) == 2 + 3


def test_a_child_that_takes_too_long_is_killed():
  with pytest.raises(ChildError) as error:
    list(harness.run_child("benchmarks.device:describe", 0.1))

  assert error.value.row == {
    "images_per_second": None,
    "why": "took more than 0.1 s",
    "limit": 0.1,
  }


def test_a_child_that_fails_is_quoted():
  with pytest.raises(
    UserError, match="(?s)device:versions.*No package.*abacus"
  ):
    list(
      harness.run_child("benchmarks.device:versions", 300, packages=["abacus"])
    )


def test_rows_are_found_again_and_replaced(tmp_path):
  results = open_results(tmp_path)
  assert results.is_due(KEY)
  results.put(KEY, [row(7.0)])

  opened = open_results(tmp_path)

  assert opened.path.name == "Abacus_R_9_2_cores.json"
  assert not opened.is_due(KEY)
  assert opened.is_due(LARGER) and opened.is_due(KEY | {"dtype": "bfloat16"})
  assert open_results(tmp_path, again=True).is_due(KEY)
  opened.put(KEY, [row(8.0)])
  [found] = json.loads(opened.path.read_text())["rows"]
  assert found["images_per_second"] == 8.0
  assert {"versions", "date", "git_commit", *KEY} <= {*found}


def test_a_batch_beyond_one_that_failed_is_not_tried(tmp_path):
  results = open_results(tmp_path)
  results.put(KEY, [FAILED])

  assert not results.is_due(KEY) and not results.is_due(LARGER)
  assert results.is_due(KEY | {"batch": 1})
  again = open_results(tmp_path, again=True)
  assert again.is_due(LARGER)
  again.put(KEY, [FAILED])
  assert not again.is_due(LARGER)
  again.put(KEY, [row(7.0)])
  assert again.is_due(LARGER)


def test_a_time_out_is_measured_again_with_a_longer_limit(tmp_path):
  open_results(tmp_path).put(KEY, [FAILED | {"limit": 60.0}])

  assert not open_results(tmp_path, limit=60.0).is_due(LARGER)
  patient = open_results(tmp_path, limit=90.0)
  assert patient.is_due(KEY) and patient.is_due(LARGER)


def test_rows_without_versions_have_those_of_their_file(tmp_path):
  results = open_results(tmp_path)
  results.put(KEY, [row(7.0)])
  content = json.loads(results.path.read_text())
  del content["rows"][0]["versions"]
  results.path.write_text(json.dumps(content))

  opened = open_results(tmp_path)
  opened.put(LARGER, [row(9.0) | {"versions": {"jax": "1", "torch": "2"}}])

  assert opened.lists["rows"][0]["versions"] == DEVICE["versions"]
  versions = harness.list_versions(opened.lists["rows"])
  assert versions == "jax 0 and 1, torch 2"


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path):
  (tmp_path / "sums" / "Abacus_R_9_2_cores.json").mkdir(parents=True)

  with pytest.raises(UserError, match="--results=.*Abacus.* is a folder"):
    open_results(tmp_path)


def test_patterns_choose_models_in_order():
  names = ["Mixer-S/32", "Mixer-L/16", "ViT-L/16"]

  assert cells.choose("ViT*,*-L/1?", names) == ["Mixer-L/16", "ViT-L/16"]


@pytest.mark.parametrize(
  "check, message",
  [
    (lambda: cells.split_numbers("batches", "1,none"), "--batches=1,none must"),
    (lambda: cells.split_numbers("batches", "0"), "--batches=0 must be whole"),
    (lambda: cells.split_words("dtype", "f", ["g"]), "--dtype: 'f' is none of"),
    (lambda: cells.check_timing(limit=1.0, rounds=0), "--rounds=0 must"),
    (lambda: cells.check_timing(limit=1.0, seconds=0.0), "--seconds=0 must"),
    (lambda: cells.check_timing(limit=1e10), "--limit=1e.10 must .* a week"),
    (lambda: cells.check_timing(limit=float("nan")), "--limit=nan must"),
    (lambda: cells.choose("Mixer-X", ["ViT-S"]), "'Mixer-X' is none of ViT-S"),
  ],
)
def test_flags_out_of_range_are_refused(check, message):
  with pytest.raises(UserError, match=message):
    check()


def test_benchmarks_of_speed_import_with_only_jax_flax_and_optax():
  missing = (
    "tensorflow tensorflow_datasets clu grain ml_collections orbax scipy "
    "matplotlib PIL sklearn torch timm einops"
  ).split()
  code = (
    f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
    "import benchmarks.throughput\n"
    "import benchmarks.step.__main__, benchmarks.step.authors\n"
    "from benchmarks.step.implementations import probe\n"
    "timm = {'name': 'timm', 'platform': 'cpu', 'authors': None}\n"
    "absent = probe(timm)['absent']\n"
    "assert 'torch' in absent or 'timm' in absent, absent\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
