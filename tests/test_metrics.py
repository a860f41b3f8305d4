# SPDX-License-Identifier: Apache-2.0
"""Metrics of a training run: rows, event files, rates, progress, plot."""

import io
import json
import resource
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from runs import TIMEOUT, read_rows, tensorboard, wait_until

from mixer.errors import UserError
from mixer.training import metrics
from mixer.training.metrics import MetricWriter
from mixer.training.progress import ProgressLine, Rates, format_seconds


def open_writer(workdir, from_step=0, **options):
  options = {"total_steps": 100, "stream": io.StringIO()} | options
  return MetricWriter(workdir, from_step=from_step, **options)


class SlowArray:
  """Stands for a jax array that a device has not computed yet."""

  def __init__(self, value):
    self.value = value
    self.ready = threading.Event()

  def __array__(self, dtype=None, copy=None):
    assert self.ready.wait(TIMEOUT)
    return np.asarray(self.value)


def test_a_row_holds_its_step_and_floats_that_read_back_exactly(tmp_path):
  values = {
    "train/loss": jnp.float32(0.1),
    "half": jnp.bfloat16(0.5),
    "count": jnp.int32(7),
    "third": 1 / 3,
    "diverged": float("inf"),
  }

  with open_writer(tmp_path) as writer:
    writer.write(3, values)

  [row] = read_rows(tmp_path)
  assert row == {"step": 3} | values | {"train/loss": float(np.float32(0.1))}
  assert (tmp_path / "metrics.jsonl").read_text().startswith('{"step": 3, ')


def test_writing_does_not_wait_for_a_value_that_is_not_computed_yet(tmp_path):
  loss = SlowArray(2.5)
  writer = open_writer(tmp_path)

  writer.write(1, {"train/loss": loss})
  writer.write(2, {"train/loss": 1.5})
  before = read_rows(tmp_path)
  loss.ready.set()
  writer.close()

  assert before == []
  assert read_rows(tmp_path) == [
    {"step": 1, "train/loss": 2.5},
    {"step": 2, "train/loss": 1.5},
  ]


def test_writes_for_one_step_make_one_row(tmp_path):
  with open_writer(tmp_path) as writer:
    writer.write(100, {"train/loss": 2.0})
    writer.flush()
    flushed = read_rows(tmp_path)
    writer.write(100, {"eval/test/accuracy": 0.5, "train/loss": 9.0})
    writer.write(100, {})
    writer.write(200, {"train/loss": 1.0})

  assert flushed == [{"step": 100, "train/loss": 2.0}]
  assert read_rows(tmp_path) == [
    {"step": 100, "train/loss": 2.0, "eval/test/accuracy": 0.5},
    {"step": 200, "train/loss": 1.0},
  ]


@pytest.mark.parametrize(
  "tail",
  [
    b'{"step": 3, "lo',
    b'{"step": 3}',
    b"\0" * 99,
    b'{"step":\0\n{"step": 4}\n',
  ],
)
def test_a_line_torn_by_a_kill_or_a_power_loss_is_dropped(tail, tmp_path):
  whole = b'{"step": 1}\n{"step": 2}\n'
  (tmp_path / "metrics.jsonl").write_bytes(whole + tail)
  assert metrics.read_rows(tmp_path) == [{"step": 1}, {"step": 2}]

  open_writer(tmp_path, 9).close()

  assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_tensorboard_shows_each_value_once_over_restarts(tmp_path):
  def train(first, last, *, from_step, value):
    with open_writer(tmp_path, from_step) as writer:
      for step in range(first, last + 1):
        writer.write(step, {"a": value, "b": value})
      writer.flush()
      writer.write(last, {"eval": value})

  train(0, 5, from_step=0, value=9)
  train(1, 5, from_step=0, value=1)  # a fresh start keeps nothing
  train(4, 8, from_step=3, value=2)
  # A resumed run that evaluates its first step again.
  train(6, 9, from_step=6, value=3)

  values = {step: 1 + (step > 3) + (step > 6) for step in range(1, 10)}
  assert read_rows(tmp_path) == [
    {"step": step, "a": value, "b": value} | ({"eval": 3} if step == 9 else {})
    for step, value in values.items()
  ]
  curve = [*values.items()]
  assert tensorboard(tmp_path) == {"a": curve, "b": curve, "eval": [(9, 3)]}


