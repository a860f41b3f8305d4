# SPDX-License-Identifier: Apache-2.0
"""Parts of a page: numbers for people, tables, pictures. All text is escaped.

`Markup` is text that is HTML already; whatever else a cell holds is escaped.
"""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape
from matplotlib import image


def text(content: object) -> Markup:
  """Escapes what is not HTML already."""
  return escape(content)


def element(tag: str, content: object, kind: str = "") -> Markup:
  """Puts content into an element of a class, "" for none."""
  of_kind = f' class="{kind}"' if kind else ""
  return Markup(f"<{tag}{of_kind}>{text(content)}</{tag}>")


def join(parts: Sequence[object], between: str = "\n") -> Markup:
  return Markup(between.join(map(text, parts)))


def section(title: str, *parts: object) -> Markup:
  return Markup(f"<section>\n{element('h2', title)}\n{join(parts)}\n</section>")


def table(
  head: Sequence[str],
  rows: Sequence[Sequence[object]],
  *,
  numbers: Sequence[int] = (),
  marked: Sequence[int] = (),
) -> Markup:
  """Makes a table in a card, which scrolls by itself where it is too wide.

  Args:
    head: of the columns.
    rows: of cells.
    numbers: columns to put right.
    marked: rows to highlight, by number.
  """

  kinds = [' class="number"' if i in numbers else "" for i in range(len(head))]
  # A phone has no room for the head: each cell brings its name along.
  names = ["", *(f' data-name="{text(name)}"' for name in head[1:])]

  def cells(row: Sequence[object]) -> str:
    return "".join(
      f"<{tag}{kind}{name}>{text(cell)}</{tag}>"
      for tag, kind, name, cell in zip(
        ["th", *["td"] * len(row)], kinds, names, row, strict=False
      )
    )

  body = "\n".join(
    f"<tr{' class=set' if i in marked else ''}>{cells(row)}</tr>"
    for i, row in enumerate(rows)
  )
  heads = "".join(
    f"<th{kind}>{text(name)}</th>"
    for kind, name in zip(kinds, head, strict=True)
  )
  return Markup(
    '<div class="card scroll stacks"><table>\n'
    f"<thead><tr>{heads}</tr></thead>\n"
    f"<tbody>\n{body}\n</tbody></table></div>"
  )


def folded(summary: str, content: Markup) -> Markup:
  """What is shown once it is asked for."""
  return Markup(
    f"<details>{element('summary', summary)}\n{content}\n</details>"
  )


def picture(pixels: np.ndarray, description: str) -> Markup:
  """An image [h, w, 3] of 0 to 1, in the page itself."""
  file = io.BytesIO()
  image.imsave(file, np.clip(pixels, 0, 1), format="png")
  encoded = base64.b64encode(file.getvalue()).decode()
  h, w, _ = pixels.shape
  return Markup(
    f'<img width="{w}" height="{h}" alt="{text(description)}" '
    f'src="data:image/png;base64,{encoded}">'
  )


def percent(share: float) -> str:
  return f"{100 * share:.2f} %"


def result(name: str, value: float) -> str:
  """A result of an evaluator, as its name asks for."""
  if not math.isfinite(value):
    return "not finite"
  if is_share(name):
    return percent(value)
  return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def is_share(name: str) -> bool:
  """Whether a result is an accuracy, 0 to 1, or the deviation of one."""
  last = name.rpartition("/")[2]
  return last.startswith("accuracy") or "shot" in last


def duration(seconds: float) -> str:
  """Such as "1 min 25 s", "3.2 h" or "4.1 days"."""
  if seconds < 60:
    return f"{seconds:.0f} s"
  if seconds < 3600:
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
  if seconds < 48 * 3600:
    return f"{seconds / 3600:.1f} h"
  return f"{seconds / 86400:.1f} days"
