# SPDX-License-Identifier: Apache-2.0
"""Figures 2, 3, 4 and throughput, from the paper's tables and from results."""

import json
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from test_paper_tables import measure_throughput

from mixer.tools.paper.__main__ import main
from mixer.tools.paper.figures import charts, experiments, pareto
from mixer.tools.paper.numbers import TABLE_2, TABLE_3
from mixer.training import plots

HEAD = {
  "date": "2026-01-02T03:04:05+00:00",
  "git_commit": "0123456789abcdef",
  "git_changes": False,
  "devices": "1 x cpu",
}
STEPS = [0, 50, 100]


def run(seed, last):
  """A run whose results rise to `last` at the step before the end."""
  return {
    "seed": seed,
    "steps": STEPS,
    "eval/fewshot/few/5shot": [0.1, last, last - 0.01 * seed],
    "eval/test/accuracy": [0.07, last + 0.05, last],
    "eval/val/accuracy": [0.07, last, 0.9 * last],
  }


def write(folder, name, about, ends):
  """A file of results, a curve for each of the ends."""
  config = {"model.num_classes": 15, "total_steps": 100}
  curves = [
    dict(zip(about, key, strict=True))
    | {"config": config | {"data.examples": 1000}}
    | {"runs": [run(seed, end) for seed in range(3)]}
    for key, end in ends.items()
  ]
  (folder / name).write_text(json.dumps(HEAD | {"curves": curves}))


@pytest.fixture
def results(tmp_path):
  """A folder of results of both experiments and of two devices."""
  ends = {
    (model, kind): 0.5 - 0.1 * i
    for model in experiments.PERMUTED_MODELS
    for i, kind in enumerate(experiments.INPUTS)
  }
  write(tmp_path, experiments.PERMUTATIONS, ("model", "input"), ends)
  ends = {
    (model, share): 0.1 + share / 400 + 0.03 * i
    for i, model in enumerate(experiments.SIZE_MODELS)
    for share in (3, 10, 30, 100)
  }
  write(tmp_path, experiments.DATA_SIZE, ("model", "share"), ends)
  for device, factor in ("a slow one", 0.01), ("a fast one", 2):
    speeds = {"Mixer-B/16": 1384, "Mixer-L/16": 419, "ViT-B/16": 861}
    speeds = {model: [factor * speed] for model, speed in speeds.items()}
    measure_throughput(tmp_path, device, speeds)
  return tmp_path


def words(file):
  """Returns an SVG, in which each text stands in a comment by its outlines."""
  ElementTree.parse(file)
  return file.read_text()


ORIGIN = "2026-01-02, commit 0123456, 1 x cpu", "JFT-300M"
OF_TABLE_3 = "Mixer-L/16", "R152x2", "14 epochs"


@pytest.mark.parametrize(
  "name, expected",
  [
    ("4", ("original 49", "patches 39", "pixels 29", "ResNet", *ORIGIN)),
    ("2", ("small Mixer", "30 %", "1,000", "NFNet-F4+", *ORIGIN)),
    ("3", ("Mixer-H/14", "ViT-H/14", "R152x2", "14 epochs", "core-days")),
    ("throughput", ("here: a fast one", *OF_TABLE_3)),
  ],
)
def test_a_figure_is_drawn_with_its_lines_and_its_origin_named(
  name, expected, results, tmp_path, capsys
):
  out = tmp_path / "figure.svg"

  flags = [] if name == "3" else [f"--results={results}"]
  code = main(["figure", name, *flags, f"--out={out}"])

  assert code == 0
  assert f"{out} and {out.with_suffix('.png')}" in capsys.readouterr().out
  text = words(out)
  for word in expected:
    assert word in text
  picture = cv2.imread(str(out.with_suffix(".png")))
  assert picture.shape[1] > 700
  assert 0.01 < (picture < 250).any(axis=-1).mean() < 0.6
  assert out.with_suffix(".png").stat().st_size < 80_000


