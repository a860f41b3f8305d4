# SPDX-License-Identifier: Apache-2.0
"""What goes between a chip and its memory, read from the compiler's program.

The compiler's own count of bytes adds what stays in on-chip memory, of which v4
has much: there it is three times what the memory has to give.
"""

import dataclasses
import math
from collections.abc import Sequence

from mixer.tools.preflight.program_text import Instruction, ProgramText

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
        inside += _bytes(each, by_name, program)
      else:
        outside += _bytes(each, by_name, program)
  return Traffic(outside, inside)


def _bytes(
  each: Instruction, by_name: dict[str, Instruction], program: ProgramText
) -> int:
  if each.op in _FREE or each.op.endswith("-done"):
    return 0
  if each.op in ("copy-start", "slice-start"):
    # The result is (where from, where to, ...) for one, (to, from) for another;
    # what is moved is the smaller of the two, where slices are taken.
    ends = each.arrays[:2]
    moved = min(end.bytes for end in ends)
    return sum(moved for end in ends if end.is_in_memory)
  read = sum(
    min(_size_in_memory(by_name[name]), _taken(each, number, program))
    for number, name in enumerate(each.operands)
    if name in by_name
  )
  if each.op.endswith("-start"):
    return read
  root = each
  if each.op == "fusion":
    body = program.computations[each.fused]
    root, by_name = body[-1], {one.name: one for one in body}
  results = zip(each.arrays, _written(root, by_name), strict=True)
  return read + sum(
    min(array.bytes, written)
    for array, written in results
    if array.is_in_memory
  )


def _size_in_memory(each: Instruction) -> int:
  return sum(array.bytes for array in each.arrays if array.is_in_memory)


def _taken(
  user: Instruction,
  number: int,
  program: ProgramText,
  body: Sequence[Instruction] = (),
) -> float:
  """Bytes that an instruction reads of an operand; inf for all there are.

  Args:
    user: the instruction.
    number: which of its operands.
    program: where a fusion is looked up.
    body: the fusion that the instruction is in, if any.
  """
  if user.op == "fusion":
    body = program.computations[user.fused]
    wanted = "parameter", (str(number),)
    [name] = [each.name for each in body if (each.op, each.operands) == wanted]
  elif user.op == "bitcast":
    name = user.name
  elif number == 0 and user.op in ("slice", "dynamic-slice"):
    return user.arrays[0].bytes
  elif number == 0 and user.op == "dynamic-update-slice":
    return 0  # it is changed in place
  else:
    return math.inf
  if name == body[-1].name:  # the root, which others see
    return math.inf
  return sum(
    _taken(each, place, program, body)
    for each in body
    for place, operand in enumerate(each.operands)
    if operand == name
  )


def _written(root: Instruction, by_name: dict[str, Instruction]) -> list[float]:
  """Bytes written of each array of a result; inf for all there are."""
  if root.op == "tuple":
    return [
      size
      for name in root.operands
      for size in _written(by_name[name], by_name)
    ]
  if root.op == "bitcast":
    return _written(by_name[root.operands[0]], by_name)
  if root.op == "dynamic-update-slice":
    return [by_name[root.operands[1]].arrays[0].bytes]
  return [math.inf] * len(root.arrays)
