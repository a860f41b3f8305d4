# SPDX-License-Identifier: Apache-2.0
"""Metrics of a training run: rows, event files, rates, progress, plot."""

import io
import json
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from runs import TIMEOUT, wait_until
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.util import tensor_util

from mixer.errors import UserError
from mixer.training import metrics
from mixer.training.metrics import MetricWriter, read_rows
from mixer.training.plots import draw_learning_curve
from mixer.training.progress import ProgressLine, Timer, format_seconds

ROOT = Path(__file__).resolve().parent.parent


def open_writer(workdir, from_step=0, **options):
  options = {"total_steps": 100, "batch": 8, "devices": 1} | options
  return MetricWriter(
    workdir, from_step=from_step, stream=io.StringIO(), **options
  )


def lines(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def steps_of(workdir):
  return [row["step"] for row in lines(workdir)]


def events(workdir):
  """(step, tag, value) of every scalar that TensorBoard shows."""
  accumulator = plugin_event_accumulator.EventAccumulator(
    str(workdir), size_guidance={plugin_event_accumulator.TENSORS: 0}
  )
  accumulator.Reload()
  return sorted(
    (event.step, tag, float(tensor_util.make_ndarray(event.tensor_proto)))
    for tag in accumulator.Tags()["tensors"]
    for event in accumulator.Tensors(tag)
  )


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

  with open_writer(tmp_path, 0) as writer:
    writer.write(3, values)

  assert lines(tmp_path) == [
    {
      "step": 3,
      "train/loss": float(np.float32(0.1)),
      "half": 0.5,
      "count": 7,
      "third": 1 / 3,
      "diverged": float("inf"),
    }
  ]
  assert (tmp_path / "metrics.jsonl").read_text().startswith('{"step": 3, ')


def test_writing_does_not_wait_for_a_value_that_is_not_computed_yet(tmp_path):
  loss = SlowArray(2.5)
  writer = open_writer(tmp_path, 0)

  writer.write(1, {"train/loss": loss})
  writer.write(2, {"train/loss": 1.5})
  before = lines(tmp_path)
  loss.ready.set()
  writer.close()

  assert before == []
  assert lines(tmp_path) == [
    {"step": 1, "train/loss": 2.5},
    {"step": 2, "train/loss": 1.5},
  ]


def test_writes_for_one_step_make_one_row(tmp_path):
  with open_writer(tmp_path) as writer:
    writer.write(100, {"train/loss": 2.0})
    writer.write(100, {"eval/test/accuracy": 0.5, "train/loss": 9.0})
    writer.write(100, {})
    writer.write(200, {"train/loss": 1.0})

  assert lines(tmp_path) == [
    {"step": 100, "train/loss": 2.0, "eval/test/accuracy": 0.5},
    {"step": 200, "train/loss": 1.0},
  ]


def test_a_write_after_a_flush_adds_to_the_row_that_is_on_disk(tmp_path):
  with open_writer(tmp_path, 0) as writer:
    writer.write(1, {"a": 1.0})
    writer.write(2, {"a": 2.0})
    writer.flush()
    flushed = lines(tmp_path)
    writer.write(2, {"b": 3.0})
    writer.write(3, {"a": 4.0})

  assert flushed == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}]
  assert lines(tmp_path) == [
    {"step": 1, "a": 1.0},
    {"step": 2, "a": 2.0, "b": 3.0},
    {"step": 3, "a": 4.0},
  ]


def test_a_process_that_does_not_log_leaves_no_trace(tmp_path):
  workdir = tmp_path / "run"

  with open_writer(workdir, enabled=False) as writer:
    writer.write(1, {"train/loss": 1.0})
    writer.message("hello")
    writer.profile(11)
    writer.flush()

  assert not workdir.exists()


