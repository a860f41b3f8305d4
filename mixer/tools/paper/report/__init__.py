# SPDX-License-Identifier: Apache-2.0
"""A run as one page of HTML, which needs no other file and no network.

  python -m mixer paper report --workdir=runs/digits

The page has the run's result next to the paper's, curves, mistakes, throughput,
recipe, provenance, and pictures of the learned weights. Mistakes are shown if
they were recorded: by an evaluator with `confusion=True`, or by
`python -m mixer predict --init=RUN FOLDER --out=RUN/predictions.csv`, where
FOLDER has a folder of images for each class.

This module collects the page's content; `page.html` lays it out.
"""

import datetime
import json
import math
import os
import re
import statistics
from collections.abc import Mapping

from flax.traverse_util import flatten_dict

from mixer import weights
from mixer.config import EVALUATORS, default, evaluator, is_lower_better
from mixer.config_check import to_dict
from mixer.errors import UserError, format_list
from mixer.storage import atomic_write, check_output
from mixer.tools.paper.figures import filters, token_units
from mixer.tools.paper.record import match_row
from mixer.tools.paper.render import TEMPLATES
from mixer.tools.paper.report import charts
from mixer.tools.paper.report.charts import Picture, Table
from mixer.tools.paper.report.mistakes import mistake_picture, read_mistakes
from mixer.tools.paper.run_reader import Run, find_folder, read_run
from mixer.training.goodput import read_goodput
from mixer.training.metrics import read_rows
from mixer.training.progress import format_seconds

# Beginning of such a page.
_OURS = rb'<!doctype html>.{,400}"light dark">\n<title>[^<]*: report</title>'
_MAX_SKIPPED = 10  # updates in the list
_MAX_MISTAKES = 16  # images
_MAX_UNITS = 128  # in the picture of a block
# Column of tables 2 and 3 -> evaluators of the recipes that measure it.
_EVALUATORS = {"imagenet": ("val", "test"), "real": ("real",)}
# An accuracy, 0 to 1, and its source, such as "paper, table 3".
Published = tuple[float, str]


def write(workdir: str | os.PathLike, out: str | None = None) -> str:
  """Writes the report of a run that is finished, in progress or broken off.

  Args:
    workdir: the run's folder.
    out: the page's file; None: report.html in the run's folder.

  Returns:
    The run's state and the page's file, for a sentence.

  Raises:
    UserError: the folder is not a run's, a file in it is damaged, or the page
      cannot be written.
  """
  if out is not None:
    out = check_output(out, "--out", _OURS, suffixes=[".html", ".htm"])
  folder = find_folder(workdir)
  if not (folder / "config.json").is_file():
    # A sweep's results, its final runs, are the first.
    runs = sorted(path.parent.name for path in folder.glob("*/config.json"))
    others = f", such as {format_list(runs, 5)} in it" if runs else ""
    raise UserError(
      f"{folder} is no run's folder, since it has no config.json: name one "
      f"that train.py was given as --workdir{others}."
    )
  run = read_run(folder)
  page, file = render(run), out or folder / "report.html"
  with atomic_write(file) as partial:
    partial.write_text(page, encoding="utf-8")
  return f"Report of {folder}, {_state(run)}: {file}"


def render(run: Run) -> str:
  """Returns the page's HTML."""
  published = _published(run)
  confusions, mistakes = read_mistakes(run)
  skipped = read_rows(run.folder, "skipped.jsonl")
  logged = run.series("train/skipped")[1]
  skipped_count = max(int(logged[-1]) if logged else 0, len(skipped))
  name = run.folder.resolve().name
  return TEMPLATES.get_template("report/page.html").render(
    title=f"{name}: report",
    name=name,
    run=run,
    state=_state(run),
    lead=_lead(run),
    main=_main_tile(run, published),
    tiles=[*_tiles(run), (f"{skipped_count:,}", "updates skipped")],
    curves=charts.curves(run),
    evaluations=_evaluations(run, published),
    confusions=confusions,
    mistakes=[mistake_picture(each) for each in mistakes[:_MAX_MISTAKES]],
    mistake_count=len(mistakes),
    skipped_count=skipped_count,
    skipped=skipped[:_MAX_SKIPPED],
    learned=_learned(run),
    how_units=token_units.HOW,
    how_filters=filters.HOW,
    speed=_speed(run),
    goodput=read_goodput(run.folder)[0],
    speed_chart=charts.draw(run, "Images per second", "images_per_second"),
    recipe=_recipe(run),
    date=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
  )


