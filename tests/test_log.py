# SPDX-License-Identifier: Apache-2.0
"""Logging of a training run: rows, event files, rates, progress, picture."""

import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mixer.errors import UserError
from mixer.training import event_files
from mixer.training.clock import Clock
from mixer.training.curve import draw_learning_curve
from mixer.training.log import RunLog, read_rows
from mixer.training.progress import Progress, format_seconds

ROOT = Path(__file__).resolve().parent.parent


def lines(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def steps_of(workdir):
  return [row["step"] for row in lines(workdir)]


def events(workdir):
  """(step, tag) of every scalar in all event files, as TensorBoard reads."""
  from tensorboard.backend.event_processing import event_accumulator

  found = []
  for path in workdir.glob("events.out.tfevents.*"):
    accumulator = event_accumulator.EventAccumulator(
      str(path), size_guidance={event_accumulator.TENSORS: 0}
    )
    accumulator.Reload()
    for tag in accumulator.Tags()["tensors"]:
      found += [(event.step, tag) for event in accumulator.Tensors(tag)]
  return sorted(found)


def wait_until(condition, seconds=30.0):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, "waited in vain"
    time.sleep(0.01)


@pytest.fixture
def no_tensorflow(monkeypatch):
  """Makes the import of TensorFlow fail, as where it is not installed."""
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  monkeypatch.setitem(sys.modules, "clu.metric_writers", None)


class SlowArray:
  """Stands for a jax array that a device has not computed yet."""

  def __init__(self, value):
    self.value = value
    self.ready = threading.Event()

  def __array__(self, dtype=None, copy=None):
    assert self.ready.wait(30)
    return np.asarray(self.value)


def test_a_row_holds_its_step_and_floats_that_read_back_exactly(
  tmp_path, no_tensorflow
):
  values = {
    "train/loss": jnp.float32(0.1),
    "half": jnp.bfloat16(0.5),
    "count": jnp.int32(7),
    "third": 1 / 3,
    "diverged": float("inf"),
  }

  with RunLog(tmp_path, from_step=0) as log:
    log.write(3, values)

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


def test_writing_does_not_wait_for_a_value_that_is_not_computed_yet(
  tmp_path, no_tensorflow
):
  loss = SlowArray(2.5)
  log = RunLog(tmp_path, from_step=0)

  start = time.monotonic()
  log.write(1, {"train/loss": loss})
  log.write(2, {"train/loss": 1.5})
  seconds = time.monotonic() - start
  before = lines(tmp_path)
  loss.ready.set()
  log.close()

  assert seconds < 1
  assert before == []
  assert lines(tmp_path) == [
    {"step": 1, "train/loss": 2.5},
    {"step": 2, "train/loss": 1.5},
  ]


def test_writes_for_one_step_make_one_row(tmp_path, no_tensorflow):
  seen = []

  with RunLog(
    tmp_path, from_step=0, on_values=lambda *call: seen.append(call)
  ) as log:
    log.write(100, {"train/loss": 2.0})
    log.write(100, {"eval/test/accuracy": 0.5, "train/loss": 9.0})
    log.write(100, {})
    wait_until(lambda: len(seen) == 3)
    before_a_later_step = steps_of(tmp_path)
    log.write(200, {"train/loss": 1.0})
    wait_until(lambda: lines(tmp_path))
    after_a_later_step = steps_of(tmp_path)

  assert before_a_later_step == []
  assert after_a_later_step == [100]
  assert lines(tmp_path) == [
    {"step": 100, "train/loss": 2.0, "eval/test/accuracy": 0.5},
    {"step": 200, "train/loss": 1.0},
  ]


def test_a_write_after_a_flush_adds_to_the_row_that_is_on_disk(
  tmp_path, no_tensorflow
):
  with RunLog(tmp_path, from_step=0) as log:
    log.write(1, {"a": 1.0})
    log.write(2, {"a": 2.0})
    log.flush()
    flushed = lines(tmp_path)
    log.write(2, {"b": 3.0})
    log.write(3, {"a": 4.0})

  assert flushed == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}]
  assert lines(tmp_path) == [
    {"step": 1, "a": 1.0},
    {"step": 2, "a": 2.0, "b": 3.0},
    {"step": 3, "a": 4.0},
  ]


def test_a_row_for_an_earlier_step_is_refused(tmp_path, no_tensorflow):
  with RunLog(tmp_path, from_step=0) as log:
    log.write(5, {"a": 1.0})

    with pytest.raises(ValueError, match="step 4 after one for step 5"):
      log.write(4, {"a": 1.0})


