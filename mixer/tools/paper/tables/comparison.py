# SPDX-License-Identifier: Apache-2.0
"""Tables 2 and 3: the paper's numbers, and what was measured here."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from mixer.tools.paper.measured import records, throughputs
from mixer.tools.paper.measured.throughputs import Device, Throughput
from mixer.tools.paper.numbers import (
  FOOTNOTE_2,
  SPEED_RATIOS,
  TABLE_2,
  TABLE_3,
  Row,
)
from mixer.tools.paper.tables import filling
from mixer.tools.paper.tables.page import (
  Block,
  Cell,
  Note,
  Notes,
  Page,
  Table,
  cells,
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
  "{} and {} img/s/core.".format(*FOOTNOTE_2["Mixer-L/16", "i21k", 224]),
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
_ACCURACIES = {
  2: ("imagenet", "real", "average5", "vtab"),
  3: ("imagenet", "real", "average5"),
}
_HEADS = {
  "imagenet": "ImNet",
  "real": "ReaL",
  "average5": "Avg 5",
  "vtab": "VTAB",
}


def page(number: int, results: Path) -> Page:
  """Table 2 or 3.

  Args:
    number: of the table.
    results: the folder of results.

  Raises:
    UserError: a file of results is damaged.
  """
  devices = throughputs.read(results)
  missing, measured = Notes("numbers"), Notes("letters")
  columns = [("", "model")]
  columns += [("", "px"), ("", "epochs")] if number == 3 else []
  for name in _ACCURACIES[number]:
    columns += [(_HEADS[name], "paper"), (_HEADS[name], "here")]
  columns += [("images/s", "paper"), ("images/s", "here")]
  columns += [("core-days", "paper"), ("device-days", "here")]
  rows = {2: TABLE_2, 3: TABLE_3}[number]
  blocks = tuple(
    Block(
      _HEADINGS[number, data],
      tuple(
        _row(row, records.read(results, row), devices, missing, measured)
        for row in of_data
      ),
    )
    for data, of_data in itertools.groupby(rows, lambda row: row.data)
  )
  notes = {"The paper's marks": _paper_marks(number)}
  if measured.all():
    notes["Measured here"] = measured.all()
  tables = [Table("", tuple(columns), blocks)]
  if number == 3:
    tables += _ratios(devices, measured)
    notes["Measured here"] = measured.all()
  notes["What would fill the empty cells"] = missing.all()
  return Page(
    f"{_TITLES[number]} (MLP-Mixer, arXiv 2105.01601)",
    (_INTRO[number], _UNITS),
    tuple(tables),
    {heading: each for heading, each in notes.items() if each},
  )


def _row(
  row: Row,
  found: dict[str, records.Cell],
  devices: Sequence[Device],
  missing: Notes,
  measured: Notes,
) -> tuple[Cell, ...]:
  label = f"{row.model} pc" if row.private else row.model
  line = [Cell(label)]
  if row.table == 3:
    line += cells(str(row.resolution), str(row.epochs))
  for name in _ACCURACIES[row.table]:
    published = getattr(row, name)
    decimals = row.imagenet_decimals if name == "imagenet" else 2
    line.append(Cell(_number(published, decimals)))
    if name in found:
      mark = measured.mark(accuracy_note(found[name]))
      line.append(Cell(f"{found[name].value:.2f}", mark))
    else:
      line.append(_empty(published, missing, row, name))
  line.append(Cell(_count(row.images_per_second)))
  if where := throughputs.fastest(devices, row.model, row.resolution):
    device, best = where
    mark = measured.mark(_speed_note(device, best))
    line.append(Cell(_rate(best.images_per_second), mark))
  else:
    name = "images_per_second"
    line.append(_empty(row.images_per_second, missing, row, name))
  extrapolated = "*" if row.extrapolated else ""
  line.append(Cell(f"{row.thousand_core_days:.2f}k{extrapolated}"))
  if days := found.get(records.CORE_DAYS):
    mark = measured.mark(_cost_note(days))
    line.append(Cell(f"{days.value:.3g}", mark))
  else:
    line.append(_empty(row.thousand_core_days, missing, row, "core_days"))
  return tuple(line)


def _empty(published: object, missing: Notes, row: Row, column: str) -> Cell:
  """Where the paper has nothing either, nothing is missing."""
  if published is None:
    return Cell()
  return Cell("", filling.mark(missing, row, column))


def _number(value: float | None, decimals: int) -> str:
  return "-" if value is None else f"{value:.{decimals}f}"


def _count(value: int | None) -> str:
  return "-" if value is None else str(value)


def _rate(value: float) -> str:
  return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def accuracy_note(cell: records.Cell) -> str:
  """Of which runs and weights a number is, and where it stands."""
  runs = "one run" if cell.runs == 1 else f"mean of {cell.runs} runs"
  if cell.deviation is not None:
    runs += f", deviation {cell.deviation:.2f}"
  if source := cell.record.get("upstream"):
    began = source.get("published") or source["folder"]
    runs += f", fine-tuned from {began}{_unchecked(source)}"
    if cell.record["kind"] == records.RUN:
      runs += " at a learning rate that was not chosen by held-out images"
  if weights := cell.record.get("weights"):
    runs = f"the published {weights['published']} as it is{_unchecked(weights)}"
  return f"{runs}; {_origin(cell)}"


def _unchecked(weights: dict) -> str:
  by_name = ", a file that was taken for it by its name, unchecked"
  return by_name if weights.get(records.UNCHECKED) else ""


def _cost_note(cell: records.Cell) -> str:
  """Device-days are core-days on TPUv3 alone."""
  days = " + ".join(
    f"{value:.3g} device-days on {kind}"
    + (
      " (core-days)"
      if kind == _TPU_V3
      else " (not comparable with TPUv3 core-days)"
    )
    for kind, value in cell.device_days.items()
  )
  return f"{days}, of updates alone; {_origin(cell)}"


_TPU_V3 = "TPU v3"  # of which jax counts cores


def _origin(cell: records.Cell) -> str:
  """File, run, date, commit and devices."""
  record = cell.record
  commits = ", ".join(x[:7] for x in record["git_commits"]) or "unknown"
  changes = " with uncommitted changes" if record["git_changes"] else ""
  devices = ", ".join(record["devices"]) or "unknown devices"
  return (
    f"{cell.file}, {record['kind']} {record['folder']}, {record['date']}, "
    f"commit {commits}{changes}, {devices}."
  )


def _speed_note(device: Device, best: Throughput) -> str:
  return (
    f"images/s on {device.name} in {best.dtype}, with {_batch(best)}; "
    f"{_measured(device, best)}"
  )


def _ratio_note(device: Device, mixer: Throughput, vit: Throughput) -> str:
  return (
    f"images/s on {device.name} in {mixer.dtype}: Mixer with {_batch(mixer)}; "
    f"ViT with {_batch(vit)}; {_measured(device, mixer, vit)}"
  )


def _batch(best: Throughput) -> str:
  """With which batch size it was the best, and of which."""
  said = f"batch {best.batch} alone"
  if len(best.batches) > 1:
    *some, last = map(str, best.batches)
    said = f"batch {best.batch}, the best of {', '.join(some)} and {last}"
  if best.beyond:
    batch, why = best.beyond
    said += f" (a larger one was not measured: {batch} {why})"
  return said


def _measured(device: Device, *speeds: Throughput) -> str:
  """File, and dates and commits of its rows."""
  origins = dict.fromkeys(
    f"{each.date}, commit {(each.git_commit or 'unknown')[:7]}"
    for each in speeds
  )
  return f"{device.file}, {' and '.join(origins)}."


def _paper_marks(number: int) -> tuple[Note, ...]:
  says = ", says table 3" if number == 2 else ""
  marks = [
    Note("-", "The paper has no number."),
    Note("*", f"Extrapolated from runs on JFT-300M{says}."),
  ]
  if number == 3:
    marks.append(
      Note("pc", "Told to the paper's authors by those of ViT in private.")
    )
  return tuple(marks)


def _ratios(devices: Sequence[Device], measured: Notes) -> list[Table]:
  """How many times as fast as ViT, by device and dtype."""
  columns = [(device, dtype) for device in devices for dtype in device.dtypes]
  rows = []
  for pair in SPEED_RATIOS:
    line = [
      Cell(f"{pair.mixer} : {pair.vit}"),
      Cell(str(pair.resolution)),
      Cell(f"{pair.ratio:.2f}"),
    ]
    for device, dtype in columns:
      if two := throughputs.pair_of(device.best, pair, dtype):
        mark = measured.mark(_ratio_note(device, *two))
        line.append(Cell(f"{throughputs.ratio(*two):.2f}", mark))
      else:
        line.append(Cell("-"))
    rows.append(tuple(line))
  heads = ["models", "px", "paper, TPUv3"]
  heads += [f"here, {device.name}, {dtype}" for device, dtype in columns]
  return [
    Table(
      "Images/s of Mixer as a multiple of ViT's",
      tuple(("", head) for head in heads),
      (Block("", tuple(rows)),),
    )
  ]
