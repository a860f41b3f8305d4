# SPDX-License-Identifier: Apache-2.0
"""A replayed update is that of the run, and its figures are explained."""

import json
import shutil

import cv2
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from runs import read_rows, small

from mixer import train, weights
from mixer.cli import EX_OK
from mixer.data.sources import open_source
from mixer.tools import replay
from mixer.tools.examine import find_first
from mixer.training.lock import locked

pytestmark = pytest.mark.usefixtures("compiled_once")


def make_run(digits_dir, folder, **changes):
  options = dict(
    total_steps=8,
    schedule__warmup_steps=0,
    checkpoint__every_steps=5,
    evals__test__every_steps=0,
    mixup=0.5,
    model__dropout=0.0,  # its masks compile for long
    model__blocks=1,
  )
  config = small(digits_dir, **options | changes)
  assert train.train(config, str(folder)) == EX_OK
  return folder


@pytest.fixture(scope="module")
def run(digits_dir, tmp_path_factory):
  return make_run(
    digits_dir,
    tmp_path_factory.mktemp("run"),
    shard_state=True,
    batch=64,
    accumulation=2,
    sam__rho=0.05,
    sam__images=4,
  )


@pytest.fixture
def copied(run, tmp_path):
  return shutil.copytree(run, tmp_path / "copy")


def contents(folder):
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  return {path: path.read_bytes() for path in files}


def report_of(folder, step, *flags, code=EX_OK):
  assert replay.main([str(folder), f"--step={step}", *flags]) == code
  return json.loads((folder / f"replay_{step}" / "replay.json").read_text())


def check_sums(report, row):
  """The parts of the report agree with the log's numbers of the whole."""
  losses = [example["loss"] for example in report["examples"]]
  assert np.mean(losses) == pytest.approx(row["train/loss"], rel=1e-5)
  for name in "gradient_norm", "update_norm":
    parts = [x[name] for x in report["layers"].values() if name in x]
    whole = row[f"train/{name}"]
    assert np.linalg.norm(parts) == pytest.approx(whole, rel=1e-4)


def test_a_step_between_checkpoints_is_replayed_to_the_bit(run, digits_dir):
  before = contents(run)

  with locked(run):  # as by a run that goes on
    report = report_of(run, 7)

  assert report["compared_steps"] == [6, 7] and report["differences"] == {}
  [row] = [row for row in read_rows(run) if row["step"] == 7]
  assert report["metrics"] == {k: row[k] for k in row if k.startswith("train/")}
  check_sums(report, row)
  assert report["first_not_finite"] is None
  source = open_source("digits", "train", digits_dir)
  for example in report["examples"]:
    [label] = source.read_labels([example["example"]])
    assert source.class_names[label] == example["label"]
  assert cv2.imread(str(run / "replay_7" / "batch.png")).std() > 0
  shutil.rmtree(run / "replay_7")
  assert contents(run) == before


CHANNELS = "MixerBlock_0/channel_mixing/Dense_0/kernel"
TOKENS = "MixerBlock_0/token_mixing"
DEAD = {  # 0 x 3e38 forward
  f"{TOKENS}/Dense_0/kernel": 0.0,
  f"{TOKENS}/Dense_0/bias": 0.0,
  f"{TOKENS}/Dense_1/kernel": 3e38,
  "head/kernel": 1e4,
}


@pytest.mark.parametrize(
  ("values", "place"),
  [
    ({CHANNELS: 3e38}, "MixerBlock_0/channel_mixing/Dense_0 (dot_general, for"),
    (DEAD, f"{TOKENS}/Dense_1 (dot_general, backward"),
  ],
)
def test_the_first_number_that_is_not_finite_is_named(
  run, digits_dir, tmp_path, values, place
):
  params = flatten_dict(weights.load(run), sep="/")
  for name, value in values.items():
    noise = np.random.default_rng(0).uniform(0.5, 1, params[name].shape)
    params[name] = np.float32(noise * value)
  file = tmp_path / "weights.npz"
  weights.save(file, unflatten_dict(params, sep="/"))
  bad = make_run(digits_dir, tmp_path / "run", total_steps=1, init=str(file))

  report = report_of(bad, 1)

  assert report["logged"]["train/skipped"] == 1
  assert report["first_not_finite"].startswith(place)


def test_gradients_whose_norm_overflows_are_named():
  facts = {"operations": [], "gradients": {"kernel": (np.inf, True)}}

  assert find_first(facts, {}, {}).startswith("gradient norm")


def test_a_number_that_is_not_as_logged_is_named_with_what_has_changed(
  copied, capsys
):
  """Before the first checkpoint, so that it starts at initialisation."""
  log = copied / "metrics.jsonl"
  rows = read_rows(copied)
  rows[1]["train/loss"] += 1e-6
  log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  file = copied / "provenance.json"
  content = json.loads(file.read_text())
  content["starts"][0]["devices"] = 4
  content["starts"][0]["git_commit"] = "abc"
  later = {"from_step": 5, "changes": ["seed: 7 -> 0"]}
  content["starts"].append(content["starts"][0] | later)
  file.write_text(json.dumps(content))

  assert replay.main([str(copied), "--step=2"]) == 2
  assert "commit abc" in capsys.readouterr().err
  report = report_of(copied, 2, "--accept_changes", code=1)

  assert report["from_step"] == 0 and report["compared_steps"] == [1, 2]
  [(step, differences)] = report["differences"].items()
  assert (step, [*differences]) == ("2", ["train/loss"])
  check_sums(report, report["logged"])
  out = capsys.readouterr().out
  assert "step 2: train/loss" in out and "devices 4, here 8" in out
  assert "config.seed 7, here 0" in out


def test_without_a_step_it_lists_them_and_wrong_ones_are_refused(
  copied, capsys
):
  assert replay.main([str(copied)]) == EX_OK
  assert "5, 8" in capsys.readouterr().out
  for step in "0", "9":
    assert replay.main([str(copied), f"--step={step}"]) == 2
    assert "1 to 8" in capsys.readouterr().err
  assert replay.main([str(copied / "eval"), "--step=1"]) == 2
  config = json.loads((copied / "config.json").read_text())
  config["data"]["data_dir"] = str(copied)
  (copied / "config.json").write_text(json.dumps(config))
  assert replay.main([str(copied), "--step=7"]) == 2
  assert "digits is not prepared" in capsys.readouterr().err
