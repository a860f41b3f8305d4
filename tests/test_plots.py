# SPDX-License-Identifier: Apache-2.0
"""The plotting style: running means, axes of accuracies, the learning curve."""

import json

import numpy as np
import pytest

from mixer.errors import UserError
from mixer.training import plots


def test_a_running_mean_is_over_a_fifth_of_the_values():
  losses = np.random.RandomState(0).uniform(size=30)

  means, window = plots.running_mean(losses)

  assert window == 6
  np.testing.assert_allclose(means[:2], [losses[0], losses[:2].mean()])
  for i in range(5, 30):
    np.testing.assert_allclose(means[i], losses[i - 5 : i + 1].mean())
  assert plots.running_mean(np.ones(1000))[1] == 50


def test_a_running_mean_leaves_out_what_is_not_finite():
  losses = [1.0, np.nan, 3.0, np.inf, 5.0, 6.0, np.nan, np.nan, np.nan, 1.0]

  means, window = plots.running_mean(losses)

  assert window == 2
  np.testing.assert_allclose(means, [1, 1, 3, 3, 5, 5.5, 6, np.nan, np.nan, 1])


@pytest.mark.parametrize("accuracy", [0.0, 1.0, 0.003, 0.5])
def test_an_axis_of_accuracies_stays_within_0_and_100_per_cent(accuracy):
  [axes] = plots.make_axes(plots.new_figure(4, 3))
  axes.plot([1, 2], [accuracy, accuracy], marker="o")

  plots.limit_accuracy(axes, 1.0)

  low, high = axes.get_ylim()
  assert 0 <= low <= accuracy <= high <= 1 and low < high


def test_the_learning_curve_has_the_numbers_of_the_log(tmp_path, monkeypatch):
  rows = [
    {"step": step, "train/loss": 10.0 / step, "eval/fewshot/a/5shot_std": 0.1}
    for step in range(1, 21)
  ]
  rows[-1] |= {"eval/test/loss": 0.25, "eval/test/accuracy": 0.5}
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "metrics.jsonl").write_text(text)
  figures = []
  new_figure = plots.new_figure
  with pytest.raises(UserError, match="Is this the folder of a training run"):
    plots.draw_learning_curve(tmp_path / "none")
  monkeypatch.setattr(
    plots,
    "new_figure",
    lambda *size: figures.append(new_figure(*size)) or figures[-1],
  )

  plots.draw_learning_curve(tmp_path)

  upper, lower = figures[0].axes
  losses = [row["train/loss"] for row in rows]
  batches, means, test = upper.lines
  np.testing.assert_array_equal(batches.get_ydata(), losses)
  mean = np.mean(losses[-4:])
  np.testing.assert_allclose(means.get_ydata()[-1], mean)
  assert means.get_label() == f"training, mean of 4 logged batches: {mean:.4g}"
  assert test.get_label() == "test: 0.25"
  assert upper.get_title(loc="left") == "loss of the batch at step 20: 0.5"
  [accuracy] = lower.lines  # deviations are not drawn
  assert accuracy.get_label() == "test: 50.0%, best 50.0%"
