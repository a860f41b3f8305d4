# SPDX-License-Identifier: Apache-2.0
"""What goes between a chip and its memory, read from the compiler's program.

The compiler's own count of bytes adds what stays in on-chip memory, of which v4
has much: there it is three times what the memory has to give.
"""

import dataclasses

from mixer.preflight.program_text import Instruction, ProgramText

# Names for what is there already; the second half of what was started.
_FREE = {
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "partition-id",
  "replica-id",
  "after-all",
  "iota",
}


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Bytes per device, read or written.

  outside: of loops.
  inside: of the bodies of loops, each once.
  """

  outside: int
  inside: int


def read_traffic(program: ProgramText) -> Traffic:
  """Adds up operands and results of everything that is no part of a fusion."""
  outside = inside = 0
  waiting, seen = [(program.entry, False)], set()
  while waiting:
    name, is_loop = waiting.pop()
    if name in seen:
      continue
    seen.add(name)
    instructions = program.computations.get(name, [])
    by_name = {each.name: each for each in instructions}
    for each in instructions:
      if each.op in ("while", "call", "conditional"):
        waiting += [(n, is_loop or each.op == "while") for n in each.called]
      elif is_loop:
        inside += _bytes(each, by_name)
      else:
        outside += _bytes(each, by_name)
  return Traffic(outside, inside)


def _bytes(each: Instruction, by_name: dict[str, Instruction]) -> int:
  if each.op in _FREE or each.op.endswith("-done"):
    return 0
  if each.op in ("copy-start", "slice-start"):
    # The result is (where from, where to, ...) for one, (to, from) for another;
    # what is moved is the smaller of the two, where slices are taken.
    ends = each.arrays[:2]
    moved = min(end.bytes for end in ends)
    return sum(moved for end in ends if end.is_in_memory)
  given = [
    array
    for name in each.operands
    if name in by_name
    for array in by_name[name].arrays
  ]
  results = [] if each.op.endswith("-start") else each.arrays
  return sum(a.bytes for a in (*given, *results) if a.is_in_memory)
