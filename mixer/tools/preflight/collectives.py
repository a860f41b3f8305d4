# SPDX-License-Identifier: Apache-2.0
"""What devices send each other, read from the compiler's program."""

import dataclasses
import re
from collections.abc import Iterator

from mixer.tools.preflight.program_text import Instruction, ProgramText

KINDS = (
  "all-reduce",
  "reduce-scatter",
  "all-gather",
  "all-to-all",
  "collective-permute",
)
_GROUP = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One of them.

  kind: of KINDS.
  bytes: of the whole array that it is about: what an all-reduce sums, what a
    reduce-scatter takes, what an all-gather gives; per device.
  """

  kind: str
  bytes: int


def read_collectives(program: ProgramText, devices: int) -> list[Collective]:
  """All of a program, pairs of start and done once.

  What a loop repeats is counted once, too; the step's loop has none.

  Args:
    program: from `parse_program`.
    devices: that run it; groups that the text leaves out are all of them.
  """
  return list(_read(program, devices))


def _read(program: ProgramText, devices: int) -> Iterator[Collective]:
  for name, instructions in program.computations.items():
    for each in instructions:
      kind = each.op.removesuffix("-start")
      if kind not in KINDS:
        continue
      sizes = [array.bytes for array in each.arrays]
      if each.op in ("all-gather-start", "collective-permute-start"):
        # The result is what goes in, what comes out, and maybe counters.
        inputs = len(each.operands)
        sizes = sizes[inputs : 2 * inputs]
      size = sum(sizes)
      if kind == "reduce-scatter":
        size *= _group_size(each, devices)
      elif kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # a TPU's: a fusion keeps a slice of the sum
      yield Collective(kind, size)


def _group_size(instruction: Instruction, devices: int) -> int:
  if found := _GROUP.search(instruction.attributes):
    return len(found[1].split(","))
  if found := _GROUPS.search(instruction.attributes):
    return int(found[2])
  return devices
