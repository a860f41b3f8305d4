# SPDX-License-Identifier: Apache-2.0
"""Times of `predict` and of an exported program."""

import json
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
DEVICE = {
  "device": "Abacus (R) 9, 2 cores",
  "platform": "cpu",
  "versions": {"jax": "0"},
}
CELL = Cell("Mixer-S/32", "inference", "float32", 2)


class TinyCell(Cell):
  image_shape = (2, 32, 32, 3)


@pytest.fixture
def tiny(monkeypatch):
  """Replaces all weights by tiny ones."""
  weights = TINY.read_bytes()

  def write_weights(folder, model, image_size):
    file = folder / "weights.npz"
    file.write_bytes(weights)
    return file

  monkeypatch.setattr(inference, "write_weights", write_weights)


def given(results, **flags):
  return (
    dict(models="Mixer-S/32", batches="2", dtype=None, results=results)
    | {"again": False, "rounds": 1, "calls": 2, "limit": 300.0}
    | flags
  )


def rows_of(median):
  return [
    {"implementation": name, "load_seconds": 0.25, "first_seconds": 1.5}
    | inference.summarize(2, [factor * median] * 3)
    for name, factor in zip(inference.WAYS, (1.1, 0.9, 1.0), strict=True)
  ]


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-6), ("bfloat16", 1e-3)])
def test_all_ways_compute_the_same(tmp_path, dtype, atol):
  file = tmp_path / "tiny.npz"
  file.write_bytes(TINY.read_bytes())
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


def test_rows_have_times_of_the_start_and_of_calls(tiny):
  cell = TinyCell("Mixer-S/32", "inference", "float32", 2)

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
  timings = [i / 1000 for i in range(101, 0, -1)]

  said = inference.summarize(8, timings)

  assert said["median_ms"] == 51.0
  assert said["p95_ms"] == 96.0
  assert said["images_per_second"] == pytest.approx(8 / 0.051, rel=1e-4)
  assert said["calls"] == 101


def test_known_rows_are_not_measured_again(tmp_path, monkeypatch, capsys):
  asked = []

  def run_cell(cell, limit, **counts):
    asked.append(cell)
    return rows_of(median=0.1 * len(asked))

  monkeypatch.setattr(harness, "describe_device", lambda: DEVICE)
  monkeypatch.setattr(inference, "run_cell", run_cell)

  text = inference.fill(**given(tmp_path))
  again = inference.fill(**given(tmp_path))
  inference.fill(**given(tmp_path, again=True))

  assert asked == [CELL, CELL]
  assert again == text
  assert "float32, 2, exported: 90 ms" in capsys.readouterr().err
  said = [[x.strip() for x in line.split("|")] for line in text.splitlines()]
  assert said[-5][4:-1] == ["predict", "110", "110", "18.2"] + [
    "1.10 x",
    "0.25",
    "1.50",
  ]
  [file] = (tmp_path / "inference").iterdir()
  content = json.loads(file.read_text())
  assert [row["median_ms"] for row in content["rows"]] == [220.0, 180.0, 200.0]
  assert content["rows"][0]["model"] == "Mixer-S/32"


def test_a_time_out_is_noted_and_larger_batches_are_not_tried(
  tmp_path, monkeypatch
):
  asked = []

  def run_child(function, limit, **arguments):
    asked.append(arguments)
    raise ChildError("took more than 3 s")
    yield

  monkeypatch.setattr(harness, "describe_device", lambda: DEVICE)
  monkeypatch.setattr(harness, "run_child", run_child)

  text = inference.fill(**given(tmp_path, batches="2,4"))

  assert len(asked) == 1
  assert text.count("took more than 3 s") == len(inference.WAYS)
  assert inference.HEAD[0] in text


@pytest.mark.parametrize(
  "flags, words",
  [
    ({"models": "Mixer-XL/16"}, "'Mixer-XL/16' is none of Mixer-S/32"),
    ({"batches": "0"}, "--batches=0 must be whole numbers above 0"),
    ({"calls": 0}, "--calls=0 must be 1 or more"),
  ],
)
def test_wrong_flags_are_refused(flags, words, tmp_path, monkeypatch):
  monkeypatch.setattr(harness, "describe_device", lambda: DEVICE)

  with pytest.raises(UserError, match=words):
    inference.fill(**given(tmp_path, **flags))
