# SPDX-License-Identifier: Apache-2.0
import json
import re

from benchmarks import transfer
from benchmarks.transfer.__main__ import grown_apart, tuned_rows
from mixer import weights


def test_initial_features_are_probed_and_grown_ones_are_means(
  half_digits, tmp_path, monkeypatch
):
  monkeypatch.setenv("TFDS_DATA_DIR", half_digits)

  results = transfer.probe_at_start("finetune", None)
  _, params = transfer.initial_params(transfer.recipe("pretrain"))
  weights.save(tmp_path / "small.npz", params)

  for shots in 5, 10:
    accuracy = transfer.format_probe(results, shots)
    assert re.fullmatch(r"\d+\.\d ± \d+\.\d", accuracy)
  assert grown_apart(tmp_path / "small.npz") < 1e-4


def test_sweeps_are_rows(tmp_path):
  means = {"eval/test/accuracy": {"mean": 0.948, "deviation": 0.0051}}
  sweep = {"learning_rate": 0.3, "config": {"total_steps": 20}, "means": means}
  for name in "finetune", "scratch":
    (tmp_path / name).mkdir()
    (tmp_path / name / "sweep.json").write_text(json.dumps(sweep))

  tuned, scratch = tuned_rows(tmp_path)

  assert tuned[0].endswith("grown by tiles, learning rate 0.3")
  assert scratch[-2:] == (20, "94.8 ± 0.5")