def _state(run: Run) -> str:
  if run.is_done:
    return f"done, {run.step:,} steps"
  state, total = f"not done: step {run.step:,}", run.total_steps
  return f"{state} of {total:,} ({run.step / total:.0%})" if total else state


def _lead(run: Run) -> str:
  """Returns model, data and batch in one line."""
  config, data = run.config, run.config["data"]
  examples = f", {data['examples']:,} images" if data["examples"] else ""
  file = run.folder / "parameters.txt"
  overview = file.read_text() if file.is_file() else ""
  parameters = re.search(r"^Total: ([\d,]+)", overview, re.MULTILINE)
  parts = [
    config["model"]["name"],
    f"{parameters[1]} parameters" if parameters else "",
    f"{data['name']} ({data['split']}{examples})",
    f"batch {config['batch']:,}",
    f"from {config['init']}" if config["init"] else "",
  ]
  return " · ".join(filter(None, parts))


def _published(run: Run) -> dict[str, Published]:
  """Returns published accuracies by result, such as "eval/val/accuracy".

  They are the paper's if the run is one of its rows, by its config; else those
  that the config's evaluators state.
  """
  published = {
    f"eval/{name}/accuracy": (options["published"], "by the config")
    for name, options in run.config["evals"].items()
    if options.get("published") is not None
  }
  row, cells = match_row(run) or (None, {})
  for cell, names in _EVALUATORS.items():
    if cell in cells and getattr(row, cell) is not None:
      number = getattr(row, cell) / 100, f"paper, table {row.table}"
      published |= {f"eval/{name}/accuracy": number for name in names}
  return published


def _main_tile(
  run: Run, published: Mapping[str, Published]
) -> tuple[str, str] | None:
  """Returns value and label of the run's main result.

  It is the first that is published, else the one that the config selects
  checkpoints or sweeps by, else any accuracy.
  """
  names = [name for name in run.evaluation_names if run.series(name)[0]]
  chosen = run.config["checkpoint"]["best"], run.config["sweep"]["report"]
  preferred = [*published, *chosen, *filter(_is_share, names)]
  name = next((name for name in preferred if name in names), None)
  if name is None:
    return None
  steps, values = run.series(name)
  label = f"{_words(name)}, step {steps[-1]:,}"
  if best := _best(name, steps, values):
    label += f"; best: {best.replace(' at ', ' at step ')}"
  if name in published:
    value, source = published[name]
    label += f"; {source}: {_result(name, value)}"
  return _result(name, values[-1]), label


def _tiles(run: Run) -> list[tuple[str, str]]:
  """Returns values and labels of further numbers."""
  tiles = []
  steps, losses = run.series("train/loss")
  if steps:
    label = f"training loss of the batch at step {steps[-1]:,}"
    tiles.append((f"{losses[-1]:.4g}", label))
  if rates := run.series("images_per_second")[1]:
    tiles.append((f"{statistics.median(rates):,.0f}", "images per second"))
    took = format_seconds(sum(seconds for _, seconds in run.update_seconds()))
    tiles.append((took, f"for {run.step:,} updates"))
  return tiles