def test_values_are_handed_on_as_numbers_for_the_progress_line(
  tmp_path, no_tensorflow
):
  seen = []

  with RunLog(
    tmp_path, from_step=0, on_values=lambda *call: seen.append(call)
  ) as log:
    log.write(1, {"train/loss": jnp.float32(0.5)})

  assert seen == [(1, {"train/loss": 0.5})]


def test_a_process_that_does_not_log_leaves_no_trace(tmp_path):
  workdir = tmp_path / "run"

  with RunLog(workdir, from_step=0, enabled=False) as log:
    log.start_event_files()
    log.write(1, {"a": 1.0})
    log.flush()

  assert not workdir.exists()


def test_a_resumed_run_keeps_rows_up_to_its_step_and_drops_a_torn_line(
  tmp_path, no_tensorflow
):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "tra')
  before_resuming = [row["step"] for row in read_rows(tmp_path)]

  with RunLog(tmp_path, from_step=2) as log:
    log.write(2, {"a": 1.0})
    log.write(3, {"a": 2.0})

  assert before_resuming == [1, 2, 3]
  assert lines(tmp_path) == [
    {"step": 1},
    {"step": 2, "a": 1.0},
    {"step": 3, "a": 2.0},
  ]


def test_a_torn_line_is_dropped_even_where_its_step_would_stay(
  tmp_path, no_tensorflow
):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')

  RunLog(tmp_path, from_step=9).close()

  assert steps_of(tmp_path) == [1]


@pytest.mark.parametrize(
  "line, words",
  [
    ("[]", "it is not a JSON object with a step"),
    ('{"loss": 1}', "it is not a JSON object with a step"),
    ('{"step": "4"}', 'step = "4" is not a number'),
    ('{"step": 4, "loss": null}', "loss = null is not a number"),
    ('{"step": 3}', "step = 3 is not a step after 3"),
    ('{"step": 4.5}', "step = 4.5 is not a step after 3"),
    ('{"step": 4, "images_per_second": -5}', "= -5 is not above 0"),
  ],
)
def test_what_no_run_writes_is_not_read_as_a_row(line, words, tmp_path):
  file = tmp_path / "metrics.jsonl"
  file.write_text(f'{{"step": 3, "loss": NaN}}\n{line}\n')

  with pytest.raises(UserError) as error:
    read_rows(tmp_path)

  assert str(error.value).startswith(f"Line 2 of {file} is not a row (")
  assert words in str(error.value)


def test_a_fresh_start_keeps_nothing_not_even_step_0(tmp_path, no_tensorflow):
  (tmp_path / "metrics.jsonl").write_text('{"step": 0, "old": 1}\n')

  with RunLog(tmp_path, from_step=0) as log:
    log.write(0, {"a": 1.0})

  assert lines(tmp_path) == [{"step": 0, "a": 1.0}]


def test_without_tensorflow_the_run_is_told_once_and_goes_on(
  tmp_path, no_tensorflow, caplog
):
  with RunLog(tmp_path, from_step=0) as log:
    for step in range(5):
      log.write(step, {"a": 1.0})
      log.flush()

  assert steps_of(tmp_path) == [0, 1, 2, 3, 4]
  assert caplog.text.count("No TensorBoard event files") == 1
  assert not list(tmp_path.glob("events*"))


def test_rows_do_not_wait_for_the_import_of_tensorflow(tmp_path, monkeypatch):
  imported = threading.Event()
  monkeypatch.setattr(
    event_files.EventFiles, "_open", lambda self: imported.wait(30)
  )
  log = RunLog(tmp_path, from_step=0)

  start = time.monotonic()
  log.write(1, {"a": 1.0})
  log.flush()
  seconds = time.monotonic() - start
  rows = lines(tmp_path)
  imported.set()
  log.close()

  assert seconds < 2
  assert rows == [{"step": 1, "a": 1.0}]


def test_event_files_hold_the_rows_as_tensorboard_reads_them(tmp_path):
  from tensorboard.backend.event_processing import event_accumulator
  from tensorboard.util import tensor_util

  with RunLog(tmp_path, from_step=0) as log:
    log.write(0, {"train/loss": 0.75})
    log.write(2, {"train/loss": jnp.float32(0.25), "images_per_second": 9})

  accumulator = event_accumulator.EventAccumulator(str(tmp_path))
  accumulator.Reload()
  losses = [
    (event.step, float(tensor_util.make_ndarray(event.tensor_proto)))
    for event in accumulator.Tensors("train/loss")
  ]
  assert losses == [(0, 0.75), (2, 0.25)]
  assert events(tmp_path) == [
    (0, "train/loss"),
    (2, "images_per_second"),
    (2, "train/loss"),
  ]


