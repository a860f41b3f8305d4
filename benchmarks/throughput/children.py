# SPDX-License-Identifier: Apache-2.0
"""Processes that measure, and what is made of their end."""

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

from benchmarks.throughput.cells import Part
from mixer.errors import UserError

MODULE = "benchmarks.throughput.measure"


def describe_device() -> dict:
  """Asks a process, so that this one leaves the device to others."""
  [described] = lines(MODULE, [], limit=600)
  return described


def measure(
  part: Part, *, repeats: int, seconds: float, limit: float
) -> Iterator[dict]:
  """Yields what came of each batch size, until one does not come to an end.

  Args:
    part: what to measure.
    repeats: timings of a program.
    seconds: that each timing takes at least.
    limit: seconds for all batch sizes, compilation included.

  Raises:
    UserError: the process failed, and not for want of memory or time.
  """
  flags = [
    f"--model={part.model}",
    f"--image_size={part.image_size}",
    f"--pass={part.passes}",
    f"--dtype={part.dtype}",
    f"--batches={','.join(map(str, part.batches))}",
    f"--repeats={repeats}",
    f"--seconds={seconds}",
  ]
  left = list(part.batches)
  rows = lines(MODULE, flags, limit)
  try:
    next(rows)  # the device
    for row in rows:
      left.remove(row["batch"])
      yield row
  except EndedError as error:
    yield {"batch": left[0]} | error.row


class EndedError(Exception):
  """A process came to a bad end, which says something of the model.

  limit: seconds that were not enough, None if it was not for want of time.
  """

  def __init__(self, message: str, limit: float | None = None):
    super().__init__(message)
    self.limit = limit

  @property
  def row(self) -> dict:
    """What a row of results says of it."""
    row = {"images_per_second": None, "why": str(self)}
    return row if self.limit is None else row | {"limit": self.limit}


def lines(module: str, flags: list[str], limit: float) -> Iterator[dict]:
  """Yields what a process prints, line by line.

  Args:
    module: that the process runs, and which prints JSON.
    flags: of it.
    limit: seconds, after which it is ended.

  Raises:
    EndedError: it was killed: by the limit, or by the system.
    UserError: it failed, with the end of what it said.
  """
  command = [sys.executable, "-m", module, *flags]
  with tempfile.TemporaryFile("w+") as errors:
    process = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=errors, text=True
    )
    out_of_time = threading.Event()

    def stop():
      out_of_time.set()
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
    if out_of_time.is_set():
      raise EndedError(f"took more than {limit:g} s", limit)
    if code == -signal.SIGKILL:
      raise EndedError("killed by the system, for want of memory it seems")
    if code:
      errors.seek(0)
      said = "\n".join(errors.read().strip().splitlines()[-20:])
      raise UserError(f"{' '.join(command)} failed with {code}:\n{said}")
