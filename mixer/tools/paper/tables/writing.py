# SPDX-License-Identifier: Apache-2.0
"""A page as text for a terminal, as Markdown, as HTML."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from mixer.atomic_write import atomic_write
from mixer.errors import UserError, did_you_mean
from mixer.tools.paper.tables import html_page
from mixer.tools.paper.tables.page import Block, Cell, Note, Page, Table, groups
from mixer.tools.table import render

_WIDTH = 100
_GAP = "  "


def write(page: Page, format: str | None, out: str | None) -> str:
  """Writes a page to a file, or returns it for the terminal.

  Args:
    page: to write.
    format: "text", "markdown" or "html"; None: as the file's name ends.
    out: the file; None for the terminal.

  Returns:
    What to print.

  Raises:
    UserError: another format, or the file cannot be written.
  """
  text = FORMATS[choose_format(format, out)](page)
  if not out:
    return text
  file = Path(out).expanduser()
  file.parent.mkdir(parents=True, exist_ok=True)
  with atomic_write(file) as aside:
    aside.write_text(f"{text}\n")
  return f"{file}: {page.title}"


def choose_format(format: str | None, out: str | None) -> str:
  """The format that the flags ask for; see `write`.

  Raises:
    UserError: pages are not written in it, or the flags disagree.
  """
  if format is not None and format not in FORMATS:
    raise UserError(
      f"--format={format} is not written here{did_you_mean(format, FORMATS)}"
    )
  if not out:
    return format or "text"
  by_name = _SUFFIXES.get(Path(out).suffix.lower())
  if by_name is None:
    raise UserError(
      f"--out={out} does not say what to write: end it in "
      f"{', '.join(_SUFFIXES)}."
    )
  if format not in (None, by_name):
    raise UserError(
      f"--out={out} is {by_name} by its ending, and --format={format}: leave "
      "one of them out."
    )
  return by_name


def to_text(page: Page) -> str:
  parts = [page.title, *(_wrap(text) for text in page.intro)]
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
  indent = "      "
  first = f"{note.mark:>4}  "
  lines = [_wrap(note.text, initial_indent=first, subsequent_indent=indent)]
  lines += [f"{indent}  {command}" for command in note.commands]
  return "\n".join(lines)


def _plain(cell: Cell) -> str:
  """Numbers stand for what is missing, letters for what was measured."""
  if not cell.mark:
    return cell.text
  return f"{cell.text} {cell.mark}" if cell.text else f"({cell.mark})"


def _lines(table: Table) -> list[str]:
  """Column heads, a rule, and the blocks."""
  indent = "  " if any(block.heading for block in table.blocks) else ""
  rows = [
    [f"{indent if i == 0 else ''}{_plain(cell)}" for i, cell in enumerate(row)]
    for block in table.blocks
    for row in block.rows
  ]
  names = [name for _, name in table.columns]
  widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
  spans, column = [], 0
  for group, count in groups(table.columns):
    of_group = range(column, column + count)
    wide = sum(widths[i] for i in of_group) + len(_GAP) * (count - 1)
    # Of a head that is wider than its columns, the last one takes the rest.
    widths[of_group[-1]] += max(0, len(group) - wide)
    spans.append((group, max(wide, len(group))))
    column += count

  def line(texts: Sequence[str]) -> str:
    return _GAP.join(
      text.ljust(width) if i in table.left else text.rjust(width)
      for i, (text, width) in enumerate(zip(texts, widths, strict=True))
    ).rstrip()

  heads = [line(names)]
  if any(group for group, _ in spans):
    heads.insert(
      0, _GAP.join(_over(group, width) for group, width in spans).rstrip()
    )
  rule = "-" * (sum(widths) + len(_GAP) * (len(widths) - 1))
  body, made = [], iter(rows)
  for block in table.blocks:
    body += [block.heading] if block.heading else []
    body += [line(next(made)) for _ in block.rows]
  return [*heads, rule, *body]


def _over(group: str, width: int) -> str:
  """A head in the middle over its columns."""
  return group.center(width) if group else " " * width


def to_markdown(page: Page) -> str:
  parts = [f"# {page.title}", *page.intro]
  for table in page.tables:
    parts += [f"**{table.caption}**"] if table.caption else []
    parts.append(render(_heads(table), _markdown_rows(table.blocks)))
  for heading, notes in page.notes.items():
    parts.append(f"## {heading}")
    parts += [
      "\n".join(
        [f"- **{_escaped(note.mark)}** {note.text}"]
        + [f"  `{command}`" for command in note.commands]
      )
      for note in notes
    ]
  return "\n\n".join(parts)


def _heads(table: Table) -> list[str]:
  return [" ".join(filter(None, column)) for column in table.columns]


def _markdown_rows(blocks: Sequence[Block]) -> list[list[str]]:
  rows = []
  for block in blocks:
    if block.heading:
      rest = [""] * (len(block.rows[0]) - 1)
      rows.append([f"*{block.heading}*", *rest])
    rows += [[_escaped(_plain(cell)) for cell in row] for row in block.rows]
  return rows


def _escaped(text: str) -> str:
  """Asterisks that are to be seen."""
  return text.replace("*", r"\*")


FORMATS: dict[str, Callable[[Page], str]] = {
  "text": to_text,
  "markdown": to_markdown,
  "html": html_page.to_html,
}
_SUFFIXES = {
  ".txt": "text",
  ".md": "markdown",
  ".html": "html",
  ".htm": "html",
}
