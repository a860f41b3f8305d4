# SPDX-License-Identifier: Apache-2.0
"""The compiler's program text (optimized HLO), as instructions."""

import dataclasses
import math
import re

_HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[^\s(]+) \(.*-> .*\{$")
_INSTRUCTION = re.compile(
  r"^\s+(?:ROOT )?%?(?P<name>\S+) = (?P<type>.+?) (?P<op>[a-z][\w-]*)"
  r"\((?P<rest>.*)$"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%([^\s,()]+)")
_ON_CHIP = re.compile(r"S\([1-9]\d*\)")
_FUSED = re.compile(r"\bcalls=%?([^\s,]+)")
_CALLED = re.compile(
  r"(?:body|to_apply|\w+_computations?)=(?:\{([^}]*)\}|([^\s,]+))"
)


@dataclasses.dataclass(frozen=True)
class Array:
  """Bytes of an array, and whether it is in the device's main memory."""

  bytes: int
  is_in_memory: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line.

  operands: names of instructions of the same computation; of a parameter, its
    number.
  arrays: of its result; several for a tuple, whose nesting is lost.
  attributes: the text behind the operands.
  """

  name: str
  op: str
  operands: tuple[str, ...]
  arrays: tuple[Array, ...]
  attributes: str

  @property
  def called(self) -> list[str]:
    """Computations that run as part of it, those of fusions apart."""
    found = _CALLED.findall(self.attributes)
    names = ",".join(several or one for several, one in found)
    return [name.strip().lstrip("%") for name in names.split(",") if name]

  @property
  def fused(self) -> str | None:
    """The computation that a fusion does at once."""
    found = _FUSED.search(self.attributes)
    return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class ProgramText:
  computations: dict[str, list[Instruction]]
  entry: str


def parse_program(text: str) -> ProgramText:
  computations, entry, lines = {}, "", []
  for line in text.splitlines():
    if header := _HEADER.match(line):
      lines = computations[header["name"]] = []
      entry = header["name"] if header["entry"] else entry
    elif found := _INSTRUCTION.match(line):
      operands, attributes = _split_operands(found["rest"])
      is_parameter = found["op"] == "parameter"
      names = [operands] if is_parameter else _NAME.findall(operands)
      arrays = tuple(_arrays(found["type"]))
      lines.append(
        Instruction(
          found["name"], found["op"], tuple(names), arrays, attributes
        )
      )
  return ProgramText(computations, entry)


def _arrays(type_text: str) -> list[Array]:
  return [
    Array(_size(dtype, shape), not _ON_CHIP.search(layout))
    for dtype, shape, layout in _ARRAY.findall(type_text)
  ]


def _size(dtype: str, shape: str) -> int:
  bits = _bits(dtype) * math.prod(int(n) for n in shape.split(",") if n)
  return -(-bits // 8)


def _bits(dtype: str) -> int:
  return 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])


def _split_operands(rest: str) -> tuple[str, str]:
  depth = 1
  for i, character in enumerate(rest):
    depth += (character == "(") - (character == ")")
    if not depth:
      return rest[:i], rest[i + 1 :]
  return rest, ""
