# SPDX-License-Identifier: Apache-2.0
"""HBM traffic and collectives of a program, read from its optimized HLO.

XLA's own "bytes accessed" also counts on-chip memory: on v4, which has much of
it, three times as many bytes as HBM can deliver.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

_COMPUTATION = re.compile(
  r"^(?:(?P<entry>ENTRY) )?%?(?P<name>[^\s(]+) \(.*-> .*\{$"
)
_INSTRUCTION = re.compile(
  r"^\s+(?:ROOT )?%?(?P<name>\S+) = (?P<type>.+?) (?P<op>[a-z][\w-]*)"
  r"\((?P<rest>.*)$"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
_OPERAND = re.compile(r"%([^\s,()]+)")
_ON_CHIP = re.compile(r"S\([1-9]\d*\)")  # a memory space other than HBM
_FUSED = re.compile(r"\bcalls=%?([^\s,]+)")
_CALLED = re.compile(
  r"(?:body|to_apply|\w+_computations?)=(?:\{([^}]*)\}|([^\s,]+))"
)
_GROUP = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])")

COLLECTIVES = (
  "all-reduce reduce-scatter all-gather all-to-all collective-permute".split()
)
# Other names for arrays that exist already, or constants of the program.
_NO_TRAFFIC = (
  "parameter constant tuple get-tuple-element bitcast partition-id replica-id"
  " after-all iota"
).split()
_NO_ARITHMETIC = (
  "fusion call while conditional async-start async-done async-update broadcast"
  " concatenate copy copy-start copy-done pad reshape slice slice-start"
  " slice-done dynamic-slice dynamic-update-slice transpose"
).split()
ENTRY = "ENTRY"


@dataclasses.dataclass(frozen=True)
class Array:
  """Size of an array, and whether it lies in HBM rather than on the chip."""

  elements: int
  bytes: int
  is_in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction.

  operands: names of instructions in the same computation; for a parameter, its
    number.
  arrays: the result; several for a tuple, whose nesting is lost.
  attributes: the text after the operands.
  """

  name: str
  op: str
  operands: tuple[str, ...]
  arrays: tuple[Array, ...]
  attributes: str

  @property
  def called(self) -> list[str]:
    """Computations that run as part of this instruction; no fused ones."""
    names = ",".join(map("".join, _CALLED.findall(self.attributes)))
    return [name.strip().lstrip("%") for name in names.split(",") if name]

  @property
  def fused(self) -> str:
    """The computation of a fusion."""
    return _FUSED.search(self.attributes)[1]


# Instructions of each computation by its name, or ENTRY for the program's own.
HloModule = dict[str, list[Instruction]]


