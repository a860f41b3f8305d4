# SPDX-License-Identifier: Apache-2.0
"""Tables 2 and 3: the paper's numbers, and those measured here."""

import itertools
import string
from collections.abc import Sequence
from pathlib import Path

from mixer.tools.paper.numbers import SPEED_RATIOS, TABLE_2, TABLE_3, Row
from mixer.tools.paper.protocols import explain_empty
from mixer.tools.paper.render import Cell, Footnotes, Note, Page, Table
from mixer.tools.paper.results_store import (
  CORE_DAYS,
  RUN,
  UNCHECKED,
  Device,
  Throughput,
  fastest,
  read_devices,
  read_row,
  speed_ratio,
)

_TITLES = {
  2: "Table 2: the best models, Mixers fine-tuned at 448 px",
  3: "Table 3: all models, by data of pre-training",
}
_INTRO = {
  2: "Accuracies in per cent; the paper's are means of three fine-tuning runs, "
  "deviation below 0.1. Mixers are evaluated on images squeezed to squares: "
  "table 3 has other numbers for Mixer-L/16 at 448 px, where evaluation keeps "
  "the aspect ratio.",
  3: "Accuracies in per cent; the paper's are means of three fine-tuning runs, "
  "deviation below 0.15. Its footnote 2 quotes Mixer-L/16 of ImageNet-21k with "
  "82.84 and 420 img/s/core.",
}
_UNITS = (
  "Images/s: in the paper of one TPUv3 core, here of the device that the note "
  "names. Core-days are of TPUv3, in thousands; device-days of the devices "
  "that the note names."
)
_HEADINGS = {
  (2, "i21k"): "ImageNet-21k (public)",
  (2, "JFT-300M"): "JFT-300M (proprietary)",
  (2, "weak labels"): "Unlabelled or weakly labelled data (proprietary)",
  (3, "i1k"): "ImageNet (with extra regularisation)",
  (3, "i21k"): "ImageNet-21k (with extra regularisation)",
  (3, "JFT-300M"): "JFT-300M",
}
# Cell -> head of its columns.
_ACCURACIES = {
  2: {"imagenet": "ImNet", "real": "ReaL", "average5": "Avg 5", "vtab": "VTAB"},
  3: {"imagenet": "ImNet", "real": "ReaL", "average5": "Avg 5"},
}
_TPU_V3 = "TPU v3"  # each device of this kind is a core
# a, b, ... z, aa, ab, ...
_LETTERS = list(string.ascii_lowercase)
_LETTERS += map("".join, itertools.product(_LETTERS, repeat=2))


def page(number: int, results: Path) -> Page:
  """Returns table 2 or 3 with what the folder of results has."""
  devices = read_devices(results)
  missing = Footnotes(map(str, itertools.count(1)))
  measured = Footnotes(_LETTERS)
  columns = [("", "model")]
  columns += [("", "px"), ("", "epochs")] if number == 3 else []
  for head in (*_ACCURACIES[number].values(), "images/s"):
    columns += [(head, "paper"), (head, "here")]
  columns += [("core-days", "paper"), ("device-days", "here")]
  rows = []
  table = TABLE_2 if number == 2 else TABLE_3
  for data, of_data in itertools.groupby(table, lambda row: row.data):
    rows.append(_HEADINGS[number, data])
    for row in of_data:
      here = _measured_texts(row, read_row(results, row), devices)
      rows.append(_cells(row, here, missing, measured))
  tables = [Table(columns, rows)]
  if number == 3:
    tables.append(_ratios(devices, measured))
  notes = {
    "The paper's marks": _paper_marks(number),
    "Measured here": measured.notes,
    "What would fill the empty cells": missing.notes,
  }
  return Page(
    f"{_TITLES[number]} (MLP-Mixer, arXiv 2105.01601)",
    [_INTRO[number], _UNITS],
    tables,
    {heading: each for heading, each in notes.items() if each},
  )


def _cells(
  row: Row,
  here: dict[str, tuple[str, str]],
  missing: Footnotes,
  measured: Footnotes,
) -> list[Cell]:
  """Makes a row of the paper's and the measured numbers."""
  cells = [Cell(f"{row.model} pc" if row.private else row.model)]
  if row.table == 3:
    cells += [Cell(str(row.resolution)), Cell(str(row.epochs))]
  paper = _paper_texts(row)
  for column in (*_ACCURACIES[row.table], "images_per_second", CORE_DAYS):
    text, mark = "", ""
    if column in here:
      text, note = here[column]
      mark = measured.mark(note)
    elif column in paper:
      mark = missing.mark(*explain_empty(row, column))
    cells += [Cell(paper.get(column, "-")), Cell(text, mark)]
  return cells


def _paper_texts(row: Row) -> dict[str, str]:
  """Formats the paper's numbers, by column, as it prints them."""
  formats = dict.fromkeys(_ACCURACIES[row.table], ".2f")
  formats["imagenet"] = f".{row.imagenet_decimals}f"
  formats["images_per_second"] = "d"
  texts = {
    column: format(value, spec)
    for column, spec in formats.items()
    if (value := getattr(row, column)) is not None
  }
  star = "*" if row.extrapolated else ""
  return texts | {CORE_DAYS: f"{row.thousand_core_days:.2f}k{star}"}


