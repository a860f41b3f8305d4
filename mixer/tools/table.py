# SPDX-License-Identifier: Apache-2.0
"""Tables for a terminal, in Markdown."""

from collections.abc import Iterable, Sequence


def render(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Aligns the first column to the left and the others to the right."""
  rows = [tuple(map(str, row)) for row in rows]
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

  def line(cells: Sequence[str]) -> str:
    first, *rest = (
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return f"| {' | '.join([first, *rest])} |"

  rule = [
    "-" * width if i == 0 else "-" * max(width - 1, 1) + ":"
    for i, width in enumerate(widths)
  ]
  return "\n".join([line(head), line(rule), *map(line, rows)])
