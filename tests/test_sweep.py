# SPDX-License-Identifier: Apache-2.0
"""Sweeps of real runs on the digits: choice, report, parallel processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import ROOT, read_rows
from sweeps import METRIC, REPORT, STEPS, read_report, results, small

from mixer import train, weights
from mixer.cli import EX_OK, EX_TEMPFAIL
from mixer.config import evaluator
from mixer.errors import UserError
from mixer.tools.sweep.plan import Outcome, best_outcome, grid_runs, plan_sweep
from mixer.tools.sweep.report import write_report
from mixer.tools.sweep.sweep import dry_run, listen_for_signals, sweep
from mixer.training import run_dir
from mixer.training.lock import locked

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def config(digits_dir):
  """Returns the config of a sweep in which one of three rates diverges."""
  return small(digits_dir, sweep__learning_rates=(0.001, 1e30, 0.01))


@pytest.fixture(scope="module")
def swept(config, tmp_path_factory):
  """Returns the folder of the finished sweep."""
  folder = tmp_path_factory.mktemp("swept")
  assert sweep(config, str(folder)) == EX_OK
  return folder


@pytest.fixture
def unreported(swept, tmp_path):
  """Returns a copy of its folder without the report."""
  folder = shutil.copytree(swept, tmp_path / "swept")
  (folder / "sweep.json").unlink()
  return folder


def test_the_report_has_the_results_that_the_runs_logged(swept):
  found = read_report(swept)

  last = {
    rate: read_rows(swept / f"lr_{rate}")[-1] for rate in ("0.001", "0.01")
  }
  best = max(last, key=lambda rate: last[rate][METRIC])
  assert last["0.001"][METRIC] != last["0.01"][METRIC]
  assert found["learning_rate"] == float(best)
  finals = [
    read_rows(swept / f"final_lr_{best}_seed_{seed}")[-1] for seed in (0, 1)
  ]
  assert finals[0][REPORT] != finals[1][REPORT]
  for name in (REPORT, "eval/test/loss", "eval/test/accuracy_top5"):
    values = [row[name] for row in finals]
    assert found["means"][name] == {
      "mean": pytest.approx(np.mean(values), rel=1e-12),
      "deviation": pytest.approx(np.std(values, ddof=1), rel=1e-12),
      "runs": 2,
    }
  for runs, rows in (found["grid"], last.values()), (found["final"], finals):
    sound = [run for run in runs if not run["failure"]]
    for run, row in zip(sound, rows, strict=True):
      assert row["step"] == STEPS
      assert run["results"] == {k: v for k, v in row.items() if "eval/" in k}
  [failed] = [run for run in found["grid"] if run["failure"]]
  assert failed["learning_rate"] == 1e30
  assert "had no effect" in failed["failure"]
  assert found["config"]["sweep"]["learning_rates"] == [0.001, 1e30, 0.01]
  assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:+]+", found["provenance"]["date"])


def test_the_table_has_every_run_and_the_mean_in_its_first_line(swept):
  text = (swept / "sweep.md").read_text()

  found = read_report(swept)
  mean = found["means"][REPORT]
  assert f"{REPORT} **{mean['mean']:.5f} ± {mean['deviation']:.5f}**" in text
  rows = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in text.splitlines()
    if line.startswith("|")
  ]
  by_folder = {row[-2]: row for row in rows}
  for run in found["grid"] + found["final"]:
    row = by_folder[run["folder"]]
    for name, value in run["results"].items():
      # Losses are only in the JSON file.
      assert (f"{value:.5f}" in row) == (not name.endswith("/loss"))
  assert by_folder[f"lr_{found['learning_rate']:g}"][-1] == "chosen"
  assert "failed: The last 10 updates" in text


def test_final_runs_take_all_images_and_drop_the_evaluator_of_the_rate(swept):
  rate = read_report(swept)["learning_rate"]

  grid = json.loads((swept / f"lr_{rate:g}" / "config.json").read_text())
  assert grid["data"]["split"] == "train[:90%]"
  assert set(grid["evals"]) == {"minival", "test"}
  for seed in (0, 1):
    folder = swept / f"final_lr_{rate:g}_seed_{seed}"
    final = json.loads((folder / "config.json").read_text())
    assert final["seed"] == seed
    assert final["optimizer"]["learning_rate"] == rate
    assert final["data"]["split"] == "train"
    assert final["data"]["examples"] == 1_437
    assert set(final["evals"]) == {"test"}
    assert final["checkpoint"]["best"] == ""


def test_a_longer_grid_adds_runs_and_repeats_neither_finished_nor_failed_ones(
  swept, digits_dir, tmp_path, monkeypatch
):
  folder = shutil.copytree(swept, tmp_path / "swept")
  rates = (0.001, 1e30, 0.01, 0.05)
  config = small(digits_dir, sweep__learning_rates=rates, sweep__seeds=1)
  trained, real = [], train.train

  def record(config, workdir, **options):
    trained.append(Path(workdir).name)
    return real(config, workdir, **options)

  monkeypatch.setattr(train, "train", record)
  assert sweep(config, str(folder)) == EX_OK

  found, before = read_report(folder), read_report(swept)
  assert found["grid"][:2] == before["grid"][:2]
  assert found["learning_rate"] == 0.05, "the test is for a better one"
  assert trained == ["lr_0.05", "final_lr_0.05_seed_0"]
  assert read_rows(folder / "final_lr_0.01_seed_0"), "the old ones stay"


def test_an_interrupted_sweep_goes_on_and_ends_with_the_same_results(
  swept, unreported, config, capsys
):
  folder = unreported
  names = "lr_0.001", "final_lr_0.01_seed_1"
  for name in names:
    shutil.rmtree(folder / name)
  for name in names:
    with pytest.MonkeyPatch.context() as patch, listen_for_signals() as stop:
      patch.setattr(train, "open_batches", stop_at_fourth(train.open_batches))
      assert sweep(config, str(folder), should_stop=stop) == EX_TEMPFAIL
    assert not (folder / "sweep.json").exists()
    assert not (folder / name / "weights.npz").exists()
    assert re.search(r"saved at step \d+", capsys.readouterr().out)

  assert sweep(config, str(folder)) == EX_OK

  assert "Goes on from the checkpoint of step" in capsys.readouterr().out
  assert results(read_report(folder)) == results(read_report(swept))


def stop_at_fourth(open_batches):
  """Sends this process SIGTERM at the fourth batch of a run's beginning."""

  def stopping(plan, hosts, start):
    for i, batch in enumerate(open_batches(plan, hosts, start)):
      if i == 4 and not start:
        signal.raise_signal(signal.SIGTERM)
      yield batch

  return stopping