def _measured_texts(
  row: Row, cells: dict[str, tuple[dict, dict]], devices: Sequence[Device]
) -> dict[str, tuple[str, str]]:
  """Formats measured numbers, by column, with their footnotes."""
  texts = {}
  for name, (cell, record) in cells.items():
    if name == CORE_DAYS:
      days = cell["device_days"]
      texts[name] = f"{sum(days.values()):.3g}", _cost_note(days, record)
    else:
      texts[name] = f"{cell['value']:.2f}", accuracy_note(cell, record)
  if measured := fastest(devices, row.model, row.resolution):
    device, best = measured
    rate = best.images_per_second
    text = f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
    texts["images_per_second"] = text, _speed_note(device, {row.model: best})
  return texts


def accuracy_note(cell: dict, record: dict) -> str:
  """Names the runs, weights and file that a measured accuracy comes from."""
  runs = "one run" if cell["runs"] == 1 else f"mean of {cell['runs']} runs"
  if cell["deviation"] is not None:
    runs += f", deviation {cell['deviation']:.2f}"
  if source := record.get("upstream"):
    origin = source.get("published") or source["folder"]
    runs += f", fine-tuned from {origin}{_unchecked(source)}"
    if record["kind"] == RUN:
      runs += " at a learning rate not chosen on held-out images"
  if weights := record.get("weights"):
    runs = f"the published {weights['published']} without fine-tuning"
    runs += _unchecked(weights)
  return f"{runs}; {_origin(record)}"


def _unchecked(weights: dict) -> str:
  by_name = ", identified by its file's name, unchecked"
  return by_name if weights.get(UNCHECKED) else ""


def _cost_note(device_days: dict[str, float], record: dict) -> str:
  """Lists device-days by kind; only those of TPUv3 are core-days."""
  parts = []
  for kind, days in device_days.items():
    remark = "" if kind == _TPU_V3 else "not comparable with TPUv3 "
    parts.append(f"{days:.3g} device-days on {kind} ({remark}core-days)")
  return f"{' + '.join(parts)}, of updates only; {_origin(record)}"


def _origin(record: dict) -> str:
  """Names file, run, date, commit and devices."""
  commits = ", ".join(x[:7] for x in record["git_commits"]) or "unknown"
  changes = " with uncommitted changes" if record["git_changes"] else ""
  devices = ", ".join(record["devices"]) or "unknown devices"
  return (
    f"{record['file']}, {record['kind']} {record['folder']}, {record['date']}, "
    f"commit {commits}{changes}, {devices}."
  )


def _speed_note(device: Device, speeds: dict[str, Throughput]) -> str:
  """Names device, dtype and batches, file, dates and commits.

  speeds: throughputs in one dtype by the models' names.
  """
  batches, origins = [], {}
  for name, each in speeds.items():
    # Models with the same note share it.
    subject = f"{name} with " if len(speeds) > 1 else ""
    batches.append(f"{subject}{_batch(each)}")
    commit = (each.git_commit or "unknown")[:7]
    origins[f"{each.date}, commit {commit}"] = True
  return (
    f"images/s on {device.name} in {each.dtype}: {'; '.join(batches)}; "
    f"{device.file}, {' and '.join(origins)}."
  )


def _batch(best: Throughput) -> str:
  """Names the best batch size, and the others."""
  text = f"batch {best.batch} only"
  if len(best.batches) > 1:
    *some, last = map(str, best.batches)
    text = f"batch {best.batch}, the best of {', '.join(some)} and {last}"
  if best.beyond:
    batch, why = best.beyond
    text += f" (a larger one was not measured: {batch} {why})"
  return text


def _paper_marks(number: int) -> list[Note]:
  source = ", as table 3 says" if number == 2 else ""
  marks = [
    ("-", "The paper has no number.", ()),
    ("*", f"Extrapolated from runs on JFT-300M{source}.", ()),
    ("pc", "The authors of ViT told the paper's authors in private.", ()),
  ]
  return marks if number == 3 else marks[:2]


def _ratios(devices: Sequence[Device], measured: Footnotes) -> Table:
  """Compares Mixer's throughput with ViT's, by device and dtype."""
  columns = [(device, dtype) for device in devices for dtype in device.dtypes]
  rows = []
  for models, published in SPEED_RATIOS.items():
    mixer, vit, resolution = models
    texts = f"{mixer} : {vit}", str(resolution), f"{published:.2f}"
    rows.append([Cell(text) for text in texts])
    for device, dtype in columns:
      cell = Cell("-")
      if ratio := speed_ratio(device.best, models, dtype):
        pair = {x: device.best[x, resolution, dtype] for x in (mixer, vit)}
        cell = Cell(f"{ratio:.2f}", measured.mark(_speed_note(device, pair)))
      rows[-1].append(cell)
  heads = ["models", "px", "paper, TPUv3"]
  heads += [f"here, {device.name}, {dtype}" for device, dtype in columns]
  caption = "Images/s of Mixer as a multiple of ViT's"
  return Table([("", head) for head in heads], rows, caption)
