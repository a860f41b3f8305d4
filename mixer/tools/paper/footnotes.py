# SPDX-License-Identifier: Apache-2.0
"""Footnotes to the empty cells of tables 2 and 3: recipe, data, hours."""

from mixer.tools.paper.numbers import AVERAGE_5, Row
from mixer.tools.paper.protocols import Protocol, extend, obstacle, protocol
from mixer.tools.paper.render import Footnotes
from mixer.tools.paper.results_store import THROUGHPUT_COMMAND

_CORES = 128  # of a TPU v3-128, to make hours of core-days
_HOURS_PER_DAY = 24
_NOT_SAID = "The paper says nothing of its hours."
# Data of each recipe for the columns of core-days and ImNet.
_REAL = "imagenet2012, imagenet2012_real and imagenet_v2"


def mark(notes: Footnotes, row: Row, column: str) -> str:
  """Returns the mark of the footnote that says how to fill an empty cell.

  Args:
    notes: of the page.
    row: of table 2 or 3.
    column: "imagenet", "real", "average5", "vtab", "images_per_second" or
      "core_days"; the paper has a number there.
  """
  if column == "images_per_second":
    return _throughput(notes, row)
  how = protocol(row)
  if how is None:
    return notes.mark(obstacle(row))
  record = f"python -m mixer paper record {row.name} --workdir=RUN"
  is_pretrained = how.is_pretrained_on_imagenet and column in (
    "imagenet",
    "real",
  )
  if is_pretrained and how.published:
    recipe = f"configs/evaluate.py:{how.published}"
    return notes.mark(
      f"ImNet and ReaL: {how.published} as it was published, in minutes on one "
      "GPU; or a pre-training of one's own, as for the core-days. Data: "
      f"{_REAL}.",
      f"python eval.py --config={recipe} --workdir=DIR",
      f"python -m mixer paper record {row.name} --workdir=DIR",
    )
  if is_pretrained or column == "core_days":
    text, recipe = _pretraining(row, how)
    command = f"python train.py --config={recipe} --workdir=RUN"
    return notes.mark(text, command, record)
  if column == "vtab":
    recipe, several = how.vtab, " --datasets=all"
    text = (
      f"VTAB: {row.model} fine-tuned on the 19 tasks of VTAB-1k. Data: those "
      "that configs/vtab.py names."
    )
  elif column == "average5":
    recipe, several = how.finetune, " --datasets=all"
    text = (
      f"Avg 5: {row.model} fine-tuned on five data sets, {_at(row, how)}. "
      f"Data: {', '.join(AVERAGE_5)}."
    )
  else:
    recipe = extend(how.finetune, "dataset=imagenet2012,extra=True")
    several = ""
    text = (
      f"ImNet and ReaL: {row.model} fine-tuned on ImageNet, {_at(row, how)}. "
      f"Data: {_REAL}."
    )
  return notes.mark(
    f"{text} {_NOT_SAID}",
    f"python -m mixer sweep --config={recipe}{several} "
    f"--config.init={how.published or 'PRETRAINED'} --workdir=RUN",
    record,
  )


def _at(row: Row, how: Protocol) -> str:
  squeezed = ", evaluated on squeezed images" if row.table == 2 else ""
  origin = how.published or f"the folder of a run of {how.pretrain}"
  return f"{row.resolution} px{squeezed}, from {origin}"


def _pretraining(row: Row, how: Protocol) -> tuple[str, str]:
  """Returns the text of the footnote, and the recipe."""
  thousand = row.thousand_core_days
  hours = 1000 * thousand * _HOURS_PER_DAY
  cost = (
    f"The paper's cost: {thousand:.2f}k TPUv3 core-days, that is {hours:,.0f} "
    f"core-hours, {hours / _CORES:.3g} h on {_CORES} cores"
    f"{' (extrapolated)' if row.extrapolated else ''}."
  )
  recipe, cells, data = how.pretrain, "Core-days", "imagenet21k"
  if how.is_pretrained_on_imagenet:
    recipe = extend(recipe, "extra=True")
    cells, data = "Core-days, ImNet, ReaL", _REAL
  if row.private:
    cost += (
      " Its settings are big_vision's: those of the runs that the paper was "
      "told of were not published."
    )
  return f"{cells}: {row.model} pre-trained. Data: {data}. {cost}", recipe


def _throughput(notes: Footnotes, row: Row) -> str:
  family = row.model.partition("-")[0]
  if family not in ("Mixer", "ViT", "BiT"):
    return notes.mark(obstacle(row))
  if row.resolution is None:
    return notes.mark(
      "Nothing here: the paper does not say at which resolution this "
      "throughput was measured."
    )
  return notes.mark(
    "Throughput: images/s of this model, best over batch sizes, on any device. "
    "No data; minutes.",
    THROUGHPUT_COMMAND,
  )
