# SPDX-License-Identifier: Apache-2.0
"""Timing harness: child processes in turns, warm-up, rounds, result files.

Everything is timed in child processes. Memory, threads and caches of one model
or library do not affect the next, and a child that runs out of memory does not
take the command with it. A child runs one function of a benchmark,

  python -m benchmarks.harness benchmarks.throughput:measure '{"batch": 1, ...}'

and prints each row of its result as a line of JSON.
"""

import contextlib
import itertools
import json
import math
import os
import pkgutil
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import jax

from benchmarks.device import file_name, git_commit
from mixer.errors import UserError, notify
from mixer.storage import check_output, write_text

ROWS = "rows"


def time_calls(
  call: Callable[[], object],
  repeats: int,
  seconds: float,
  wait: Callable[[object], object] = jax.block_until_ready,
) -> list[float]:
  """Times a function; returns seconds per call, one number per repeat.

  Args:
    call: starts the work; the first two calls are the warm-up.
    repeats: number of timings.
    seconds: minimum length of a timing, which is a mean over several calls.
    wait: blocks until the work behind a call's result is done.
  """
  wait(call())
  start = time.perf_counter()
  wait(call())
  once = time.perf_counter() - start
  calls = max(1, math.ceil(seconds / once))
  timings = []
  for _ in range(repeats):
    start = time.perf_counter()
    for _ in range(calls):
      last = call()
    wait(last)
    timings.append((time.perf_counter() - start) / calls)
  return timings


def speed(batch: int, timings: Sequence[float]) -> dict[str, float]:
  """Returns images per second by the median timing, and the spread.

  The spread is the range of the timings as a fraction of their median.
  """
  median = statistics.median(timings)
  return {
    "images_per_second": round_digits(batch / median),
    "spread": round((max(timings) - min(timings)) / median, 4),
  }


def round_digits(value: float) -> float:
  """Rounds to five significant digits."""
  return float(f"{value:.5g}")


def format_speed(value: float) -> str:
  """Formats to three digits, or to all digits before the point."""
  return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def turns(names: Sequence[str], rounds: int) -> Iterator[str]:
  """Yields all names in each round, in alternating order.

  Drift of the machine's speed then affects all of them equally.
  """
  for turn in range(rounds):
    yield from names[:: -1 if turn % 2 else 1]


def log_speed(label: str, row: dict):
  value = row["images_per_second"]
  notify(f"{label}: {f'{value:,.5g} images/s' if value else row['why']}")


class ChildError(Exception):
  """A child was killed or timed out, which is a result for its model.

  limit: seconds that were not enough; None if it was not a time-out.
  """

  def __init__(self, message: str, limit: float | None = None):
    super().__init__(message)
    self.limit = limit

  @property
  def row(self) -> dict:
    row = {"images_per_second": None, "why": str(self)}
    return row if self.limit is None else row | {"limit": self.limit}


def run_child(function: str, limit: float, **arguments) -> Iterator[dict]:
  """Runs a function in a child process; yields its rows as they come.

  Args:
    function: "module:function", which returns a dict or yields several.
    limit: seconds, after which the child is killed.
    **arguments: keyword arguments, in JSON's types.

  Raises:
    ChildError: the limit or the system killed the child.
    UserError: the child failed, with the end of its output.
  """
  flags = ["-m", "benchmarks.harness", function, json.dumps(arguments)]
  command = [sys.executable, *flags]
  with tempfile.TemporaryFile("w+") as errors:
    process = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=errors, text=True
    )
    is_late = threading.Event()

    def stop():
      is_late.set()
      process.kill()

    timer = threading.Timer(limit, stop)
    timer.start()
    try:
      for line in process.stdout:
        yield json.loads(line)
      code = process.wait()
    finally:
      timer.cancel()
      process.kill()
      process.wait()
    if is_late.is_set():
      raise ChildError(f"took more than {limit:g} s", limit)
    if code == -signal.SIGKILL:
      raise ChildError("killed by the system, for want of memory it seems")
    if code:
      errors.seek(0)
      output = "\n".join(errors.read().strip().splitlines()[-20:])
      raise UserError(f"{shlex.join(command)} failed with {code}:\n{output}")


def describe_device() -> dict:
  """Describes the device in a child, so that it stays free for others."""
  [device] = run_child("benchmarks.device:describe", limit=600)
  return device


def first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:200]


