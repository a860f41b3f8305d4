# SPDX-License-Identifier: Apache-2.0
"""Waiting for predict and for an exported program is measured as it is."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.special

from benchmarks.inference import __main__ as inference
from benchmarks.inference import measure, table, ways
from benchmarks.step.cell import Cell
from benchmarks.throughput.children import EndedError
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
  """All that is measured are the tiny weights."""
  weights = TINY.read_bytes()

  def write_weights(folder, model, image_size):
    file = folder / "weights.npz"
    file.write_bytes(weights)
    return file

  monkeypatch.setattr(ways, "write_weights", write_weights)


def given(results, **flags):
  return (
    dict(models="Mixer-S/32", batches="2", dtype=None, results=results)
    | {"again": False, "rounds": 1, "calls": 2, "limit": 300.0}
    | flags
  )


def rows_of(median):
  return [
    {"implementation": name, "load_seconds": 0.25, "first_seconds": 1.5}
    | measure.summary(2, [factor * median] * 3)
    for name, factor in zip(ways.NAMES, (1.1, 0.9, 1.0), strict=True)
  ]


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-6), ("bfloat16", 1e-3)])
def test_all_ways_say_the_same_of_the_same_images(tmp_path, dtype, atol):
  file = tmp_path / "tiny.npz"
  file.write_bytes(TINY.read_bytes())
  program = ways.write_exported(file, dtype)

  classes, probabilities = ways.to_host(ways.predict(file, dtype)(PIXELS))
  exported = ways.to_host(ways.exported(program, dtype)(PIXELS))
  jitted = ways.to_host(ways.jitted(file, dtype)(PIXELS))

  np.testing.assert_allclose(exported, jitted, atol=atol)
  of_exported = scipy.special.softmax(exported, axis=-1)
  order = np.argsort(-exported, axis=-1)[:, : ways.TOPK]
  np.testing.assert_array_equal(classes[0], order)  # [devices, n, k]
  np.testing.assert_allclose(
    probabilities[0], np.take_along_axis(of_exported, order, axis=-1), atol=atol
  )


def test_rows_have_a_start_and_single_calls(tiny):
  cell = TinyCell("Mixer-S/32", "inference", "float32", 2)

  rows = measure.measure(cell, rounds=2, calls=3)

  assert [row["implementation"] for row in rows] == list(ways.NAMES)
  for row in rows:
    assert row["calls"] == 6
    assert 0 < row["median_ms"] <= row["p95_ms"] < 1000
    assert row["images_per_second"] == pytest.approx(
      2000 / row["median_ms"], rel=1e-3
    )
    # Compilation is in it, so nobody had compiled it before.
    assert 1e3 * row["first_seconds"] > 5 * row["median_ms"]
    assert row["load_seconds"] >= 0


def test_percentiles_are_of_single_calls():
  timings = [i / 1000 for i in range(101, 0, -1)]

  said = measure.summary(8, timings)

  assert said["median_ms"] == 51.0
  assert said["p95_ms"] == 96.0
  assert said["images_per_second"] == pytest.approx(8 / 0.051, rel=1e-4)
  assert said["calls"] == 101


def test_what_is_known_is_not_measured_again(tmp_path, monkeypatch, capsys):
  asked = []

  def in_process(cell, **how):
    asked.append(cell)
    return rows_of(median=0.1 * len(asked))

  monkeypatch.setattr(inference, "describe_device", lambda: DEVICE)
  monkeypatch.setattr(inference, "in_process", in_process)

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


def test_what_takes_too_long_is_said_and_larger_batches_are_not_tried(
  tmp_path, monkeypatch
):
  asked = []

  def lines(module, flags, limit):
    asked.append(flags)
    raise EndedError("took more than 3 s")
    yield

  monkeypatch.setattr(inference, "describe_device", lambda: DEVICE)
  monkeypatch.setattr(measure, "lines", lines)

  text = inference.fill(**given(tmp_path, batches="2,4"))

  assert len(asked) == 1
  assert text.count("took more than 3 s") == len(ways.NAMES)
  assert table.HEAD[0] in text


@pytest.mark.parametrize(
  "flags, words",
  [
    ({"models": "Mixer-XL/16"}, "'Mixer-XL/16' is none of Mixer-S/32"),
    ({"batches": "0"}, "--batches=0 must be whole numbers above 0"),
    ({"dtype": "float16"}, "'float16' is none of float32, bfloat16"),
    ({"calls": 0}, "--calls=0 must be 1 or more"),
    ({"rounds": 0}, "--rounds=0 must be 1 or more"),
  ],
)
def test_flags_that_make_no_sense_are_refused(
  flags, words, tmp_path, monkeypatch
):
  monkeypatch.setattr(inference, "describe_device", lambda: DEVICE)

  with pytest.raises(UserError, match=words):
    inference.fill(**given(tmp_path, **flags))
