# SPDX-License-Identifier: Apache-2.0
"""The numbers of a training run: metrics.jsonl, and TensorBoard's files.

metrics.jsonl is the truth: one JSON object per step, on disk before a
checkpoint is. TensorBoard's event files follow it, in the same order and
perhaps a few rows behind; whatever they lack when a run is killed is filled
in from metrics.jsonl when it goes on.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from mixer.atomic_write import atomic_write
from mixer.errors import UserError
from mixer.training.background import Background
from mixer.training.event_files import EventFiles

Number = float | int
Scalar = Number | np.generic | jax.Array


def read_rows(workdir: str | os.PathLike) -> list[dict[str, Number]]:
  """The rows of WORKDIR/metrics.jsonl; none if there is no such file.

  A line torn by a kill, which can only be the last, is passed over. A loss
  that is not finite reads as `nan` or `inf`: Python's json writes and reads
  these, stricter readers may not.

  Raises:
    UserError: a line is not a row of numbers, or not of a later step than the
      one before.
  """
  path = Path(workdir) / "metrics.jsonl"
  if not path.exists():
    return []
  complete = path.read_bytes().rpartition(b"\n")[0]
  rows = []
  for number, line in enumerate(complete.splitlines(), start=1):
    try:
      row = json.loads(line)
      wrong = _wrong(row, after=rows[-1]["step"] if rows else -1)
    except (ValueError, KeyError, TypeError, AttributeError):
      wrong = "it is not a JSON object with a step"
    if wrong:
      raise UserError(
        f"Line {number} of {path} is not a row ({wrong}): mend it or move the "
        "file away."
      )
    rows.append(row)
  return rows


def _wrong(row: dict, *, after: int) -> str:
  """What a row has that a run never writes; "" for nothing."""
  for name, value in row.items():
    if not isinstance(value, Number):
      return f"{name} = {json.dumps(value)} is not a number"
  if not isinstance(row["step"], int) or row["step"] <= after:
    return f"step = {row['step']} is not a step after {after}"
  if row.get("images_per_second", 1) <= 0:
    return f"images_per_second = {row['images_per_second']} is not above 0"
  return ""


class RunLog:
  """Writes a run's rows from background threads.

  Values may be jax arrays that are still being computed: `write` puts them
  in a queue, a thread waits for them. A row is on disk once a row for a later
  step is written, or at `flush` or `close`; until then, writes for the same
  step add to it. A name that a step already has keeps its first value, also
  when a resumed run evaluates its first step again.

  Errors of the background threads are raised by the next call: UserError if
  a file cannot be written.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    from_step: int,
    enabled: bool = True,
    on_values: Callable[[int, dict[str, Number]], None] | None = None,
  ):
    """Cuts the files in `workdir` back to where the run goes on.

    Args:
      workdir: the run's folder; made if missing.
      from_step: rows up to this step stay, later ones go. 0 keeps nothing.
      enabled: False in all processes but one; then nothing is written.
      on_values: called in the background with the step and the values of
        every write, as soon as they are known; for a progress line.
    """
    self._enabled = enabled
    if not enabled:
      return
    self._on_values = on_values
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    self._path = folder / "metrics.jsonl"
    self._rows = Background("metrics.jsonl", path=str(self._path))
    self._newest_step = from_step
    self._held = None
    kept = [r for r in read_rows(folder) if 0 < from_step >= r["step"]]
    with atomic_write(self._path) as aside:
      aside.write_bytes(b"".join(map(encode_row, kept)))
    self._last = kept[-1] if kept else None
    self._file = self._path.open("ab")
    self._event_files = EventFiles(folder, kept)

  def start_event_files(self) -> None:
    """Begins to import TensorFlow in the background (5 to 10 s).

    Else the first write does so. No other thread should import TensorFlow,
    or what imports it, at the same time.
    """
    if self._enabled:
      self._event_files.start()

  def write(self, step: int, scalars: Mapping[str, Scalar]) -> None:
    """Adds values to the row of `step`, without waiting for any of them.

    Args:
      step: not below the step of an earlier write.
      scalars: names and values; arrays must hold one number each, and must
        not be donated to a later step.
    """
    if not self._enabled:
      return
    if step < self._newest_step:
      raise ValueError(
        f"Row for step {step} after one for step {self._newest_step}: rows "
        "must be written in the order of their steps."
      )
    self._newest_step = step
    self._event_files.start()
    self._rows.submit(self._add, step, dict(scalars))

  def flush(self) -> None:
    """Returns when everything written so far would survive a kill.

    metrics.jsonl is then on disk. So are the event files, unless TensorFlow
    is still being imported: that is not waited for, since a resumed run fills
    them in from metrics.jsonl.
    """
    if not self._enabled:
      return
    self._rows.submit(self._put_held_row)
    self._rows.submit(self._sync)
    self._rows.wait()
    self._event_files.flush()

  def close(self) -> None:
    """Writes what is left to all files, waiting for TensorFlow if need be."""
    if not self._enabled or self._file.closed:
      return
    try:
      self._rows.submit(self._put_held_row)
      self._rows.submit(self._sync)
      self._rows.stop()
    finally:
      # After a failure, closing tries once more to write what is left.
      with contextlib.suppress(OSError):
        self._file.close()
      self._event_files.close()

  def __enter__(self) -> "RunLog":
    return self

  def __exit__(self, kind, error, trace) -> None:
    try:
      self.close()
    except Exception:
      if error is None:
        raise

  def _add(self, step: int, scalars: dict[str, Scalar]) -> None:
    values = {
      name: to_number(value) for name, value in jax.device_get(scalars).items()
    }
    if self._on_values is not None:
      self._on_values(step, values)
    if self._held is not None and self._held["step"] != step:
      self._put_held_row()
    self._held = self._held or {"step": step}
    for name, value in values.items():
      self._held.setdefault(name, value)

  def _put_held_row(self) -> None:
    row, self._held = self._held, None
    if row is None:
      return
    if self._last is not None and self._last["step"] == row["step"]:
      self._extend_last_row(row)
      return
    self._append(row)
    self._event_files.write(row)
    self._last = row

  def _append(self, row: dict[str, Number]) -> None:
    self._file.write(encode_row(row))
    self._file.flush()

  def _extend_last_row(self, row: dict[str, Number]) -> None:
    """Adds names to a row that `flush` or an earlier run already wrote."""
    added = {k: v for k, v in row.items() if k not in self._last}
    if not added:
      return
    self._last = self._last | added
    self._file.close()
    lines = self._path.read_bytes().splitlines(keepends=True)
    lines[-1] = encode_row(self._last)
    with atomic_write(self._path) as aside:
      aside.write_bytes(b"".join(lines))
    self._file = self._path.open("ab")
    self._event_files.write({"step": row["step"]} | added)

  def _sync(self) -> None:
    os.fsync(self._file.fileno())


def to_number(value: Scalar) -> Number:
  number = np.asarray(value).item()
  # float() refuses what is no number.
  return number if isinstance(number, int) else float(number)


def encode_row(row: dict[str, Number]) -> bytes:
  """One line of metrics.jsonl; floats read back as they were."""
  return json.dumps(row).encode() + b"\n"
