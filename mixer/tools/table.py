# SPDX-License-Identifier: Apache-2.0
"""Tables for a terminal, in Markdown."""

from collections.abc import Iterable, Sequence


def render(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Aligns the first column to the left and the others to the right."""
  rows = [tuple(map(str, row)) for row in rows]
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  rule = ["-" * widths[0], *("-" * max(x - 1, 1) + ":" for x in widths[1:])]
  lines = (" | ".join(align(row, widths)) for row in (head, rule, *rows))
  return "\n".join(f"| {line} |" for line in lines)


def align(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
  """Pads the first cell on its right and the others on their left."""
  first, *others = zip(cells, widths, strict=True)
  return [str.ljust(*first), *(str.rjust(*other) for other in others)]