def test_a_resumed_run_keeps_rows_up_to_its_step_and_drops_a_torn_line(
  tmp_path,
):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "tra')
  before_resuming = [row["step"] for row in read_rows(tmp_path)]

  with open_writer(tmp_path, 2) as writer:
    writer.write(2, {"a": 1.0})
    writer.write(3, {"a": 2.0})

  assert before_resuming == [1, 2, 3]
  assert lines(tmp_path) == [
    {"step": 1},
    {"step": 2, "a": 1.0},
    {"step": 3, "a": 2.0},
  ]


def test_a_torn_line_is_dropped_even_where_its_step_would_stay(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')

  open_writer(tmp_path, 9).close()

  assert steps_of(tmp_path) == [1]


@pytest.mark.parametrize(
  "tail", [b'{"step": 3, "lo', b"\0" * 99, b'{"step": 3\0\n{"step": 4}\n']
)
def test_lines_torn_by_a_power_loss_are_ignored(tail, tmp_path):
  name = "skipped.jsonl"
  (tmp_path / name).write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)

  assert read_rows(tmp_path, name) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("line", ["[]", '{"loss": 1}', "step 4"])
def test_what_no_run_writes_is_not_read_as_a_row(line, tmp_path):
  file = tmp_path / "metrics.jsonl"
  file.write_text(f'{{"step": 3, "loss": NaN}}\n{line}\n')

  with pytest.raises(UserError, match=f"Line 2 of {file} is not a row"):
    read_rows(tmp_path)


def test_event_files_hold_the_rows_as_tensorboard_reads_them(tmp_path):
  with open_writer(tmp_path) as writer:
    writer.write(0, {"train/loss": 0.75})
    writer.write(2, {"train/loss": jnp.float32(0.25), "images_per_second": 9})
    writer.write(2, {"eval/test/accuracy": 0.5, "train/loss": 3.0})

  assert events(tmp_path) == [
    (0, "train/loss", 0.75),
    (2, "eval/test/accuracy", 0.5),
    (2, "images_per_second", 9),
    (2, "train/loss", 0.25),
  ]


def test_tensorboard_shows_each_value_once_over_restarts(tmp_path):
  def train(first, last, *, from_step, value):
    with open_writer(tmp_path, from_step) as writer:
      for step in range(first, last + 1):
        writer.write(step, {"a": value, "b": value})
      writer.flush()
      writer.write(last, {"eval": value})

  train(1, 5, from_step=0, value=1)
  train(4, 8, from_step=3, value=2)
  # A resumed run that evaluates its first step again.
  train(6, 9, from_step=6, value=3)

  values = {step: 1 + (step > 3) + (step > 6) for step in range(1, 10)}
  assert lines(tmp_path) == [
    {"step": step, "a": value, "b": value} | ({"eval": 3} if step == 9 else {})
    for step, value in values.items()
  ]
  assert events(tmp_path) == sorted(
    [(step, tag, value) for step, value in values.items() for tag in "ab"]
    + [(9, "eval", 3)]
  )


@pytest.mark.parametrize("name", ["9999999999.vm.1.0.v2", "9999999999.vm.1"])
def test_a_clock_that_was_set_back_does_not_reverse_a_curve(name, tmp_path):
  with open_writer(tmp_path) as writer:
    for step in range(1, 4):
      writer.write(step, {"a": step})
  (file,) = tmp_path.glob("events*")
  file.rename(tmp_path / f"events.out.tfevents.{name}")
  for step in 4, 6:
    with open_writer(tmp_path, step - 1) as writer:
      writer.write(step, {"a": step})
      writer.write(step + 1, {"a": step + 1})

  accumulator = plugin_event_accumulator.EventAccumulator(str(tmp_path))
  accumulator.Reload()
  assert [x.step for x in accumulator.Tensors("a")] == list(range(1, 8))


def test_tensorboard_shows_the_row_that_a_run_resumes_from(tmp_path):
  with open_writer(tmp_path) as writer:
    writer.write(1, {"a": 1.0})
    writer.write(2, {"a": 2.0})
  # As after a crash before the events of step 2 were on disk.
  (path,) = tmp_path.glob("events*")
  path.write_bytes(path.read_bytes()[:-9])
  torn = events(tmp_path)

  with open_writer(tmp_path, 2) as writer:
    writer.write(3, {"a": 3.0})

  assert torn == [(1, "a", 1.0)]
  assert events(tmp_path) == [(s, "a", s) for s in (1, 2, 3)]