def test_a_clock_that_was_set_back_does_not_reverse_a_curve(tmp_path):
  with open_writer(tmp_path) as writer:
    for step in range(1, 4):
      writer.write(step, {"a": step})
  (file,) = tmp_path.glob("events*")
  file.rename(tmp_path / "events.out.tfevents.9999999999.vm.1.0.v2")
  for step in 4, 6:
    with open_writer(tmp_path, step - 1) as writer:
      writer.write(step, {"a": step})
      writer.write(step + 1, {"a": step + 1})

  assert tensorboard(tmp_path) == {"a": [(s, s) for s in range(1, 8)]}


def test_tensorboard_shows_the_row_that_a_run_resumes_from(tmp_path):
  with open_writer(tmp_path) as writer:
    writer.write(1, {"a": 1.0})
    writer.write(2, {"a": 2.0})
  # As after a crash before the events of step 2 were on disk.
  (path,) = tmp_path.glob("events*")
  path.write_bytes(path.read_bytes()[:-9])
  torn = tensorboard(tmp_path)

  with open_writer(tmp_path, 2) as writer:
    writer.write(3, {"a": 3.0})

  assert torn == {"a": [(1, 1)]}
  assert tensorboard(tmp_path) == {"a": [(s, s) for s in (1, 2, 3)]}


def test_tensorboard_shows_a_run_that_clu_logged_at_first(tmp_path):
  from clu.metric_writers import SummaryWriter

  former = SummaryWriter(str(tmp_path))
  rows = [{"step": step, "a": 1.0} for step in range(1, 6)]
  for row in rows:
    former.write_scalars(row["step"], {"a": row["a"]})
  former.close()
  (path,) = tmp_path.glob("events*")
  path.rename(tmp_path / "events.out.tfevents.1700000000.host.123.0.v2")
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "metrics.jsonl").write_text(text)

  with open_writer(tmp_path, 3) as writer:
    for step in range(4, 8):
      writer.write(step, {"a": 2.0})

  assert [row["step"] for row in read_rows(tmp_path)] == list(range(1, 8))
  curve = [(step, 1 if step <= 3 else 2) for step in range(1, 8)]
  assert tensorboard(tmp_path) == {"a": curve}


def test_event_files_are_flushed_now_and_then(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics, "FLUSH_SECONDS", 0.0)
  with open_writer(tmp_path) as writer:
    writer.write(1, {"a": 1.0})
    wait_until(lambda: tensorboard(tmp_path))


@pytest.mark.parametrize("file", ["metrics", "events"])
def test_a_full_disk_stops_the_run_with_advice(file, tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  writer = open_writer(tmp_path)
  writer.write(0, {})
  writer.flush()

  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
  try:
    with pytest.raises(UserError, match="File too large. Make room") as error:
      for step in range(1, 2000):
        if file == "metrics":
          writer.write(step, {"train/loss": 1 / 3})
        else:
          writer._submit(writer._write_event, step, {"a": 1.0})
      writer.flush()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)

  assert str(tmp_path) in str(error.value)


def test_a_failed_computation_is_raised_as_itself(tmp_path):
  writer = open_writer(tmp_path)
  writer.write(1, {"train/loss": "much"})

  for wait in writer.flush, writer.close:
    with pytest.raises(ValueError, match="much"):
      wait()


def test_an_error_in_the_loop_is_not_hidden_by_one_of_the_log(tmp_path):
  with pytest.raises(KeyError), open_writer(tmp_path) as writer:
    writer.write(1, {"train/loss": "no number"})
    raise KeyError