# The command with another waiting time.
COMMAND = """
import sys
from mixer import cli
from mixer.tools.sweep import __main__ as command

command.WAIT_SECONDS = float(sys.argv.pop(1))
cli.run(command.main)
"""


def start_parallel(digits_dir, folder, wait):
  """Starts `python -m mixer sweep --parallel` in a folder."""
  environ = os.environ | {
    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return subprocess.Popen(
    [sys.executable, "-c", COMMAND, str(wait), "--parallel"]
    + ["--config=tests/sweeps.py", f"--config.data.data_dir={digits_dir}"]
    + ["--config.sweep.learning_rates=(0.001,1e30,0.01)"]
    + [f"--workdir={folder}"],
    cwd=ROOT,
    env=environ,
    stdout=subprocess.PIPE,
    text=True,
  )


def test_two_processes_share_the_runs_and_report_the_same(
  swept, unreported, digits_dir
):
  folder = unreported
  finals = [folder / f"final_lr_0.01_seed_{seed}" for seed in (0, 1)]
  for final in finals:
    shutil.rmtree(final)

  both = [start_parallel(digits_dir, folder, 0.5) for _ in range(2)]
  outputs = [process.communicate()[0] for process in both]

  assert [process.returncode for process in both] == [0, 0], outputs
  assert results(read_report(folder)) == results(read_report(swept))
  for final in finals:
    provenance = json.loads((final / "provenance.json").read_text())
    assert len(provenance["starts"]) == 1


@pytest.mark.parametrize("environ", [{}, {"SLURM_ARRAY_TASK_ID": "0"}])
def test_a_sweep_in_a_slurm_array_is_parallel(environ):
  command = "import mixer.tools.sweep.__main__ as x; print(x.PARALLEL.default)"
  others = {k: v for k, v in os.environ.items() if k != "SLURM_ARRAY_TASK_ID"}

  out = subprocess.check_output(
    [sys.executable, "-c", command], cwd=ROOT, env=others | environ, text=True
  )

  assert out.strip() == str(bool(environ))


def test_a_signal_ends_the_wait_for_other_processes(unreported, digits_dir):
  folder = unreported
  (folder / "lr_0.001" / "weights.npz").unlink()

  with locked(folder / "lr_0.001"):
    process = start_parallel(digits_dir, folder, 86_400)
    lines = iter(process.stdout.readline, "")
    is_waiting = any("Other processes train lr_0.001:" in x for x in lines)
    process.terminate()
    process.communicate()

  assert is_waiting
  assert process.returncode == EX_TEMPFAIL


def test_a_parallel_sweep_waits_for_the_runs_of_other_processes(
  unreported, config, capsys
):
  folder = unreported
  (folder / "lr_0.001" / "weights.npz").unlink()

  with locked(folder / "lr_0.001"):
    with pytest.raises(UserError, match="Another process trains in .*lr_0.001"):
      sweep(config, str(folder))
    assert sweep(config, str(folder), parallel=True) == EX_TEMPFAIL

  assert "Other processes train lr_0.001:" in capsys.readouterr().out
  assert not (folder / "sweep.json").exists()


def test_a_stop_that_comes_after_a_runs_last_step_ends_the_sweep(
  digits_dir, tmp_path, monkeypatch, capsys
):
  real = run_dir.draw_learning_curve

  def signal_first(folder):
    signal.raise_signal(signal.SIGTERM)
    return real(folder)

  monkeypatch.setattr(run_dir, "draw_learning_curve", signal_first)
  with listen_for_signals() as should_stop:
    config = small(digits_dir)
    code = sweep(config, str(tmp_path), should_stop=should_stop)

  assert code == EX_TEMPFAIL
  assert "Stopped between two runs" in capsys.readouterr().out
  assert (tmp_path / "lr_0.001" / "weights.npz").exists()
  assert not (tmp_path / "lr_0.01").exists()


def test_a_stop_between_runs_is_ctrl_c_and_handlers_come_back():
  before = signal.getsignal(signal.SIGTERM)

  with pytest.raises(KeyboardInterrupt), listen_for_signals():
    signal.raise_signal(signal.SIGTERM)

  assert signal.getsignal(signal.SIGTERM) == before
  assert signal.set_wakeup_fd(-1) == -1


def test_rates_that_are_the_same_to_six_digits_are_one_run(
  digits_dir, tmp_path
):
  config = small(digits_dir, sweep__learning_rates=(0.3, 3 * 0.1, 0.01, 0.3))

  runs = grid_runs(config, tmp_path)

  assert [run.folder.name for run in runs] == ["lr_0.01", "lr_0.3"]


def test_of_equal_rates_the_lowest_is_chosen_and_of_losses_the_least(
  digits_dir, tmp_path
):
  config = small(digits_dir, sweep__learning_rates=(0.3, 0.1, 0.2, 0.4))
  runs = grid_runs(config, tmp_path)
  values = (0.5, 0.75, 0.75, float("nan"))
  outcomes = [
    Outcome(run, {METRIC: value, "eval/minival/loss": value})
    for run, value in zip(runs, values, strict=True)
  ]

  assert best_outcome(config, outcomes).run.learning_rate == 0.2
  config.sweep.metric = "eval/minival/loss"
  assert best_outcome(config, outcomes).run.learning_rate == 0.1
  assert best_outcome(config, outcomes[-1:]) is None


def test_where_all_rates_fail_the_reasons_are_the_message(
  unreported, digits_dir
):
  config = small(digits_dir, sweep__learning_rates=(1e30,))

  with pytest.raises(UserError) as error:
    sweep(config, str(unreported))

  assert f"has a finite {METRIC}: try lower rates" in str(error.value)
  assert "lr_1e+30: The last 10 updates up to step 12" in str(error.value)
  assert not (unreported / "sweep.json").exists()


@pytest.mark.parametrize(
  "changes, words",
  [
    (
      {"sweep.metric": "eval/minval/accuracy"},
      "did you mean eval/minival/accuracy?",
    ),
    ({"sweep.metric": ""}, "is not set"),
    ({"sweep.report": METRIC}, "of no evaluator that the final runs have; did"),
    ({"sweep.learning_rates": ()}, "config.sweep.learning_rates is empty"),
    ({"sweep.learning_rates": (0.1, -1)}, "has -1: rates are above 0"),
    ({"sweep.learning_rates": ("x",)}, "has 'x': rates are above 0"),
    ({"sweep.full_examples": 1_436}, "set config.sweep.full_examples = 1437"),
    ({"sweep.full_split": "trian"}, "In the final runs: config.data: digits"),
    ({"sweep.full_split": None}, "config.sweep.full_examples is set, but"),
    (
      {"sweep.metric": "x", "sweep.full_examples": 7, "evals.test.name": "dtd"},
      ("sweep.metric = 'x'", "full_examples = 1437", "dtd is not prepared"),
    ),
  ],
)
def test_problems_are_reported_before_the_first_run(
  changes, words, digits_dir, tmp_path
):
  config = small(digits_dir)
  config.update_from_flattened_dict(changes)

  with pytest.raises(UserError) as error:
    dry_run(config, str(tmp_path / "new"))

  for each in [words] if isinstance(words, str) else words:
    assert str(error.value).count(each) == 1
  assert not (tmp_path / "new").exists()


def test_a_dry_run_counts_runs_steps_and_images(digits_dir, tmp_path, capsys):
  config = small(digits_dir, sweep__learning_rates=(0.1, 0.2, 0.3))

  assert dry_run(config, str(tmp_path)) == EX_OK

  out = capsys.readouterr().out
  assert "grid          3 runs, learning rates 0.1, 0.2, 0.3;" in out
  assert "final         2 runs on train (1,437 examples)" in out
  assert f"in total      5 runs, {5 * STEPS} steps, 3,840 images" in out


def test_runs_with_another_config_are_refused_unless_accepted(
  swept, digits_dir, tmp_path
):
  config = small(digits_dir, optimizer__b1=0.8)

  plan = plan_sweep(config, swept)

  [of_grid, of_finals] = plan.complaints.problems
  assert f"{swept / 'lr_0.001'} holds a run with another config" in of_grid
  assert "optimizer.b1: 0.9 -> 0.8" in of_grid
  assert f"The same holds for {swept / 'lr_0.01'}" in of_grid
  assert "final_lr_0.01_seed_0 holds a run" in of_finals
  assert not plan_sweep(config, swept, accept_changes=True).complaints.problems
  inside = plan_sweep(small(digits_dir), swept / "lr_0.01")
  [problem] = inside.complaints.problems
  assert "holds a run, and no sweep" in problem


def test_a_result_that_finished_runs_lack_is_a_problem(swept, digits_dir):
  config = small(digits_dir, sweep__metric="eval/other/accuracy")
  config.evals.other = evaluator(split="train[90%:]", ops="central_crop(8)")

  first, *_ = plan_sweep(config, swept).complaints.problems

  assert "lr_0.001 ended without eval/other/accuracy" in first
  assert METRIC in first


def test_where_no_split_is_held_back_the_final_runs_keep_all_evaluators(
  digits_dir, tmp_path
):
  config = small(
    digits_dir,
    sweep__full_split=None,
    sweep__full_examples=None,
    sweep__report=METRIC,
  )

  plan = plan_sweep(config, tmp_path)

  assert not plan.complaints.problems
  assert plan.final_config.data.split == "train[:90%]"
  assert set(plan.final_config.evals) == {"minival", "test"}
  assert plan.final_config.checkpoint.best == METRIC


def test_a_result_on_the_images_that_chose_the_rate_is_called_optimistic(
  digits_dir, tmp_path
):
  same = dict(full_split=None, full_examples=None, report=METRIC, seeds=1)
  config = small(digits_dir, **{f"sweep__{key}": x for key, x in same.items()})
  plan = plan_sweep(config, tmp_path)
  grid = [Outcome(run, {METRIC: 1.0}) for run in plan.grid]
  finals = [Outcome(run, {METRIC: 1.0}) for run in plan.finals(0.001)]

  text = write_report(plan, grid, grid[0], finals)

  assert "one run on train[:90%]" in text and "is optimistic" in text


def test_the_weights_of_a_sweep_are_read_once_for_its_plan(
  swept, digits_dir, tmp_path, monkeypatch
):
  params = weights.load(swept / "lr_0.001" / "weights.npz")
  weights.save(tmp_path / "exact.npz", params, gelu="exact")
  config = small(digits_dir, init=str(tmp_path / "exact.npz"))
  names, read = [], weights.read
  monkeypatch.setattr(weights, "read", lambda n: names.append(n) or read(n))

  plan = plan_sweep(config, tmp_path / "sweep")

  assert not plan.complaints.problems
  assert names == [config.init]
  for each in plan.grid_plan, plan.final_plan:
    assert each.model.module.gelu == "exact"
