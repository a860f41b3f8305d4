# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run: metrics.jsonl, event files and the progress line.

metrics.jsonl is the truth: one JSON object per logged step. TensorBoard's event
files hold the same values. Both are on disk before a checkpoint is. A bucket,
where nothing can be appended, is given copies of files on a local disk.
"""

import functools
import json
import os
import queue
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from absl import logging
from etils import epath

from mixer.errors import UserError
from mixer.storage import atomic_write, is_in_bucket, storage_path
from mixer.training.progress import ProgressLine

Number = float | int
Scalar = Number | np.generic | jax.Array

FLUSH_SECONDS = 10.0  # TensorBoard lags behind metrics.jsonl by at most this
UPLOAD_SECONDS = 30.0  # between two copies to a bucket, but for checkpoints
PROFILE_AFTER = 10  # updates; the first ones hold compilation and warm-up


def read_rows(
  workdir: str | os.PathLike, name: str = "metrics.jsonl"
) -> list[dict[str, Number]]:
  """Returns the rows of a JSON Lines file of a run; none if there is no file.

  A last line torn by a kill is ignored, and so is all from the first NUL byte
  on: a power loss leaves them in place of unwritten data. A loss that is not
  finite reads as `nan` or `inf`: Python's json writes and reads these, stricter
  readers may not.
  """
  path = storage_path(workdir) / name
  if not path.exists():
    return []
  complete = path.read_bytes().partition(b"\0")[0].rpartition(b"\n")[0]
  return [json.loads(line) for line in complete.splitlines()]


class MetricWriter:
  """Writes scalars to metrics.jsonl and event files, and shows progress.

  A background thread waits for the values and writes them, so no call but
  `flush` and `close` waits for a device. Writes for one step make one row. A
  name that the row has already keeps its first value, also when a resumed run
  evaluates its first step again.

  A failure of the thread is raised by the next call: UserError if a file
  cannot be written.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    from_step: int,
    total_steps: int,
    profile_steps: int = 0,
    enabled: bool = True,
    stream: TextIO | None = None,
  ):
    """Drops the rows after `from_step` and hides them from TensorBoard.

    Args:
      workdir: the run's folder, local or in a bucket; made if missing.
      from_step: number of updates applied so far; 0 drops all rows.
      total_steps: number of updates at the end of the run.
      profile_steps: number of updates to trace; see `profile`.
      enabled: False on all hosts but the first: nothing is written or shown.
      stream: for progress; standard error if None.
    """
    self._enabled = enabled
    if not enabled:
      return
    self._storage = storage_path(workdir)
    self._storage.mkdir(parents=True, exist_ok=True)
    self._is_remote = is_in_bucket(workdir)
    self._folder = Path(self._storage)
    if self._is_remote:
      self._scratch = tempfile.TemporaryDirectory()  # removed with this object
      self._folder = Path(self._scratch.name)
    self._path = self._folder / "metrics.jsonl"
    self._progress = ProgressLine(total_steps, stream or sys.stderr)
    first = from_step + PROFILE_AFTER
    self._profiled = range(first, first + profile_steps)
    self._is_profiling = False
    self._newest_step = from_step
    rows = [
      row
      for row in read_rows(workdir)
      if from_step > 0 and row["step"] <= from_step
    ]
    self._lines = [_encode(row) for row in rows]
    self._row = rows[-1] if rows else {"step": -1}
    self._write_lines()

    self._jobs = queue.Queue()
    self._failure = None
    # A daemon, because it may wait for an array that never comes when another
    # host dies: the process must still be able to exit.
    self._thread = threading.Thread(
      target=self._run_jobs, name="metrics", daemon=True
    )
    self._uploaded_at = 0.0
    self._thread.start()
    self._submit(self._open_events, from_step)

  def write(self, step: int, scalars: Mapping[str, Scalar]) -> None:
    """Adds values to the row of `step`, without waiting for any of them.

    Args:
      step: not below the step of an earlier write.
      scalars: names and values; arrays must hold one number each, and must
        not be donated to a later step. "train/loss" updates the progress line.
    """
    if not self._enabled:
      return
    assert step >= self._newest_step, (step, self._newest_step)
    self._newest_step = step
    self._submit(self._add, step, dict(scalars))

  def message(self, text: str) -> None:
    """Prints `text` on lines of its own, above the progress line."""
    if self._enabled:
      self._progress.message(text)

  def profile(self, step: int) -> None:
    """Starts or stops the trace in WORKDIR/profile; call before each update.

    Args:
      step: number of updates dispatched.
    """
    if not self._enabled or (step in self._profiled) == self._is_profiling:
      return
    if self._is_profiling:
      jax.profiler.stop_trace()
      self._submit(self._upload, "profile/**/*")
    else:
      jax.profiler.start_trace(self._folder / "profile")
    self._is_profiling = not self._is_profiling

  def flush(self) -> None:
    """Returns when all that was written would survive a crash."""
    if self._enabled:
      self._submit(self._sync)
      self._jobs.join()
      self._raise_failure()

  def close(self) -> None:
    """Flushes, ends the thread and leaves the last progress line standing."""
    if not self._enabled or not self._thread.is_alive():
      return
    self.profile(self._profiled.stop)
    self._jobs.put(self._sync)
    self._jobs.put(None)
    self._thread.join()
    self._progress.close()
    self._raise_failure()

  def __enter__(self) -> "MetricWriter":
    return self

  def __exit__(self, kind, error, trace) -> None:
    try:
      self.close()
    except Exception:
      if error is None:
        raise

  def _submit(self, job: Callable, *arguments: object) -> None:
    self._raise_failure()
    self._jobs.put(functools.partial(job, *arguments))

  def _run_jobs(self) -> None:
    while (job := self._jobs.get()) is not None:
      try:
        # After a failure the rest is dropped.
        if self._failure is None:
          job()
      except Exception as error:
        self._failure = error
      finally:
        self._jobs.task_done()

  def _raise_failure(self) -> None:
    if isinstance(self._failure, OSError) and not self._is_remote:
      raise UserError(
        f"Cannot write metrics in {self._folder}: {self._failure.strerror}. "
        "Make room there or choose another --workdir, then start the same "
        "command again: it goes on from the last checkpoint."
      ) from self._failure
    if self._failure is not None:
      raise self._failure

  def _add(self, step: int, scalars: dict[str, Scalar]) -> None:
    values = {k: _to_number(v) for k, v in jax.device_get(scalars).items()}
    if "train/loss" in values:
      self._progress.show(step, values)
    if step == self._row["step"]:
      values = {k: v for k, v in values.items() if k not in self._row}
      self._row |= values
      self._lines[-1] = _encode(self._row)
      self._write_lines()
    else:
      self._row = {"step": step} | values
      self._lines.append(_encode(self._row))
      self._append_line()
    self._write_event(step, values)

  # Every access to a file is below.

  def _write_lines(self) -> None:
    with atomic_write(self._path) as aside:
      aside.write_bytes(b"".join(self._lines))

  def _append_line(self) -> None:
    with self._path.open("ab") as file:
      file.write(self._lines[-1])

  def _sync(self) -> None:
    with self._path.open("ab") as file:
      os.fsync(file.fileno())
    self._flush_events()
    self._upload("metrics.jsonl")
    self._upload("events*")

  def _upload(self, pattern: str) -> None:
    """Copies files to the bucket, if the run's folder is in one."""
    if not self._is_remote:
      return
    self._uploaded_at = time.monotonic()
    for file in self._folder.glob(pattern):
      if file.is_file():
        target = self._storage / file.relative_to(self._folder).as_posix()
        epath.Path(file).copy(target, overwrite=True)

  def _open_events(self, from_step: int) -> None:
    # Here, because the import takes half a second. Not SummaryWriter: its flush
    # leaves events in its queue, and its thread does not report a full disk.
    from tensorboardX.proto.event_pb2 import SessionLog
    from tensorboardX.record_writer import RecordWriter

    # TensorBoard reads files in the order of their names, which begin with the
    # second; the suffix orders two starts within one.
    name = (
      f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}."
      f"{time.time_ns()}"
    )
    last = max((x.name for x in self._storage.glob("*tfevents*")), default="")
    if name < last:  # the clock was set back
      name = f"{last}_"
    self._events = RecordWriter(str(self._folder / name))
    self._put_event(0, file_version="brain.Event:2")
    # TensorBoard hides the events of earlier files from this step on.
    start = SessionLog(status=SessionLog.START)
    # Twice: TensorBoard ignores the first one that it meets, and files of older
    # versions have none.
    self._put_event(from_step, session_log=start)
    self._put_event(from_step, session_log=start)
    self._flush_events()
    if self._row["step"] == from_step:
      values = {k: v for k, v in self._row.items() if k != "step"}
      self._write_event(from_step, values)

  def _write_event(self, step: int, values: dict[str, Number]) -> None:
    from tensorboardX.proto.summary_pb2 import Summary

    scalars = [Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
    self._put_event(step, summary=Summary(value=scalars))
    now = time.monotonic()
    if now - self._flushed_at > FLUSH_SECONDS:
      self._flush_events()
    if self._is_remote and now - self._uploaded_at > UPLOAD_SECONDS:
      try:
        self._sync()
      except Exception as error:  # `flush`, before a checkpoint, tries again
        logging.warning("Cannot copy metrics to %s: %s", self._storage, error)

  def _put_event(self, step: int, **content: object) -> None:
    from tensorboardX.proto.event_pb2 import Event

    event = Event(step=step, wall_time=time.time(), **content)
    self._events.write(event.SerializeToString())

  def _flush_events(self) -> None:
    self._events.flush()
    self._flushed_at = time.monotonic()


def _to_number(value: Scalar) -> Number:
  number = np.asarray(value).item()
  # float() raises for text.
  return number if isinstance(number, int) else float(number)


def _encode(row: dict[str, Number]) -> bytes:
  """Returns a line of metrics.jsonl; floats read back as they were."""
  return json.dumps(row).encode() + b"\n"
