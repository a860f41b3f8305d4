# SPDX-License-Identifier: Apache-2.0
"""Goodput: where a run's seconds went, over all its starts.

goodput.jsonl has a line for each start, which no later start drops: "start", in
Unix time; "logged", the last step in the log by then; "from_step"; "done"; and
"rows": the seconds of each kind at the end of every save and evaluation, and at
the last write.
"""

import collections
import itertools
import json
import math
import threading
import time

from absl import logging
from etils import epath

from mixer.storage import is_in_bucket, write_text
from mixer.training.metrics import UPLOAD_SECONDS, read_rows
from mixer.training.progress import format_seconds
from mixer.training.run_dir import wrap_read_errors

FILE = "goodput.jsonl"
# Kind of time -> label. All but the last two are phases of the watchdog; its
# other phases count as the kind before them.
KINDS = {
  "update": "updates",  # that counted
  "set-up": "start-up",  # from the imports to the first update
  "compile": "compile",
  "batch": "data wait",
  "evaluation": "evaluation",
  "save": "saving",
  "end": "ending",  # waits for the last save, writes the weights
  "lost": "lost work",  # since the checkpoint that a later start went on from
  "idle": "idle",  # between two starts
}
# A SHARE of the time so far passes between two writes, at least SHORTEST and at
# most LONGEST seconds (in a bucket at least UPLOAD_SECONDS). What was not
# written when a run is killed counts as idle.
SHARE, SHORTEST, LONGEST = 0.01, 0.2, 60.0


class Ledger:
  """Counts the seconds of this start; a thread of the first host writes."""

  def __init__(
    self, folder: epath.Path, started: float, *, enabled: bool = True
  ):
    """Counts from `started` on, by time.monotonic(); writes if `enabled`."""
    self._file, self._started, self._since = folder / FILE, started, started
    self._kind, self._seconds = "set-up", collections.Counter()
    self._step, self._rows, self._line = 0, [], {}
    self._lock, self._closed = threading.Lock(), threading.Event()
    self._thread = threading.Thread(target=self._write_rows, daemon=True)
    if enabled:
      start = time.time() - (time.monotonic() - started)
      logged = [row["step"] for row in read_rows(folder)]
      self._line = {"start": start, "logged": logged[-1] if logged else 0}
      self._earlier = _read(folder)
      self._thread.start()

  def phase(self, name: str, step: int | None = None) -> None:
    """Begins a phase of the main thread, after `step` updates."""
    with self._lock:
      row = self._advance()
      if self._kind in ("evaluation", "save"):
        self._rows.append(row)  # what follows may be lost
      is_first_batch = name == "batch" and "compile" not in self._seconds
      if name in KINDS and not is_first_batch:
        self._kind = name
      if step is not None:
        self._step = step
        self._line.setdefault("from_step", step)

  def seconds(self) -> dict[str, float]:
    """Returns the seconds of each kind in this start, until now."""
    with self._lock:
      return self._advance()["seconds"]

  def end(self) -> str:
    """Writes that the run is done; returns the line of `read_goodput`."""
    self._line["done"] = True
    self.close()
    return read_goodput(self._file.parent)[0]

  def close(self) -> None:
    """Writes once more and ends the thread."""
    self._closed.set()
    if self._thread.is_alive():
      self._thread.join()

  def _advance(self) -> dict:
    """Counts until now, and returns a row."""
    now = time.monotonic()
    self._seconds[self._kind] += now - self._since
    self._since = now
    return {"step": self._step, "seconds": dict(self._seconds)}

  def _write_rows(self) -> None:
    shortest = UPLOAD_SECONDS if is_in_bucket(self._file) else SHORTEST
    is_closed = False
    while True:
      with self._lock:
        line = self._line | {"rows": [*self._rows, self._advance()]}
      try:
        lines = [json.dumps(each) + "\n" for each in [*self._earlier, line]]
        write_text(self._file, "".join(lines))
      except Exception as error:  # the next write tries again
        logging.warning("Cannot write %s: %s", self._file, error)
      if is_closed:
        return
      share = SHARE * (time.monotonic() - self._started)
      is_closed = self._closed.wait(min(LONGEST, max(shortest, share)))


def read_goodput(folder: epath.Path) -> tuple[str, dict[str, float], int]:
  """Adds up all starts of a run.

  Returns:
    A line about its time; the seconds of each kind, which sum to the time from
    the first start to the last write ({} for a run that is older than the
    file); and the number of updates that were done again.

  Raises:
    UserError: goodput.jsonl is damaged.
  """
  starts = []
  for start in _read(folder):
    if starts and starts[-1].get("done"):
      # A finished run that is started again only says so.
      last = starts[-1]["rows"][-1]["step"]
      steps = {row["step"] for row in start["rows"]} | {start.get("from_step")}
      if steps <= {None, 0, last}:
        continue
    starts.append(start)
  if not starts:
    return f"not recorded, the run is older than {FILE}", {}, 0
  seconds, lost_updates = dict.fromkeys(KINDS, 0.0), 0
  # Of later starts: the first, and the lowest step that one went on from.
  following, resumed = None, math.inf
  for start in reversed(starts):
    for before, row in itertools.pairwise([{"seconds": {}}, *start["rows"]]):
      is_lost = row["step"] > resumed
      for kind, total in row["seconds"].items():
        is_again = is_lost and kind not in ("set-up", "compile")
        spent = total - before["seconds"].get(kind, 0.0)
        seconds["lost" if is_again else kind] += spent
    reached = row["step"]
    if following:
      seconds["idle"] += max(0.0, following["start"] - _end(start))
      if "compile" in row["seconds"]:  # else an earlier start has logged it
        reached = max(reached, following["logged"])
    if "from_step" in start:
      lost_updates += max(0, reached - max(start["from_step"], resumed))
      resumed = min(start["from_step"], resumed)
    following = start
  wall = sum(seconds.values())
  parts = [
    f"{KINDS[kind]} {format_seconds(x)}"
    for kind, x in seconds.items()
    if x >= 0.5
  ]
  if lost_updates:
    parts.append(f"{lost_updates:,} updates done again")
  if step := starts[0].get("from_step"):
    parts.append(f"from step {step:,} on")
  if not starts[-1].get("done"):
    ago = format_seconds(time.time() - _end(starts[-1]))
    parts.append(f"not done, written {ago} ago")
  counted = f"{len(starts):,} start{'s' * (len(starts) > 1)}"
  share, length = seconds["update"] / wall, format_seconds(wall)
  line = f"{share:.1%} of {length}, {counted}: {', '.join(parts)}"
  return line, seconds, lost_updates


def _read(folder: epath.Path) -> list[dict]:
  with wrap_read_errors(folder / FILE):
    return read_rows(folder, FILE)


def _end(start: dict) -> float:
  return start["start"] + sum(start["rows"][-1]["seconds"].values())
