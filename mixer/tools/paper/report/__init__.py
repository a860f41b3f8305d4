# SPDX-License-Identifier: Apache-2.0
"""A run as one page of HTML, which needs nothing beside it and no network.

  python -m mixer paper report --workdir=runs/digits

The page has the run's result, what the paper reports beside it, curves, recipe,
throughput, provenance, and pictures of what the run has learned.
"""

import datetime
import os
from pathlib import Path

from mixer.errors import UserError
from mixer.storage import atomic_write, check_writable, storage_errors
from mixer.tools.paper import html
from mixer.tools.paper.report import markup, recipe, results, weights
from mixer.tools.paper.report.published import published_results
from mixer.tools.paper.report.record import Record, read


def write(
  workdir: str | os.PathLike, out: str | os.PathLike | None = None
) -> str:
  """Writes the report of a run that is done, going on or broken off.

  Args:
    workdir: the run's folder.
    out: the page's file; None: report.html in the run's folder.

  Returns:
    What it wrote.

  Raises:
    UserError: the folder is no run's, a file in it is damaged, or the page
      cannot be written.
  """
  file = Path(out).expanduser() if out else None
  if file:
    if file.suffix.lower() not in (".html", ".htm"):
      raise UserError(f"--out={out} must end in .html, which it is.")
    check_writable(out, "out")
  record = read(workdir)
  file = file or record.folder / "report.html"
  page = render(record)
  with storage_errors(file), atomic_write(file) as aside:
    aside.write_text(page, encoding="utf-8")
  return f"Report of {record.folder}, {_state(record)}: {file}"


def render(record: Record) -> str:
  """The page."""
  published = published_results(record)
  sections = [
    results.headline(record, published),
    results.training(record),
    results.evaluations(record, published),
    results.skipped(record),
    weights.pictures(record),
    results.speed(record),
    recipe.recipe(record),
    recipe.provenance(record),
  ]
  now = datetime.datetime.now(datetime.UTC)
  footer = f"{record.folder}, as it was on {now:%Y-%m-%d %H:%M} UTC"
  kind = "done" if record.is_done else "going"
  return html.render(
    "report/page.html",
    title=f"{record.name}: report",
    name=record.name,
    lead=_lead(record),
    state=_state(record),
    kind=kind,
    sections=markup.join([part for part in sections if part]),
    footer=footer,
  )


def _state(record: Record) -> str:
  of_total = f" of {record.total_steps:,}" if record.total_steps else ""
  if record.is_done:
    return f"done, {record.step:,} steps"
  share = f" ({record.step / record.total_steps:.0%})" if of_total else ""
  return f"not done: step {record.step:,}{of_total}{share}"


def _lead(record: Record) -> str:
  """Model, data, length, in a sentence's parts."""
  config, data = record.config, record.config["data"]
  parts = [config["model"]["name"]]
  if record.parameters:
    parts.append(f"{record.parameters:,} parameters")
  examples = f", {data['examples']:,} images" if data["examples"] else ""
  parts.append(f"{data['name']} ({data['split']}{examples})")
  parts.append(f"batch {config['batch']:,}")
  if config["init"]:
    parts.append(f"from {config['init']}")
  return " · ".join(parts)