def test_event_files_hold_each_value_once_over_restarts(tmp_path):
  def train(first, last, *, from_step):
    with RunLog(tmp_path, from_step=from_step) as log:
      for step in range(first, last + 1):
        log.write(step, {"a": step, "b": step})
      log.flush()
      log.write(last, {"eval": 1.0})

  train(1, 5, from_step=0)
  train(4, 8, from_step=3)
  # A resumed run that evaluates its first step again.
  train(6, 9, from_step=6)

  assert steps_of(tmp_path) == list(range(1, 10))
  assert events(tmp_path) == sorted(
    [(step, tag) for step in range(1, 10) for tag in "ab"] + [(9, "eval")]
  )


def test_event_files_get_what_they_lack_from_the_rows(tmp_path):
  with RunLog(tmp_path, from_step=0) as log:
    for step in (1, 2, 3):
      log.write(step, {"a": step, "b": step})
  (path,) = tmp_path.glob("events*")
  wall_times = event_times(path)
  # As after a kill in the middle of step 2's second value.
  records = list(event_files.read_records(path))
  torn = b"".join(record for record, _ in records[:4])
  path.write_bytes(torn + records[4][0][:-9])

  with RunLog(tmp_path, from_step=3) as log:
    log.write(4, {"a": 4, "b": 4})

  assert events(tmp_path) == [(s, t) for s in (1, 2, 3, 4) for t in "ab"]
  # What was whole stays as it was, with the time it was written.
  assert event_times(path) == wall_times[:3]


def event_times(path):
  return [
    struct.unpack_from("<d", record, 13)[0]
    for record, _ in event_files.read_records(path)
  ]


def test_a_fresh_start_removes_event_files(tmp_path, no_tensorflow):
  (tmp_path / "events.out.tfevents.1.host.v2").write_bytes(b"torn")

  RunLog(tmp_path, from_step=0).close()

  assert not list(tmp_path.glob("*events*"))


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
import sys, time
from mixer.training.log import RunLog
log = RunLog(sys.argv[1], from_step=0)
log.start_event_files()
for step in range(1, 10**6):
  log.write(step, {"a": step, "b": step})
  time.sleep(0.001)
  if step == 40:
    log.flush()
    print("checkpoint at 40", flush=True)
  if step % 500 == 0:
    log.flush()