def test_a_fresh_start_keeps_nothing_not_even_step_0(tmp_path):
  for value in 1.0, 2.0:
    with open_writer(tmp_path) as writer:
      writer.write(0, {"a": value})
      if value == 1.0:
        writer.write(5, {"a": value})

  assert lines(tmp_path) == [{"step": 0, "a": 2.0}]
  assert events(tmp_path) == [(0, "a", 2.0)]


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

  assert steps_of(tmp_path) == list(range(1, 8))
  assert events(tmp_path) == [
    (step, "a", 1.0 if step <= 3 else 2.0) for step in range(1, 8)
  ]


def test_event_files_are_flushed_now_and_then(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics, "FLUSH_SECONDS", 0.0)
  with open_writer(tmp_path) as writer:
    writer.write(1, {"a": 1.0})
    wait_until(lambda: events(tmp_path))


def run_python(program, *arguments, **options):
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


ENDLESS_RUN = """
import itertools, sys, time
from mixer.training.metrics import MetricWriter
writer = MetricWriter(
  sys.argv[1], from_step=0, total_steps=10**6, batch=8, devices=1
)
for step in itertools.count(1):
  writer.write(step, {"a": step, "b": step})
  time.sleep(0.001)
  if step == 40:
    writer.flush()
    print("checkpoint at 40", flush=True)
  if step % 500 == 0:
    writer.flush()
"""


def test_a_killed_run_goes_on_with_each_step_once_in_both_files(tmp_path):
  process = run_python(ENDLESS_RUN, tmp_path)
  line = process.stdout.readline()
  wait_until(lambda: len(read_rows(tmp_path)) > 600)
  process.send_signal(signal.SIGKILL)
  errors = process.communicate()[1]

  with open_writer(tmp_path, 40) as writer:
    for step in range(41, 61):
      writer.write(step, {"a": step, "b": step})

  assert line == "checkpoint at 40\n"
  assert errors == ""
  assert steps_of(tmp_path) == list(range(1, 61))
  assert events(tmp_path) == [(s, t, s) for s in range(1, 61) for t in "ab"]


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
  class Failed:
    def __array__(self, dtype=None, copy=None):
      raise FloatingPointError("nan in step 1")

  writer = open_writer(tmp_path, 0)
  writer.write(1, {"train/loss": Failed()})

  with pytest.raises(FloatingPointError, match="nan in step 1"):
    writer.flush()
  with pytest.raises(FloatingPointError, match="nan in step 1"):
    writer.close()


def test_a_value_that_is_no_number_is_refused(tmp_path):
  writer = open_writer(tmp_path, 0)
  writer.write(1, {"train/loss": "much"})

  with pytest.raises(ValueError, match="much"):
    writer.flush()


def test_an_error_in_the_loop_is_not_hidden_by_one_of_the_log(tmp_path):
  with pytest.raises(KeyError):
    with open_writer(tmp_path, 0) as writer:
      writer.write(1, {"train/loss": "no number"})
      raise KeyError


class Time:
  """A clock that a test sets forward."""

  def __init__(self):
    self.seconds = 100.0

  def __call__(self):
    return self.seconds

  def pass_by(self, seconds):
    self.seconds += seconds


def test_rates_leave_out_pauses_and_count_waiting_for_data():
  now = Time()
  timer = Timer(step=10, batch=32, devices=4, now=now)

  now.pass_by(6.0)
  with timer.wait_for_data():
    now.pass_by(2.0)
  with timer.pause():
    now.pass_by(50.0)
    with timer.pause(), timer.wait_for_data():
      now.pass_by(50.0)
  measured = timer.rates(20)
  nothing_new = timer.rates(20)

  assert measured == {
    "images_per_second": 40.0,
    "images_per_second_per_device": 10.0,
    "data_wait": 0.25,
  }
  assert nothing_new == {}


