# SPDX-License-Identifier: Apache-2.0
"""A page as one HTML file, readable on a telephone: wide tables scroll."""

from collections.abc import Iterator
from html import escape

from mixer.tools.paper.tables.page import Cell, Note, Page, Table, groups

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body {
  font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem;
  padding: 1rem;
}
h1 { font-size: 1.4rem; line-height: 1.25; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
.scrolls { overflow-x: auto; margin: 1rem 0; }
table {
  border-collapse: collapse; font-size: 0.9rem; white-space: nowrap;
  font-variant-numeric: tabular-nums;
}
caption { text-align: left; font-weight: 600; padding-bottom: 0.4rem; }
th, td { padding: 0.2rem 0.55rem; text-align: right; }
th { font-weight: 600; }
.left { text-align: left; }
.starts { border-left: 1px solid var(--line); }
th.over { text-align: center; }
thead { border-bottom: 2px solid var(--line); }
th.block {
  text-align: left; border-top: 1px solid var(--line); background: var(--soft);
}
td:first-child, th.left:first-child {
  position: sticky; left: 0; background: Canvas;
}
tbody tr:hover td { background: var(--soft); }
.notes { padding-left: 0; list-style: none; }
.notes li {
  margin: 0.6rem 0; padding-left: 2.2rem; position: relative;
  overflow-wrap: anywhere;
}
.notes .mark { position: absolute; left: 0; font-weight: 600; }
pre {
  margin: 0.3rem 0; overflow-x: auto; background: var(--soft); padding: 0.4rem;
  font-size: 0.85rem;
}
a { color: inherit; }
.missing { opacity: 0.6; text-decoration: none; }
sup { line-height: 0; }
""".strip()


def to_html(page: Page) -> str:
  """One file that needs nothing beside it."""
  title = escape(page.title)
  lines = [
    "<!doctype html>",
    '<html lang="en">',
    '<meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    f"<title>{title}</title>",
    f"<style>\n{_STYLE}\n</style>",
    f"<h1>{title}</h1>",
    *(f"<p>{escape(text)}</p>" for text in page.intro),
  ]
  for table in page.tables:
    lines += _table(table)
  for heading, notes in page.notes.items():
    lines.append(f"<h2>{escape(heading)}</h2>")
    lines += ['<ul class="notes">', *map(_note, notes), "</ul>"]
  return "\n".join([*lines, "</html>"])


def _table(table: Table) -> Iterator[str]:
  starts, column = set(), 0
  for group, count in groups(table.columns):
    if group:
      starts.add(column)
    column += count

  def classes(i: int) -> str:
    names = ["left"] * (i in table.left) + ["starts"] * (i in starts)
    return f' class="{" ".join(names)}"' if names else ""

  # A table that scrolls must be reached by the keyboard as well.
  yield '<div class="scrolls" tabindex="0">\n<table>'
  if table.caption:
    yield f"<caption>{escape(table.caption)}</caption>"
  yield "<thead>"
  if any(group for group, _ in table.columns):
    cells, column = [], 0
    for group, count in groups(table.columns):
      kind = ' class="over starts"' if group else ""
      cells.append(f'<th{kind} colspan="{count}">{escape(group)}</th>')
      column += count
    yield f"<tr>{''.join(cells)}</tr>"
  names = (
    f"<th{classes(i)}>{escape(name)}</th>"
    for i, (_, name) in enumerate(table.columns)
  )
  yield f"<tr>{''.join(names)}</tr>\n</thead>\n<tbody>"
  for block in table.blocks:
    if block.heading:
      yield (
        f'<tr><th class="block" colspan="{len(table.columns)}">'
        f"{escape(block.heading)}</th></tr>"
      )
    for row in block.rows:
      cells = (f"<td{classes(i)}>{_cell(x)}</td>" for i, x in enumerate(row))
      yield f"<tr>{''.join(cells)}</tr>"
  yield "</tbody>\n</table>\n</div>"


def _cell(cell: Cell) -> str:
  if not cell.mark:
    return escape(cell.text)
  mark = escape(cell.mark)
  if not cell.text:
    return f'<a class="missing" href="#note-{mark}">({mark})</a>'
  return f'{escape(cell.text)}<sup><a href="#note-{mark}">{mark}</a></sup>'


def _note(note: Note) -> str:
  mark = escape(note.mark)
  commands = "".join(f"<pre>{escape(line)}</pre>" for line in note.commands)
  return (
    f'<li id="note-{mark}"><span class="mark">{mark}</span> '
    f"{escape(note.text)}{commands}</li>"
  )
