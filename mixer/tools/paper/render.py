# SPDX-License-Identifier: Apache-2.0
"""Pages with tables and footnotes, as text, Markdown and HTML."""

import collections
import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from mixer.errors import UserError, did_you_mean
from mixer.storage import check_output, write_text
from mixer.tools.table import align
from mixer.tools.table import render as render_markdown

# Pages of one file, which refer to no other; base.html has their style sheet.
TEMPLATES = jinja2.Environment(
  loader=jinja2.FileSystemLoader(Path(__file__).parent),
  autoescape=True,
  undefined=jinja2.StrictUndefined,  # a misspelt name raises
  trim_blocks=True,
  lstrip_blocks=True,
)
_WIDTH = 100
_GAP = "  "
# Beginnings of files that `write` writes.
_OURS = rb"(# |<!doctype html>.{,400}<title>)?Table \d: [^\n]*2105\.01601\)"
Note = tuple[str, str, Sequence[str]]  # mark, text, commands to copy


class Cell(NamedTuple):
  """A cell's text, and the mark of its footnote."""

  text: str = ""
  mark: str = ""


class Table(NamedTuple):
  """A table whose column heads may have a second line above."""

  # Groups and names; neighbours of one group share its head, "" is none.
  columns: Sequence[tuple[str, str]]
  rows: Sequence[str | Sequence[Cell]]  # cells, or a heading of those below
  caption: str = ""  # a line above the table

  @property
  def groups(self) -> list[tuple[str, list[int]]]:
    """Groups and the columns of each; "" for columns outside of any."""
    places = itertools.groupby(
      range(len(self.columns)), lambda i: self.columns[i][0]
    )
    return [(group, list(columns)) for group, columns in places]


class Page(NamedTuple):
  """A title, paragraphs, tables, and notes under headings."""

  title: str
  intro: Sequence[str]
  tables: Sequence[Table]
  notes: Mapping[str, Sequence[Note]] = {}


class Footnotes:
  """Footnotes in the order in which cells first refer to them."""

  def __init__(self, marks: Iterable[str]):
    self._marks = collections.defaultdict(iter(marks).__next__)

  def mark(self, text: str, *commands: str) -> str:
    """Returns the mark of a footnote, adding it unless it is there already."""
    return self._marks[text, commands]

  @property
  def notes(self) -> list[Note]:
    return [(mark, *note) for note, mark in self._marks.items()]


def choose_format(format: str | None, out: str | None) -> str:
  """Checks a page's flags and returns a key of FORMATS.

  Args:
    format: such a key; None: as the file ends, or text.
    out: the file; None for the terminal.
  """
  if format not in (None, *FORMATS):
    raise UserError(
      f"--format={format} is not written here{did_you_mean(format, FORMATS)}"
    )
  if out is None:
    return format or "text"
  file = check_output(out, "--out", _OURS, suffixes=[*_SUFFIXES])
  return format or _SUFFIXES[file.suffix.lower()]


def write(page: Page, format: str, out: str | None) -> str:
  """Writes a page to a file, or returns it for the terminal."""
  text = FORMATS[format](page)
  if not out:
    return text
  file = Path(out).expanduser()
  write_text(file, f"{text}\n")
  return f"{file}: {page.title}"


def to_text(page: Page) -> str:
  parts = [page.title, *map(_wrap, page.intro)]
  for table in page.tables:
    caption = [table.caption] if table.caption else []
    parts.append("\n".join([*caption, *_lines(table)]))
  for heading, notes in page.notes.items():
    parts.append("\n".join([heading, *map(_note, notes)]))
  return "\n\n".join(parts)


def _wrap(text: str, **indents) -> str:
  return textwrap.fill(
    text, _WIDTH, break_on_hyphens=False, break_long_words=False, **indents
  )


def _note(note: Note) -> str:
  mark, text, commands = note
  indent = "      "
  first = _wrap(text, initial_indent=f"{mark:>4}  ", subsequent_indent=indent)
  return "\n".join([first, *(f"{indent}  {line}" for line in commands)])


def _plain(cell: Cell) -> str:
  """Formats a cell as text, with its footnote's mark."""
  if not cell.mark:
    return cell.text
  return f"{cell.text} {cell.mark}" if cell.text else f"({cell.mark})"


def _lines(table: Table) -> list[str]:
  """Lays out column heads, a rule, and the rows."""
  names = [name for _, name in table.columns]
  rows = [
    row if isinstance(row, str) else [*map(_plain, row)] for row in table.rows
  ]
  cells = [row for row in rows if isinstance(row, list)]
  indent = "  " if len(cells) < len(rows) else ""
  columns = zip(names, *cells, strict=True)
  widths = [max(map(len, column)) for column in columns]
  widths[0] += len(indent)
  heads = []
  for group, columns in table.groups:
    wide = sum(widths[i] for i in columns) + len(_GAP) * (len(columns) - 1)
    # The last column of a group widens for a longer head.
    widths[columns[-1]] += max(0, len(group) - wide)
    heads.append(group.center(wide))

  def line(texts: Sequence[str]) -> str:
    return _GAP.join(align(texts, widths)).rstrip()

  lines = [line(names), "-" * (sum(widths) + len(_GAP) * (len(widths) - 1))]
  if any(group for group, _ in table.columns):
    lines.insert(0, _GAP.join(heads).rstrip())
  return lines + [
    row if isinstance(row, str) else line([f"{indent}{row[0]}", *row[1:]])
    for row in rows
  ]


def to_markdown(page: Page) -> str:
  parts = [f"# {page.title}", *page.intro]
  for table in page.tables:
    parts += [f"**{table.caption}**"] if table.caption else []
    heads = [" ".join(filter(None, column)) for column in table.columns]
    rows = [
      [f"*{row}*", *[""] * (len(heads) - 1)]
      if isinstance(row, str)
      else [_escape(_plain(cell)) for cell in row]
      for row in table.rows
    ]
    parts.append(render_markdown(heads, rows))
  for heading, notes in page.notes.items():
    parts.append(f"## {heading}")
    for mark, text, commands in notes:
      lines = [f"- **{_escape(mark)}** {text}"]
      parts.append("\n".join([*lines, *(f"  `{x}`" for x in commands)]))
  return "\n\n".join(parts)


def _escape(text: str) -> str:
  """Escapes asterisks for Markdown."""
  return text.replace("*", r"\*")


def to_html(page: Page) -> str:
  template = TEMPLATES.get_template("table.html")
  return template.render(title=page.title, page=page)


FORMATS = {"text": to_text, "markdown": to_markdown, "html": to_html}
_SUFFIXES = {".txt": "text", ".md": "markdown", ".html": "html", ".htm": "html"}