def test_runs_are_judged_where_their_validation_accuracy_was_best():
  curve = {"runs": [run(0, 0.4), run(2, 0.6)]}

  results = experiments.stopped(curve, "eval/test/accuracy")

  assert results.tolist() == [0.45, 0.65]


@pytest.mark.parametrize(
  "name, file, command",
  [
    ("2", experiments.DATA_SIZE, "benchmarks.data_size"),
    ("4", experiments.PERMUTATIONS, "benchmarks.permutations"),
  ],
)
def test_results_that_are_missing_or_damaged_name_the_command(
  name, file, command, tmp_path, capsys
):
  for problem in "There are no results", f"{file} is damaged":
    assert main(["figure", name, f"--results={tmp_path}"]) == 2

    message = capsys.readouterr().err
    assert problem in message and f"python -m {command}" in message
    assert message.count("\n") == 1
    (tmp_path / file).write_text('{"curves": [')


def test_a_frontier_has_no_point_that_another_one_beats():
  points = [(1.0, 86.0), (2.0, 84.0), (2.0, 85.0), (4.0, 74.0), (5.0, 75.0)]

  best = [(1.0, 86.0), (2.0, 85.0), (5.0, 75.0)]
  assert pareto.frontier(points) == best
  costs = [(-x, y) for x, y in points]
  cheapest = [(-x, y) for x, y in reversed(best)]
  assert pareto.frontier(costs, is_cost=True) == cheapest


def test_figure_3_and_the_left_of_figure_2_have_the_tables_numbers():
  figure = plots.new_figure(8, 4)
  left, right = plots.make_axes(figure, 1, 2)
  rows = [
    row for row in TABLE_3 if row.data == "JFT-300M" and row.resolution == 224
  ]

  pareto.draw_table2(left)
  pareto.draw_points(right, [(r, r.images_per_second) for r in rows])

  def markers(axes):
    return {
      (line.get_xdata()[0], line.get_ydata()[0])
      for line in axes.lines
      if len(line.get_xdata()) == 1
    }

  assert markers(left) == {(r.thousand_core_days, r.imagenet) for r in TABLE_2}
  assert markers(right) == {(r.images_per_second, r.imagenet) for r in rows}
  assert len(rows) == 15


def test_throughput_does_without_measurements(tmp_path):
  message = pareto.draw_throughput(tmp_path, tmp_path / "figure.svg")

  assert "Nothing is measured here yet" in message
  assert "python -m benchmarks.throughput" in message
  assert "here:" not in words(tmp_path / "figure.svg")


def test_the_fastest_device_is_first_and_in_the_dtype_of_most_models(results):
  speeds = dict.fromkeys(["Mixer-B/16", "Mixer-L/16"], [9_000])
  measure_throughput(results, "a fast one", speeds, "bfloat16")

  devices = dict(pareto.rank_devices(results))

  assert [*devices] == ["a fast one, float32", "a slow one, float32"]
  rates = {row.model: rate for row, rate in devices["a fast one, float32"]}
  assert rates == {"Mixer-B/16": 2768, "Mixer-L/16": 838, "ViT-B/16": 1722}


def test_labels_are_moved_apart_as_little_as_that_allows():
  places = np.array([10.0, 50.0, 11.0, 12.0])

  apart = charts.spread(places, gap=5.0)

  assert apart.tolist() == [6.0, 50.0, 11.0, 16.0]


def test_labels_of_a_cloud_cover_neither_each_other_nor_markers():
  rows = [row for row in TABLE_3 if row.images_per_second]
  figure = plots.new_figure(9, 5)
  [axes] = plots.make_axes(figure)
  pareto.draw_points(axes, [(r, r.images_per_second) for r in rows])

  figure.draw_without_rendering()
  boxes = [text.get_window_extent() for text in axes.texts]
  centers = [
    axes.transData.transform((r.images_per_second, r.imagenet)) for r in rows
  ]

  assert len(boxes) == len(rows)
  assert not any(
    one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i]
  )
  assert not any(box.contains(*center) for box in boxes for center in centers)
