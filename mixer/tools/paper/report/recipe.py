# SPDX-License-Identifier: Apache-2.0
"""What was asked for, and by what code and devices: recipe, provenance."""

import json
from collections.abc import Iterator

from mixer.config import EVALUATORS, default, evaluator
from mixer.config_check import to_dict
from mixer.tools.paper.report import markup
from mixer.tools.paper.report.markup import Markup
from mixer.tools.paper.report.record import Record


def recipe(record: Record) -> Markup:
  """What the config sets, and folded the whole of it, with that marked."""
  rows, marked = [], []
  for key, value, usual in _values(record.config):
    if value != usual:
      marked.append(len(rows))
    rows.append((key, value, usual))
  said = (
    "What the config sets otherwise than the schema's defaults; all else is as "
    "there."
  )
  own = [_row(*rows[i]) for i in marked]
  every = [_row(*row) for row in rows]
  return markup.section(
    "Recipe",
    markup.element("p", said, "note"),
    markup.table(("key", "value", "default"), own, marked=range(len(own))),
    markup.folded(
      f"All {len(rows)} keys",
      markup.table(("key", "value", "default"), every, marked=marked),
    ),
  )


def _row(key: str, value: object, usual: object) -> tuple[Markup, ...]:
  return (
    markup.element("code", key),
    markup.element("code", _shown(value), "value"),
    markup.element("code", _shown(usual), "soft"),
  )


def _shown(value: object) -> str:
  return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _values(config: dict) -> Iterator[tuple[str, object, object]]:
  """Yields every key with its value and its default, evaluators last."""
  usual = to_dict(default())
  yield from _beside(config, usual, "", but=("evals",))
  for name, options in config["evals"].items():
    kind = options.get("type")
    usual = to_dict(evaluator(kind)) if kind in EVALUATORS else {}
    yield from _beside(options, usual, f"evals.{name}.")


def _beside(
  config: dict, usual: dict, path: str, but: tuple[str, ...] = ()
) -> Iterator[tuple[str, object, object]]:
  for key, value in sorted(
    # A part's own keys come before those of the parts in it.
    config.items(),
    key=lambda item: (isinstance(item[1], dict), item[0]),
  ):
    if key in but:
      continue
    other = usual.get(key)
    if isinstance(value, dict):
      other = other if isinstance(other, dict) else {}
      yield from _beside(value, other, f"{path}{key}.")
    else:
      yield f"{path}{key}", value, other


def provenance(record: Record) -> Markup:
  """A row for each start of the run, and the versions of the last."""
  if not record.starts:
    said = f"{record.folder.name} has no provenance.json: nothing is known."
    return markup.section("Provenance", markup.element("p", said, "note"))
  rows = []
  for start in record.starts:
    commit = str(start.get("git_commit") or "no repository")[:12]
    if start.get("git_changes"):
      commit += ", with changes"
    rows.append(
      (
        str(start.get("date", "?")).replace("T", " ")[:16],
        f"{start.get('from_step', 0):,}",
        markup.element("code", commit),
        f"{start.get('devices', '?')} x {start.get('device_kind', '?')}",
        f"{start.get('hosts', '?')}",
      )
    )
  last = record.starts[-1]
  versions = {"python": last.get("python"), **last.get("packages", {})}
  command = " ".join(map(str, last.get("command", [])))
  more = [(name, version) for name, version in versions.items() if version]
  head = ("started (UTC)", "from step", "commit", "devices", "hosts")
  return markup.section(
    "Provenance",
    markup.table(head, rows, numbers=(1, 4)),
    markup.folded(
      "Command and versions of the last start",
      markup.join(
        [
          markup.element("p", markup.element("code", command)),
          markup.table(("package", "version"), more),
        ]
      ),
    ),
  )