"""


def test_a_killed_run_goes_on_with_each_step_once_in_both_files(tmp_path):
  process = run_python(ENDLESS_RUN, tmp_path)
  line = process.stdout.readline()
  # Killed once TensorFlow is there and has begun to write.
  wait_until(
    lambda: any(
      path.stat().st_size > 4000 for path in tmp_path.glob("events*")
    ),
    seconds=60,
  )
  process.send_signal(signal.SIGKILL)
  errors = process.communicate()[1]

  with RunLog(tmp_path, from_step=40) as log:
    for step in range(41, 61):
      log.write(step, {"a": step, "b": step})

  assert line == "checkpoint at 40\n"
  assert errors == ""  # TensorFlow's greetings are not for this terminal
  assert steps_of(tmp_path) == list(range(1, 61))
  assert events(tmp_path) == [(s, t) for s in range(1, 61) for t in "ab"]


def test_a_full_disk_stops_the_run_with_advice(tmp_path):
  process = run_python(
    """
    import resource, sys
    sys.modules["tensorflow"] = None
    sys.modules["clu.metric_writers"] = None
    from mixer.errors import UserError
    from mixer.training.log import RunLog
    log = RunLog(sys.argv[1], from_step=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
      with log:
        for step in range(1000):
          log.write(step, {"train/loss": 1 / 3})
        log.flush()
    except UserError as error:
      print(error)
    """,
    tmp_path,
  )
  output, errors = process.communicate(timeout=60)

  assert f"Cannot write {tmp_path / 'metrics.jsonl'}: File too" in output
  assert "Make room there or choose another --workdir" in output
  assert "Traceback" not in errors


def test_a_full_disk_is_told_by_the_event_files_too(tmp_path):
  unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
  log = RunLog(tmp_path, from_step=0)
  log.write(0, {"a": 1.0})
  wait_until(lambda: list(tmp_path.glob("events*")), seconds=60)
  log.flush()

  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
  try:
    with pytest.raises(UserError, match=r"events\.\*: File too large\. Make"):
      for step in range(1, 400):
        log.write(step, {"a": 1.0, "b": 1.0, "c": 1.0})
      log.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def test_a_failed_computation_is_raised_as_itself(tmp_path, no_tensorflow):
  class Failed:
    def __array__(self, dtype=None, copy=None):
      raise FloatingPointError("nan in step 1")

  log = RunLog(tmp_path, from_step=0)
  log.write(1, {"train/loss": Failed()})

  with pytest.raises(FloatingPointError, match="nan in step 1"):
    log.flush()
  with pytest.raises(FloatingPointError, match="nan in step 1"):
    log.close()


def test_a_value_that_is_no_number_is_refused(tmp_path, no_tensorflow):
  log = RunLog(tmp_path, from_step=0)
  log.write(1, {"train/loss": "much"})

  with pytest.raises(ValueError, match="much"):
    log.flush()


def test_an_error_in_the_loop_is_not_hidden_by_one_of_the_log(
  tmp_path, no_tensorflow
):
  with pytest.raises(KeyError):
    with RunLog(tmp_path, from_step=0) as log:
      log.write(1, {"train/loss": "no number"})
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
  clock = Clock(step=10, total_steps=40, batch=32, devices=4, now=now)

  now.pass_by(6.0)
  with clock.waiting_for_data():
    now.pass_by(2.0)
  with clock.pause():
    now.pass_by(50.0)
    with clock.pause(), clock.waiting_for_data():
      now.pass_by(50.0)
  measured = clock.measure(20)
  nothing_new = clock.measure(20)

  assert measured == {
    "images_per_second": 40.0,
    "images_per_second_per_device": 10.0,
    "data_wait": 0.25,
  }
  assert nothing_new == {}


def test_each_measurement_is_of_its_own_interval():
  now = Time()
  clock = Clock(step=0, total_steps=40, batch=10, devices=1, now=now)
  with clock.waiting_for_data():
    now.pass_by(4.0)
  with clock.pause():
    now.pass_by(4.0)
  clock.measure(10)

  now.pass_by(5.0)
  measured = clock.measure(20)

  assert measured["images_per_second"] == 20.0
  assert measured["data_wait"] == 0.0


def test_the_time_left_ignores_the_first_interval_and_counts_pauses():
  now = Time()
  clock = Clock(step=0, total_steps=40, batch=10, devices=1, now=now)
  now.pass_by(1000.0)
  unknown = clock.remaining(10)
  clock.measure(10)
  still_unknown = clock.remaining(10)
  now.pass_by(5.0)
  with clock.pause():
    now.pass_by(15.0)

  assert (unknown, still_unknown) == (None, None)
  assert clock.remaining(20) == 40.0


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_gets_one_line_that_messages_do_not_garble():
  terminal, now = Terminal(), Time()
  progress = Progress(2000, stream=terminal, now=now)

  progress.message("first")
  now.pass_by(75.0)
  progress.show(500, loss=1.25, images_per_second=12345.6, remaining=3661)
  progress.message("checkpoint saved")
  now.pass_by(0.01)
  progress.show(501)
  progress.close()

  line = (
    "1:15 · step 500/2000 (25%) · loss 1.25 · 12,346 images/s · 1:01:01 left"
  )
  erase = "\r\x1b[K"
  assert terminal.getvalue() == (
    "first\n"
    f"{erase}{line}"
    f"{erase}checkpoint saved\n{erase}{line}"
    f"{erase}1:15 · step 501/2000 (25%)\n"
  )


def test_a_terminal_line_is_cut_to_the_window(monkeypatch):
  monkeypatch.setenv("COLUMNS", "20")
  terminal = Terminal()
  progress = Progress(2000, stream=terminal)

  progress.show(500, loss=1.25)

  assert len(terminal.getvalue().removeprefix("\r\x1b[K")) == 19


def test_a_file_gets_a_plain_line_now_and_then_and_the_last():
  file, now = io.StringIO(), Time()
  progress = Progress(100, stream=file, every_seconds=10, now=now)

  for step in range(1, 26):
    now.pass_by(1.0)
    progress.show(step)
    if step == 2:
      progress.message("hello")
  progress.close()
  progress.close()

  assert file.getvalue().splitlines() == [
    "0:01 · step 1/100 (1%)",
    "hello",
    "0:11 · step 11/100 (11%)",
    "0:21 · step 21/100 (21%)",
    "0:25 · step 25/100 (25%)",
  ]


def test_progress_of_another_process_is_not_shown():
  file = io.StringIO()
  progress = Progress(100, stream=file, enabled=False)

  progress.show(1)
  progress.message("hello")
  progress.close()

  assert file.getvalue() == ""


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


def test_the_environment_is_left_as_it_was(monkeypatch):
  monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
  monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")

  with event_files.quiet_tensorflow():
    within = os.environ["TF_ENABLE_ONEDNN_OPTS"]

  assert within == "0"
  assert "TF_ENABLE_ONEDNN_OPTS" not in os.environ
  assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"
