# SPDX-License-Identifier: Apache-2.0
"""What a run has come to: its headline, its evaluations, its speed."""

import statistics
from collections.abc import Mapping

from mixer.tools.paper.report import charts, markup
from mixer.tools.paper.report.markup import Markup
from mixer.tools.paper.report.published import Published
from mixer.tools.paper.report.record import Record

_SHOWN = 10  # skipped updates that are listed


def headline(record: Record, published: Mapping[str, Published]) -> Markup:
  """The result that the run is about, and a few numbers beside it.

  Args:
    record: of the run.
    published: result -> what the paper, or whom the config names, reports.
  """
  tiles = []
  if name := _main_result(record, published):
    steps, values = record.series(name)
    label = f"{_short(name)}, step {steps[-1]:,}"
    if best := _best(name, steps, values):
      label += f"; best: {best.replace(' at ', ' at step ')}"
    if other := published.get(name):
      label += f"; {other.source}: {markup.result(name, other.value)}"
    tiles.append((label, markup.result(name, values[-1])))
  steps, losses = record.series("train/loss")
  if steps:
    tiles.append((f"training loss, step {steps[-1]:,}", f"{losses[-1]:.4g}"))
  if rates := record.series("images_per_second")[1]:
    tiles.append(("images per second", f"{statistics.median(rates):,.0f}"))
  if record.seconds:
    took = markup.duration(record.seconds)
    tiles.append((f"for {record.step:,} updates", took))
  tiles.append(("updates skipped", f"{_skipped_number(record):,}"))
  return Markup(
    '<div class="tiles">'
    + "".join(
      f'<div class="tile{" first" if i == 0 and name else ""}">'
      f"{markup.element('div', value, 'value')}"
      f"{markup.element('div', label, 'label')}</div>"
      for i, (label, value) in enumerate(tiles)
    )
    + "</div>"
  )


def _main_result(record: Record, published: Mapping[str, Published]) -> str:
  """One that others report, or that the config is after; "" for none."""
  names = [name for name in record.evaluation_names if record.series(name)[0]]
  wanted = [
    *published,
    record.config["checkpoint"]["best"],
    record.config["sweep"]["report"],
    *(name for name in names if markup.is_share(name)),
  ]
  return next((name for name in wanted if name in names), "")


def _short(name: str) -> str:
  """Such as "test accuracy" of "eval/test/accuracy"."""
  return name.removeprefix("eval/").replace("/", " ").replace("_", " ")


def training(record: Record) -> Markup:
  """The curves."""
  drawn = charts.curves(record)
  if not drawn:
    said = markup.element("p", "The log has no rows yet.", "note")
    return markup.section("Curves", said)
  return markup.section(
    "Curves", Markup(f'<div class="charts">{markup.join(drawn)}</div>')
  )


def evaluations(record: Record, published: Mapping[str, Published]) -> Markup:
  """A row for each result: the last, the best, and what others report."""
  rows = []
  beside = any(name in published for name in record.evaluation_names)
  for name in record.evaluation_names:
    steps, values = record.series(name)
    if not steps:
      rows.append([_short(name), "not finite", "", *([""] * beside)])
      continue
    row = [
      _short(name),
      f"{markup.result(name, values[-1])} at {steps[-1]:,}",
      _best(name, steps, values),
    ]
    if other := published.get(name):
      off = 100 * (values[-1] - other.value)
      row.append(
        f"{markup.result(name, other.value)}, {other.source} "
        f"(here {off:+.2f} points)"
      )
    elif beside:
      row.append("")
    rows.append(row)
  if not rows:
    why = (
      "The log has no evaluation yet."
      if record.config["evals"]
      else "The config has no evaluators: none was made."
    )
    return markup.section("Evaluations", markup.element("p", why, "note"))
  head = ["result", "last, at step", "best, at step"]
  head += ["published"] * beside
  return markup.section(
    "Evaluations",
    markup.table(head, rows, numbers=range(1, len(head))),
  )


def _best(name: str, steps: list[int], values: list[float]) -> str:
  if name.endswith(("_std", "left_out")) or len(steps) < 2:
    return ""
  choose = max if markup.is_share(name) else min
  best = choose(values)
  return f"{markup.result(name, best)} at {steps[values.index(best)]:,}"


def speed(record: Record) -> Markup:
  """Images per second and what they make of the devices."""
  rows = []
  for name, label, form in (
    ("images_per_second", "images per second", "{:,.0f}"),
    ("images_per_second_per_device", "of these per device", "{:,.0f}"),
    ("mfu", "share of the devices' peak (MFU)", "{:.1%}"),
    ("data_wait", "time spent waiting for data", "{:.1%}"),
  ):
    if values := record.series(name)[1]:
      median = statistics.median(values)
      rows.append([label, form.format(median), form.format(values[-1])])
  if not rows:
    return Markup("")
  if not record.series("mfu")[0]:
    rows.append(["share of the devices' peak (MFU)", "peak not known", ""])
  head = ["", "median of rows", "last row"]
  return markup.section(
    "Throughput",
    Markup(
      '<div class="charts">'
      f"{markup.table(head, rows, numbers=(1, 2))}"
      f"{charts.throughput(record)}</div>"
    ),
  )


def skipped(record: Record) -> Markup:
  """Updates without effect; nothing where there were none."""
  number = _skipped_number(record)
  if not number:
    return Markup("")
  rows = [
    [
      f"{each.get('step', '?')}",
      f"{each.get('loss', '?')}",
      f"{each.get('gradient_norm', '?')}",
      ", ".join(map(str, each.get("examples", [])[:5])) + ", ...",
    ]
    for each in record.skipped[:_SHOWN]
  ]
  said = (
    f"{number:,} updates had no effect, because their loss or gradients were "
    "not finite."
  )
  if len(record.skipped) > _SHOWN:
    said += f" The first {_SHOWN} of skipped.jsonl:"
  parts = [markup.element("p", said, "warn")]
  if rows:
    head = ["update", "loss", "gradient norm", "examples"]
    parts.append(markup.table(head, rows))
  return markup.section("Skipped updates", *parts)


def _skipped_number(record: Record) -> int:
  logged = record.series("train/skipped")[1]
  return max(int(logged[-1]) if logged else 0, len(record.skipped))
