# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's event files of a run, kept in step with metrics.jsonl."""

import contextlib
import logging
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from mixer.training.background import Background

logger = logging.getLogger(__name__)


class EventFiles:
  """Writes rows of metrics.jsonl to event files, through clu.

  clu's writers need TensorFlow, whose import takes 5 to 10 s. It happens in a
  thread, and rows wait in a queue meanwhile.
  """

  def __init__(self, folder: Path, rows: list[dict[str, float | int]]):
    """Cuts the event files in `folder` back to a beginning of `rows`.

    Args:
      folder: where the files are, of all starts of the run.
      rows: what metrics.jsonl holds, in order of "step". Rows that the event
        files lack are written first.
    """
    self._folder = folder
    self._missing = cut_back(folder, rows)
    self._work = Background("event files", path=f"{folder}/events.*")
    self._started = False
    self._ready = threading.Event()
    self._writer = None

  def start(self) -> None:
    """Begins to import TensorFlow; a second call does nothing."""
    if self._started:
      return
    self._started = True
    self._work.submit(self._open)
    for row in self._missing:
      self._work.submit(self._write, row)

  def write(self, row: dict[str, float | int]) -> None:
    """Queues a row; `start` must have been called."""
    self._work.submit(self._write, row)

  def flush(self) -> None:
    """Puts rows on disk, unless TensorFlow is still being imported."""
    if self._ready.is_set():
      self._work.submit(self._flush)
      self._work.wait()

  def close(self) -> None:
    """Waits until every row is on disk."""
    if self._started:
      self._work.submit(self._close)
      self._work.stop()

  def _open(self) -> None:
    try:
      with quiet_tensorflow():
        import tensorflow as tf
        from clu.metric_writers import SummaryWriter
    except ImportError as error:
      logger.warning(
        "No TensorBoard event files (%s). To have them: pip install "
        "tensorflow-cpu tensorboard. metrics.jsonl is written all the same.",
        error,
      )
    else:
      # A TensorFlow built for GPUs would otherwise take their memory.
      with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
      self._error = tf.errors.OpError
      self._writer = SummaryWriter(str(self._folder))
    self._ready.set()

  def _write(self, row: dict[str, float | int]) -> None:
    scalars = {name: v for name, v in row.items() if name != "step"}
    with self._as_os_errors():
      self._writer and self._writer.write_scalars(row["step"], scalars)

  def _flush(self) -> None:
    with self._as_os_errors():
      self._writer and self._writer.flush()

  def _close(self) -> None:
    with self._as_os_errors():
      self._writer and self._writer.close()

  @contextlib.contextmanager
  def _as_os_errors(self) -> Iterator[None]:
    """TensorFlow has an error family of its own, for a full disk too."""
    if self._writer is None:
      yield
      return
    try:
      yield
    except self._error as error:
      # "<operation> <path>; <reason>", then what else follows from it.
      reason = error.message.partition("\n")[0].rpartition("; ")[2]
      raise OSError(None, reason) from error


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
  """Keeps TensorFlow's greetings off the terminal while it is imported.

  The first setting silences its C++ log, which matters little here: what
  fails is raised as an exception. The second silences the notice that oneDNN
  is used (by two logs, one of them deaf to the first setting), by not using
  it: nothing here computes with TensorFlow. Both are taken back, so that
  child processes start with the user's settings.
  """
  quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
  added = {name: v for name, v in quiet.items() if name not in os.environ}
  os.environ.update(added)
  try:
    yield
  finally:
    for name in added:
      os.environ.pop(name, None)


def cut_back(
  folder: Path, rows: list[dict[str, float | int]]
) -> list[dict[str, float | int]]:
  """Makes the event files hold a beginning of `rows`; returns the rest.

  Rows are written to event files in order, each as several records, so that
  after a kill only the last step found may be incomplete. It is dropped too,
  to be written again as a whole.
  """
  paths = sorted(folder.glob("events.out.tfevents.*"))
  records = {path: list(read_records(path)) for path in paths}
  newest = rows[-1]["step"] if rows else -1
  steps = [
    step
    for path in paths
    for _, step in records[path]
    if step is not None and step <= newest
  ]
  last = max(steps, default=-1)
  for path in paths:
    kept = [r for r, step in records[path] if step is None or step < last]
    if all(step is None or step >= last for _, step in records[path]):
      path.unlink()
    elif sum(map(len, kept)) != path.stat().st_size:
      # No name with "tfevents" in it: TensorBoard would read it.
      aside = path.with_name("event_file.new")
      with aside.open("wb") as file:
        file.write(b"".join(kept))
        file.flush()
        os.fsync(file.fileno())
      aside.replace(path)
  return [row for row in rows if row["step"] >= last]


def read_records(path: Path) -> Iterator[tuple[bytes, int | None]]:
  """Records of an event file, framed as they are there, and their steps.

  The step is None for a record that holds no summary, such as the header. A
  torn record, which only a kill leaves, ends the file. TensorFlow could read
  this too, but its import would delay the first step of a resumed run.
  """
  content = path.read_bytes()
  start = 0
  while start + 12 <= len(content):
    (length,) = struct.unpack_from("<Q", content, start)
    end = start + 12 + length + 4  # length, its checksum, data, its checksum
    if end > len(content):
      return
    try:
      step = read_step(content[start + 12 : end - 4])
    except (IndexError, ValueError):
      return
    yield content[start:end], step
    start = end


def read_step(event: bytes) -> int | None:
  """The step of a serialized tensorflow.Event; None if it has no summary.

  Raises:
    IndexError: the message ends early.
    ValueError: this is no Event.
  """
  if not event:
    raise ValueError("empty event")
  step, has_summary, position = 0, False, 0
  while position < len(event):
    key, position = read_varint(event, position)
    field, wire_type = key >> 3, key & 7
    if wire_type == 0:
      value, position = read_varint(event, position)
      step = value if field == 2 else step
    elif wire_type == 1:
      position += 8
    elif wire_type == 2:
      length, position = read_varint(event, position)
      position += length
      has_summary |= field == 5
    else:
      raise ValueError(f"wire type {wire_type}")
  if position != len(event):
    raise IndexError("event ends early")
  return step if has_summary else None


def read_varint(message: bytes, position: int) -> tuple[int, int]:
  """A protocol buffer's variable length integer, and where it ends."""
  value = shift = 0
  while True:
    byte = message[position]
    position += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value, position
    shift += 7
