# SPDX-License-Identifier: Apache-2.0
"""What a table's page consists of, whatever it is written as."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell's text, and the mark of the note that it has."""

  text: str = ""
  mark: str = ""


@dataclasses.dataclass(frozen=True)
class Note:
  """What a mark stands for.

  commands: each to be copied as a line.
  """

  mark: str
  text: str
  commands: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Block:
  """Rows under a heading of their own, "" for none."""

  heading: str
  rows: tuple[tuple[Cell, ...], ...]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table with two lines of column heads.

  caption: a line above it, "" for none.
  columns: of each the group and the name in it; "" for either that there is
    not. Neighbours of one group share its head.
  left: columns of words, which are not lined up to the right.
  """

  caption: str
  columns: tuple[tuple[str, str], ...]
  blocks: tuple[Block, ...]
  left: tuple[int, ...] = (0,)


@dataclasses.dataclass(frozen=True)
class Page:
  """A table of the paper with what has to be said of it.

  intro: paragraphs above.
  notes: heading -> notes below.
  """

  title: str
  intro: tuple[str, ...]
  tables: tuple[Table, ...]
  notes: dict[str, tuple[Note, ...]]


def cells(*texts: str) -> tuple[Cell, ...]:
  return tuple(Cell(text) for text in texts)


def groups(columns: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
  """Neighbouring columns of one group: its name and how many they are."""
  result = []
  for group, _ in columns:
    if group and result and result[-1][0] == group:
      result[-1] = (group, result[-1][1] + 1)
    else:
      result.append((group, 1))
  return result


class Notes:
  """Notes by the order in which cells first ask for them."""

  def __init__(self, marks: str):
    """Starts empty; `marks` is "numbers" or "letters"."""
    self._letters = marks == "letters"
    self._marks = {}

  def mark(self, text: str, *commands: str) -> str:
    """The mark of a note, which is the same for the same words."""
    return self._marks.setdefault(
      (text, commands), self._name(len(self._marks))
    )

  def all(self) -> tuple[Note, ...]:
    return tuple(
      Note(mark, text, commands)
      for (text, commands), mark in self._marks.items()
    )

  def _name(self, i: int) -> str:
    if not self._letters:
      return str(i + 1)
    name = ""
    while i >= 0:  # a ... z, aa ...
      i, letter = divmod(i, 26)
      name, i = chr(ord("a") + letter) + name, i - 1
    return name