def _evaluations(run: Run, published: Mapping[str, Published]) -> Table | None:
  """Returns a row for each result: the last, the best, the published one."""
  has_published = any(name in published for name in run.evaluation_names)
  rows = []
  for name in run.evaluation_names:
    steps, values = run.series(name)
    row = [_words(name), "not finite", ""]
    if steps:
      last = f"{_result(name, values[-1])} at {steps[-1]:,}"
      row[1:] = last, _best(name, steps, values)
    row += [""] * has_published
    if name in published and steps:
      value, source = published[name]
      here = f"here {100 * (values[-1] - value):+.2f} points"
      row[-1] = f"{_result(name, value)}, {source} ({here})"
    rows.append(row)
  head = ["result", "last, at step", "best, at step"]
  head += ["published"] * has_published
  return Table(head, rows, range(1, len(head))) if rows else None


def _learned(run: Run) -> dict:
  """Returns pictures of the weights, as far as the model has such parts."""
  units, stem, warning = [], [], ""
  try:
    if run.is_done:
      checkpoint = weights.read(run.folder)
      pixels, caption = filters.filter_mosaic(checkpoint, ratio=1.5)
      stem.append(Picture(charts.png_uri(pixels), "Stem", caption))
      for block in token_units.blocks_of(checkpoint.params)[:3]:
        pixels, caption = token_units.unit_mosaic(checkpoint, block, _MAX_UNITS)
        title = token_units.block_name(block)
        units.append(Picture(charts.png_uri(pixels), title, caption))
  except UserError as error:
    warning = error
  return {"units": units, "stem": stem, "warning": warning}


def _speed(run: Run) -> Table | None:
  """Returns throughput and utilisation: the median and the last row."""
  rows = []
  for name, label, form in (
    ("images_per_second", "images per second", "{:,.0f}"),
    ("images_per_second_per_device", "of these per device", "{:,.0f}"),
    ("mfu", "share of the devices' peak (MFU)", "{:.1%}"),
    ("data_wait", "time spent waiting for data", "{:.1%}"),
    ("memory/device_peak_gib", "fullest device's peak memory, GiB", "{:.2f}"),
  ):
    if values := run.series(name)[1]:
      median = statistics.median(values)
      rows.append([label, form.format(median), form.format(values[-1])])
    elif name == "mfu" and rows:
      rows.append([label, "peak not known", ""])
  head = ["", "median of rows", "last row"]
  return Table(head, rows, (1, 2)) if rows else None


def _recipe(run: Run) -> tuple[Table, Table]:
  """Returns the keys that differ from the defaults, and all keys."""
  usual = to_dict(default())
  usual["evals"] = {
    name: to_dict(evaluator(options["type"]))
    for name, options in run.config["evals"].items()
    if options.get("type") in EVALUATORS
  }
  config, usual = (flatten_dict(x, sep=".") for x in (run.config, usual))
  # A section's own keys come before its subsections.
  keys = sorted(config, key=lambda key: (key.rpartition(".")[0], key))
  rows = [[key, _json(config[key]), _json(usual.get(key))] for key in keys]
  marked = [i for i, k in enumerate(keys) if config[k] != usual.get(k)]
  table = Table(["key", "value", "default"], rows, marked=marked)
  changed = [rows[i] for i in marked]
  return table._replace(rows=changed, marked=range(len(changed))), table


def _words(name: str) -> str:
  """Turns "eval/test/accuracy" into "test accuracy"."""
  return name.removeprefix("eval/").replace("/", " ").replace("_", " ")


def _is_share(name: str) -> bool:
  """Returns whether a result is an accuracy, 0 to 1, or a deviation of one."""
  last = name.rpartition("/")[2]
  return last.startswith("accuracy") or "shot" in last


def _best(name: str, steps: list[int], values: list[float]) -> str:
  if name.endswith(("_std", "left_out")) or len(steps) < 2:
    return ""
  sign = -1 if is_lower_better(name) else 1
  # The newest of equals, as in Checkpoints.
  _, step, best = max(
    (sign * x, s, x) for s, x in zip(steps, values, strict=True)
  )
  return f"{_result(name, best)} at {step:,}"


def _result(name: str, value: float) -> str:
  if not math.isfinite(value):
    return "not finite"
  if _is_share(name):
    return f"{value:.2%}".replace("%", " %")
  return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _json(value: object) -> str:
  return "none" if value is None else json.dumps(value, ensure_ascii=False)