class Time:
  """A clock that a test sets forward."""

  seconds = 100.0

  def __call__(self):
    return self.seconds


def test_rates_count_updates_and_the_wait_for_data_only():
  rates = Rates(step=10, batch=32, devices=4)

  measured = rates.read(20, {"update": 6.0, "batch": 2.0, "evaluation": 50.0})
  nothing_new = rates.read(20, {"update": 7.0, "batch": 2.0})
  next_interval = rates.read(30, {"update": 12.0, "batch": 2.0, "save": 9.0})

  assert measured == {
    "images_per_second": 40.0,
    "images_per_second_per_device": 10.0,
    "data_wait": 0.25,
  }
  assert nothing_new == {}
  assert next_interval["images_per_second"] == 64.0
  assert next_interval["data_wait"] == 0.0


def test_mfu_is_the_share_of_the_peak_where_that_is_known(monkeypatch):
  rates = Rates(step=0, batch=10, devices=2, flops_per_image=3e12)
  on_a_cpu = rates.read(1, {"update": 1.0})
  monkeypatch.setattr("mixer.training.progress.peak_flops", lambda kind: 60e12)
  on_an_accelerator = rates.read(2, {"update": 2.0})

  assert "mfu" not in on_a_cpu
  assert on_an_accelerator["mfu"] == 0.25


def test_a_terminal_gets_one_line_that_messages_do_not_garble(monkeypatch):
  monkeypatch.setenv("COLUMNS", "56")  # cuts the line
  terminal, now = io.StringIO(), Time()
  terminal.isatty = lambda: True
  progress = ProgressLine(2000, terminal, now)

  progress.message("first")
  now.seconds += 75.0
  progress.show(500, {"train/loss": 1.25, "images_per_second": 12345.6})
  progress.message("checkpoint saved")
  now.seconds += 0.01
  progress.show(501, {})
  progress.close()

  line = "1:15 · step 500/2000 (25%) · loss 1.25 · 12,346 images/"
  erase = "\r\x1b[K"
  assert terminal.getvalue() == (
    "first\n"
    f"{erase}{line}"
    f"{erase}checkpoint saved\n{erase}{line}"
    f"{erase}1:15 · step 501/2000 (25%) · 0:15 left\n"
  )


def test_the_time_left_ignores_the_first_step_which_compiles():
  file, now = io.StringIO(), Time()
  progress = ProgressLine(1900, file, now)

  now.seconds += 1000.0
  progress.show(10, {})
  now.seconds += 20.0
  progress.show(20, {})

  first, second = file.getvalue().splitlines()
  assert "left" not in first
  assert second.endswith(" · 1:02:40 left")
  assert format_seconds(3599.6) == "1:00:00"
  assert format_seconds(266700) == "3d 02:05"


def test_a_file_gets_a_plain_line_now_and_then_and_the_last():
  file, now = io.StringIO(), Time()
  progress = ProgressLine(100, file, now)

  for step in range(1, 26):
    now.seconds += 1.0
    progress.show(step, {})
    if step == 2:
      progress.message("hello")
  progress.close()
  progress.close()

  assert file.getvalue().splitlines() == [
    "0:01 · step 1/100 (1%)",
    "hello",
    "0:11 · step 11/100 (11%) · 1:29 left",
    "0:21 · step 21/100 (21%) · 1:19 left",
    "0:25 · step 25/100 (25%) · 1:15 left",
  ]


def test_a_loss_updates_the_progress_line(tmp_path):
  file = io.StringIO()
  with open_writer(tmp_path, total_steps=8, stream=file) as writer:
    writer.message("hello")
    writer.write(2, {"train/loss": jnp.float32(0.5)})
    writer.write(2, {"eval/test/loss": 0.75})

  assert file.getvalue() == "hello\n0:00 · step 2/8 (25%) · loss 0.5\n"