class Results:
  """The file results/BENCHMARK/DEVICE.json; each change is written at once.

  A header of the last run that added rows ("device", "platform", "versions",
  "command", "date", "git_commit"), then lists of rows. A row has the fields of
  its key, such as "model", "dtype" and "batch", then "images_per_second" and
  other measurements, or images_per_second null and the reason in "why", which
  holds for larger batches, too. After a time-out "limit" has the seconds that
  were not enough. "versions", "date" and "git_commit" are each row's.

  path: the file.
  lists: name -> rows.
  """

  def __init__(
    self,
    folder: Path,
    benchmark: str,
    device: dict,
    *,
    limit: float,
    again: bool = False,
    lists: Sequence[str] = (ROWS,),
  ):
    """Opens the device's file, or begins one.

    Args:
      folder: folder of all results.
      benchmark: name of the benchmark.
      device: device and versions, from `device.describe`.
      limit: seconds for a child; rows that timed out with less count as due.
      again: whether all rows count as due.
      lists: names of the lists of rows.

    Raises:
      UserError: the file cannot be written.
    """
    folder = folder.expanduser() / benchmark
    self.path = folder / f"{file_name(device['device'])}.json"
    command = ["python", "-m", f"benchmarks.{benchmark}", *sys.argv[1:]]
    self._header = device | {"command": shlex.join(command)}
    self.lists = {name: [] for name in lists}
    self.path.parent.mkdir(parents=True, exist_ok=True)
    check_output(self.path, "--results", rb"\{")
    if self.path.exists():
      content = json.loads(self.path.read_text())
      self.lists = {name: content[name] for name in lists}
      for row in itertools.chain(*self.lists.values()):
        row.setdefault("versions", content["versions"])  # older rows have none
    # Rows that need not be measured again.
    self._known = {
      name: [
        row for row in rows if not again and row.get("limit", limit) >= limit
      ]
      for name, rows in self.lists.items()
    }

  def select(self, key: dict, name: str = ROWS) -> list[dict]:
    """Returns the rows of a list that have these fields."""
    return _select(self.lists[name], key)

  def fits(self, key: dict, name: str = ROWS) -> bool:
    """Returns whether no smaller batch is known to have failed."""
    batch = key["batch"]
    others = {field: key[field] for field in key if field != "batch"}
    return not any(
      row["images_per_second"] is None and row["batch"] < batch
      for row in _select(self._known[name], others)
    )

  def is_due(self, key: dict, name: str = ROWS) -> bool:
    """Returns whether this has to be measured and may fit."""
    return self.fits(key, name) and not _select(self._known[name], key)

  def put(self, key: dict, rows: Iterable[dict], name: str = ROWS):
    """Replaces the rows that have these fields, and writes the file.

    Versions are this process's, unless a row has its own.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    stamp = {"date": now, "git_commit": git_commit()}
    versions = {"versions": self._header["versions"]}
    rows = [versions | key | row | stamp for row in rows]
    for lists in (self.lists, self._known):
      others = [row for row in lists[name] if not _has(row, key)]
      lists[name] = others + rows
    write_text(self.path, self._text(self._header | stamp))

  def _text(self, header: dict) -> str:
    """Formats JSON with a line for each row."""
    parts = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in header.items()]
    for name, rows in self.lists.items():
      lines = ",".join(f"\n  {json.dumps(row)}" for row in rows)
      parts.append(f' "{name}": [{lines}]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _has(row: dict, key: dict) -> bool:
  return all(row[field] == value for field, value in key.items())


def _select(rows: Iterable[dict], key: dict) -> list[dict]:
  return [row for row in rows if _has(row, key)]


def list_versions(rows: Iterable[dict]) -> str:
  """Lists the versions of all rows: "jax 0.10.2 and 0.11.2, flax 0.12.8"."""
  versions = {}
  for row in rows:
    for name, version in row["versions"].items():
      versions.setdefault(name, {})[version] = None
  return ", ".join(f"{k} {' and '.join(v)}" for k, v in versions.items())


def main(function: str, arguments: str):
  """Runs a child: see `run_child`."""
  # All of a GPU's memory, except that of its driver and libraries.
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
  with contextlib.suppress(OSError):  # if memory runs out, kill this process
    Path("/proc/self/oom_score_adj").write_text("1000")
  with contextlib.redirect_stdout(sys.stderr):  # libraries print, too
    rows = pkgutil.resolve_name(function)(**json.loads(arguments))
    for row in [rows] if isinstance(rows, dict) else rows:
      print(json.dumps(row), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