def test_each_measurement_is_of_its_own_interval():
  now = Time()
  timer = Timer(step=0, batch=10, devices=1, now=now)
  with timer.wait_for_data():
    now.pass_by(4.0)
  with timer.pause():
    now.pass_by(4.0)
  timer.rates(10)

  now.pass_by(5.0)
  measured = timer.rates(20)

  assert measured["images_per_second"] == 20.0
  assert measured["data_wait"] == 0.0


def test_mfu_is_the_share_of_the_peak_where_that_is_known(monkeypatch):
  now = Time()
  timer = Timer(step=0, batch=10, devices=2, flops_per_image=3e12, now=now)
  now.pass_by(1.0)
  on_a_cpu = timer.rates(1)
  monkeypatch.setattr("mixer.training.progress.peak_flops", lambda kind: 60e12)
  now.pass_by(1.0)
  on_an_accelerator = timer.rates(2)

  assert "mfu" not in on_a_cpu
  assert on_an_accelerator["mfu"] == 0.25


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_gets_one_line_that_messages_do_not_garble():
  terminal, now = Terminal(), Time()
  progress = ProgressLine(2000, terminal, now)

  progress.message("first")
  now.pass_by(75.0)
  progress.show(500, {"train/loss": 1.25, "images_per_second": 12345.6})
  progress.message("checkpoint saved")
  now.pass_by(0.01)
  progress.show(501, {})
  progress.close()

  line = "1:15 · step 500/2000 (25%) · loss 1.25 · 12,346 images/s"
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

  now.pass_by(1000.0)
  progress.show(10, {})
  now.pass_by(20.0)
  progress.show(20, {})

  first, second = file.getvalue().splitlines()
  assert "left" not in first
  assert second.endswith(" · 1:02:40 left")


def test_a_terminal_line_is_cut_to_the_window(monkeypatch):
  monkeypatch.setenv("COLUMNS", "20")
  terminal = Terminal()
  progress = ProgressLine(2000, terminal)

  progress.show(500, {"train/loss": 1.25})

  assert len(terminal.getvalue().removeprefix("\r\x1b[K")) == 19


def test_a_file_gets_a_plain_line_now_and_then_and_the_last():
  file, now = io.StringIO(), Time()
  progress = ProgressLine(100, file, now)

  for step in range(1, 26):
    now.pass_by(1.0)
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
  with MetricWriter(
    tmp_path, from_step=0, total_steps=8, batch=1, devices=1, stream=file
  ) as writer:
    writer.message("hello")
    writer.write(2, {"train/loss": jnp.float32(0.5)})
    writer.write(2, {"eval/test/loss": 0.75})

  assert file.getvalue() == "hello\n0:00 · step 2/8 (25%) · loss 0.5\n"


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(0.4, "0:00"), (3599.6, "1:00:00"), (266700, "3d 02:05")],
)
def test_seconds_read_as_a_clock(seconds, text):
  assert format_seconds(seconds) == text


def test_the_learning_curve_is_drawn_from_the_rows(tmp_path):
  rows = [
    {"step": 1, "train/loss": 2.0},
    {"step": 2, "train/loss": 0.05, "eval/test/accuracy": 0.5},
    {"step": 3, "train/loss": float("nan"), "eval/test/accuracy": 0.625},
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "tr')

  path = draw_learning_curve(tmp_path)

  from PIL import Image

  picture = np.asarray(Image.open(path).convert("RGB"))
  blue = (picture == (0, 114, 178)).all(-1).sum()
  assert path == tmp_path / "learning_curve.png"
  assert picture.shape == (900, 1080, 3)
  assert blue > 100


def test_a_folder_without_numbers_has_no_learning_curve(tmp_path):
  with pytest.raises(UserError, match="Is this the folder of a training run"):
    draw_learning_curve(tmp_path)
