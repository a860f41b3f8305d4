# SPDX-License-Identifier: Apache-2.0
"""Times of `predict` and of an exported program."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.special

from benchmarks import harness, inference
from benchmarks.cells import Cell
from benchmarks.harness import ChildError
from mixer.errors import UserError

TINY = Path(__file__).parent / "goldens" / "mixer_tiny.npz"
PIXELS = np.random.default_rng(7).integers(256, size=(2, 32, 32, 3), dtype="u1")
DEVICE = {"device": "Abacus", "platform": "cpu", "versions": {"jax": "0"}}


def given(results, **flags):
  return (
    dict(models="Mixer-S/32", batches="2", dtype=None, results=results)
    | {"again": False, "rounds": 1, "calls": 2, "limit": 300.0}
    | flags
  )


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-6), ("bfloat16", 1e-3)])
def test_all_ways_compute_the_same(tmp_path, dtype, atol):
  file = shutil.copy(TINY, tmp_path / "tiny.npz")
  program = inference.write_exported(file, dtype)

  classes, probabilities = inference.to_host(
    inference.predict(file, dtype)(PIXELS)
  )
  exported = inference.to_host(inference.exported(program, dtype)(PIXELS))
  jitted = inference.to_host(inference.jitted(file, dtype)(PIXELS))

  np.testing.assert_allclose(exported, jitted, atol=atol)
  of_exported = scipy.special.softmax(exported, axis=-1)
  order = np.argsort(-exported, axis=-1)[:, : inference.TOPK]
  np.testing.assert_array_equal(classes[0], order)  # [devices, n, k]
  np.testing.assert_allclose(
    probabilities[0], np.take_along_axis(of_exported, order, axis=-1), atol=atol
  )


def test_rows_have_times_of_the_start_and_of_calls(monkeypatch):
  # Of tiny weights and images in place of large ones.
  monkeypatch.setattr(Cell, "image_shape", PIXELS.shape)
  monkeypatch.setattr(
    inference,
    "write_weights",
    lambda folder, *_: shutil.copy(TINY, folder / "weights.npz"),
  )
  cell = Cell("Mixer-S/32", "inference", "float32", 2)

  rows = inference.time_ways(cell, rounds=2, calls=3)

  assert [row["implementation"] for row in rows] == list(inference.WAYS)
  for row in rows:
    assert row["calls"] == 6
    assert 0 < row["median_ms"] <= row["p95_ms"]
    assert row["images_per_second"] == pytest.approx(
      2000 / row["median_ms"], rel=1e-3
    )
    assert min(row["load_seconds"], row["first_seconds"]) >= 0


def test_percentiles_are_of_single_calls():
  row = inference.summarize(8, [i / 1000 for i in range(101, 0, -1)])

  assert (row["median_ms"], row["p95_ms"], row["calls"]) == (51.0, 96.0, 101)
  assert row["images_per_second"] == pytest.approx(8 / 0.051, rel=1e-4)


@pytest.fixture
def children(monkeypatch):
  """Replaces child processes; a limit below 10 seconds is too short."""
  calls = []

  def run_child(function, limit, cell, **counts):
    calls.append(cell["batch"])
    if limit < 10:
      raise ChildError(f"took more than {limit:g} s")
    for name, seconds in zip(inference.WAYS, (0.11, 0.09, 0.1), strict=True):
      row = {"implementation": name, "load_seconds": 0.25, "first_seconds": 1.5}
      yield row | inference.summarize(2, [len(calls) * seconds] * 3)

  monkeypatch.setattr(harness, "describe_device", lambda: DEVICE)
  monkeypatch.setattr(harness, "run_child", run_child)
  return calls


def test_known_rows_are_not_measured_again(tmp_path, children, capsys):
  text = inference.fill(**given(tmp_path))
  again = inference.fill(**given(tmp_path))
  inference.fill(**given(tmp_path, again=True))

  assert children == [2, 2]
  assert again == text
  assert "float32, 2, exported: 90 ms" in capsys.readouterr().err
  cells = [[x.strip() for x in line.split("|")] for line in text.splitlines()]
  times = ["110", "110", "18.2", "1.10 x", "0.25", "1.50"]
  assert cells[-5][4:-1] == ["predict", *times]
  [file] = (tmp_path / "inference").iterdir()
  content = json.loads(file.read_text())
  assert [row["median_ms"] for row in content["rows"]] == [220.0, 180.0, 200.0]
  assert content["rows"][0]["model"] == "Mixer-S/32"


def test_a_time_out_is_noted_and_larger_batches_are_not_tried(
  tmp_path, children
):
  text = inference.fill(**given(tmp_path, batches="2,4", limit=3.0))

  assert children == [2]
  assert text.count("took more than 3 s") == len(inference.WAYS)


def test_wrong_flags_are_refused(tmp_path):
  with pytest.raises(UserError, match="--calls=0 must be 1 or more"):
    inference.fill(**given(tmp_path, calls=0))
  with pytest.raises(UserError, match="'Mixer-XL/16' is none of Mixer-S/32"):
    inference.fill(**given(tmp_path, models="Mixer-XL/16"))