@dataclasses.dataclass(frozen=True)
class HbmTraffic:
  """Bytes per device, read or written.

  outside: outside of loops.
  inside: in the bodies of loops, each counted once.
  """

  outside: int
  inside: int


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective operation.

  kind: one of COLLECTIVES.
  bytes: size of the whole array per device: the operand of an all-reduce or
    reduce-scatter, the result of an all-gather.
  """

  kind: str
  bytes: int


def parse_hlo(text: str) -> HloModule:
  """Parses `compiled.as_text()`."""
  module, instructions = {}, []
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      instructions = module[match["entry"] or match["name"]] = []
    elif match := _INSTRUCTION.match(line):
      operands, attributes = _split_operands(match["rest"])
      is_parameter = match["op"] == "parameter"
      names = [operands] if is_parameter else _OPERAND.findall(operands)
      arrays = tuple(_parse_arrays(match["type"]))
      instructions.append(
        Instruction(
          match["name"], match["op"], tuple(names), arrays, attributes
        )
      )
  return module


def read_traffic(module: HloModule) -> HbmTraffic:
  """Adds up operands and results of all instructions outside of fusions."""
  outside = inside = 0
  pending, visited = [(ENTRY, False)], set()
  while pending:
    name, is_loop = pending.pop()
    if name in visited:
      continue
    visited.add(name)
    instructions = module.get(name, [])
    by_name = {each.name: each for each in instructions}
    for each in instructions:
      if each.op in ("while", "call", "conditional"):
        pending += [(n, is_loop or each.op == "while") for n in each.called]
      elif is_loop:
        inside += _traffic_of(each, by_name, module)
      else:
        outside += _traffic_of(each, by_name, module)
  return HbmTraffic(outside, inside)


def read_operations(module: HloModule) -> collections.Counter[str]:
  """Counts the elements that each kind of arithmetic computes.

  In fusions as well; the body of a loop is counted once.
  """
  elements = collections.Counter()
  for instructions in module.values():
    for each in instructions:
      if each.op not in _NO_TRAFFIC + _NO_ARITHMETIC:
        elements[each.op] += sum(array.elements for array in each.arrays)
  return elements


def read_collectives(module: HloModule, devices: int) -> list[Collective]:
  """Returns all collectives; a pair of start and done is one.

  The body of a loop is counted once, too; the update's loop has none.

  Args:
    module: from `parse_hlo`.
    devices: size of a group where the text names no groups.
  """
  collectives = []
  for name, instructions in module.items():
    for each in instructions:
      kind = each.op.removesuffix("-start")
      if kind not in COLLECTIVES:
        continue
      sizes = [array.bytes for array in each.arrays]
      inputs = len(each.operands)
      if each.op.endswith("-start") and len(sizes) >= 2 * inputs:
        # A tuple of operands, results and maybe counters; but of an all-reduce
        # on TPUs the results only.
        sizes = sizes[inputs : 2 * inputs]
      size = sum(sizes)
      if kind == "reduce-scatter":
        size *= _group_size(each, devices)
      elif kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # a TPU's: a fusion keeps a slice of the sum
      collectives.append(Collective(kind, size))
  return collectives


def _parse_arrays(type_text: str) -> list[Array]:
  arrays = []
  for dtype, shape, layout in _ARRAY.findall(type_text):
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    elements = math.prod(int(n) for n in shape.split(",") if n)
    size = -(-bits * elements // 8)
    arrays.append(Array(elements, size, not _ON_CHIP.search(layout)))
  return arrays


def _split_operands(rest: str) -> tuple[str, str]:
  """Splits the text behind an opening bracket at the closing one."""
  depth = 1
  for i, character in enumerate(rest):
    depth += (character == "(") - (character == ")")
    if not depth:
      return rest[:i], rest[i + 1 :]
  return rest, ""


def _group_size(instruction: Instruction, devices: int) -> int:
  match = _GROUP.search(instruction.attributes)
  if not match:
    return devices
  members, size = match.groups()
  return int(size) if size else len(members.split(","))


def _traffic_of(
  each: Instruction, by_name: dict[str, Instruction], module: HloModule
) -> int:
  """Returns the bytes that one instruction reads from or writes to HBM."""
  if each.op in _NO_TRAFFIC or each.op.endswith("-done"):
    return 0
  if each.op in ("copy-start", "slice-start"):
    # The result holds source and destination, in an order that differs between
    # the two; a slice moves only the smaller one's bytes.
    ends = each.arrays[:2]
    moved = min(end.bytes for end in ends)
    return sum(moved for end in ends if end.is_in_hbm)
  read = sum(
    min(
      sum(array.bytes for array in by_name[name].arrays if array.is_in_hbm),
      _bytes_read(each, number, module),
    )
    for number, name in enumerate(each.operands)
    if name in by_name
  )
  if each.op.endswith("-start"):
    return read
  root = each
  if each.op == "fusion":
    body = module[each.fused]
    root, by_name = body[-1], {one.name: one for one in body}
  results = zip(each.arrays, _bytes_written(root, by_name), strict=True)
  return read + sum(
    min(array.bytes, written) for array, written in results if array.is_in_hbm
  )


def _bytes_read(
  user: Instruction,
  number: int,
  module: HloModule,
  body: Sequence[Instruction] = (),
) -> float:
  """Returns the bytes read from operand `number` of `user`; inf for all of it.

  body: the fused computation that `user` is in, if any.
  """
  if user.op == "fusion":
    body = module[user.fused]
    parameter = "parameter", (str(number),)
    [name] = [
      each.name for each in body if (each.op, each.operands) == parameter
    ]
  elif user.op == "bitcast":
    name = user.name
  elif number == 0 and user.op in ("slice", "dynamic-slice"):
    return user.arrays[0].bytes
  elif number == 0 and user.op == "dynamic-update-slice":
    return 0  # updated in place
  else:
    return math.inf
  if name == body[-1].name:  # the root, which is read outside
    return math.inf
  return sum(
    _bytes_read(each, index, module, body)
    for each in body
    for index, operand in enumerate(each.operands)
    if operand == name
  )


def _bytes_written(
  root: Instruction, by_name: dict[str, Instruction]
) -> list[float]:
  """Returns the bytes written to each array of a result; inf for all of it."""
  if root.op == "tuple":
    return [
      size
      for name in root.operands
      for size in _bytes_written(by_name[name], by_name)
    ]
  if root.op == "bitcast":
    return _bytes_written(by_name[root.operands[0]], by_name)
  if root.op == "dynamic-update-slice":
    return [by_name[root.operands[1]].arrays[0].bytes]
  return [math.inf] * len(root.arrays)
