# SPDX-License-Identifier: Apache-2.0
"""Processes of implementations, and rounds of them.

Each has the whole device while it is measured, and lets go of all of it at its
end. Kept alive beside one another they would share its memory, and what fits
would depend on who else is measured. What the machine does meanwhile comes to
all of them alike, because they take turns: a round measures each once, the next
one in the opposite order.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.step.cell import Cell
from benchmarks.step.measure import OURS
from benchmarks.throughput.children import EndedError, lines
from mixer.errors import UserError

MODULE = "benchmarks.step.measure"
TO_START = 600.0  # seconds; libraries may come over a network


@dataclasses.dataclass(frozen=True)
class Processes:
  """How implementations are run.

  platform: that jax computes on.
  authors: checkout of the authors' code.
  repeats: timings of a program in a round.
  seconds: that each timing takes at least.
  limit: seconds for a process, compilation included.
  rounds: processes of an implementation for a cell.
  """

  platform: str
  authors: Path | None
  repeats: int
  seconds: float
  limit: float
  rounds: int

  def probe(self, implementation: str) -> dict:
    """Returns its "versions", or why it is "absent"."""
    [said] = self._lines(implementation, [], TO_START)
    return said

  def best_product(
    self, implementations: Sequence[str], dtype: str, sizes: Sequence[int]
  ) -> dict:
    """The fastest square product of all libraries: the device's yardstick.

    Returns:
      "flops_per_second", "size" and "by", the implementation whose library it
      is.

    Raises:
      UserError: it takes too long, or too much memory.
    """
    flags = [f"--products={','.join(map(str, sizes))}", f"--dtype={dtype}"]
    rows = []
    for each in implementations:
      try:
        _, row = self._lines(each, flags, self.limit)
      except EndedError as error:
        row = error.row
      if "why" in row:
        raise UserError(
          f"The products of {dtype} matrices ({each}): {row['why']}. Choose "
          "smaller ones by --products, or a higher --limit."
        )
      rows.append(row | {"by": each})
    return max(rows, key=lambda row: row["flops_per_second"])

  def measure(
    self, cell: Cell, implementations: Sequence[str]
  ) -> Iterator[dict]:
    """Measures in rounds; yields a row for each implementation."""
    found = {each: [] for each in implementations}
    for turn in range(self.rounds):
      for each in implementations[:: -1 if turn % 2 else 1]:
        if not any("why" in one for one in found[each]):
          found[each].append(self._once(cell, each))
    for each, all_rounds in found.items():
      yield {"implementation": each} | _summary(cell, all_rounds)

  def _once(self, cell: Cell, implementation: str) -> dict:
    flags = [
      f"--model={cell.model}",
      f"--pass={cell.passes}",
      f"--dtype={cell.dtype}",
      f"--batch={cell.batch}",
    ]
    try:
      first, said = self._lines(implementation, flags, self.limit)
    except EndedError as error:
      return error.row
    except UserError as error:
      if implementation == OURS:
        raise
      # Others' failures are theirs, and end nothing.
      return {"why": str(error).splitlines()[-1][:200]}
    return first | said

  def _lines(self, implementation: str, flags: list[str], limit: float):
    always = [
      f"--implementation={implementation}",
      f"--platform={self.platform}",
      f"--repeats={self.repeats}",
      f"--seconds={self.seconds}",
    ]
    if self.authors:
      always.append(f"--authors={self.authors}")
    return list(lines(MODULE, always + flags, limit))


def _summary(cell: Cell, rounds: list[dict]) -> dict:
  """One row of what an implementation's processes said."""
  failed = [one for one in rounds if "why" in one]
  if failed:
    return {"images_per_second": None} | failed[0]
  timings = [timing for one in rounds for timing in one["timings"]]
  median = statistics.median(timings)
  speed = cell.batch / median
  compiled = statistics.median(one["compile_seconds"] for one in rounds)
  return {
    "images_per_second": float(f"{speed:.5g}"),
    "spread": round((max(timings) - min(timings)) / median, 4),
    "flops_per_second": float(f"{speed * cell.flops_per_image:.5g}"),
    "peak_bytes": max(one["peak_bytes"] for one in rounds),
    "compile_seconds": round(compiled, 2),
    "timings": len(timings),
    "versions": rounds[-1]["versions"],
  }
