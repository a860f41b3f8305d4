# SPDX-License-Identifier: Apache-2.0
"""What would fill an empty cell of tables 2 and 3: recipe, data, hours."""

from mixer.tools.paper.measured.protocols import Protocol, obstacle, protocol
from mixer.tools.paper.measured.throughputs import COMMAND
from mixer.tools.paper.numbers import AVERAGE_5, Row
from mixer.tools.paper.tables.page import Notes

_CORES = 128  # of a TPU v3-128, to make hours of core-days
_HOURS_PER_DAY = 24
_NOT_SAID = "The paper says nothing of its hours."
# What is in each recipe beside the columns of core-days and ImNet.
_REAL = "imagenet2012, imagenet2012_real and imagenet_v2"


def mark(notes: Notes, row: Row, column: str) -> str:
  """The mark of the note on how an empty cell is filled.

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
  if column == "core_days":
    return _pretraining(notes, row, how)
  if how.is_pretrained_on_imagenet and column in ("imagenet", "real"):
    if how.published:
      return _published(notes, row, how)
    return _pretraining(notes, row, how)
  start = f"--config.init={how.published or 'PRETRAINED'} --workdir=RUN"
  record = f"python -m mixer paper record {row.name} --workdir=RUN"
  if column == "vtab":
    return notes.mark(
      f"VTAB: {row.model} fine-tuned on the 19 tasks of VTAB-1k. Data: those "
      f"that configs/vtab.py names. {_NOT_SAID}",
      f"python -m mixer sweep --config={how.vtab} --datasets=all {start}",
      record,
    )
  if column == "average5":
    return notes.mark(
      f"Avg 5: {row.model} fine-tuned on five data sets, {_at(row)}. Data: "
      f"{', '.join(AVERAGE_5)}. {_NOT_SAID}",
      f"python -m mixer sweep --config={how.finetune} --datasets=all {start}",
      record,
    )
  return notes.mark(
    f"ImNet and ReaL: {row.model} fine-tuned on ImageNet, {_at(row)}. Data: "
    f"{_REAL}. {_NOT_SAID}",
    "python -m mixer sweep "
    f"--config={how.finetune.more('dataset=imagenet2012,extra=True')} {start}",
    record,
  )


def _at(row: Row) -> str:
  squeezed = ", evaluated on squeezed images" if row.table == 2 else ""
  how = protocol(row)
  origin = how.published or f"the folder of a run of {how.pretrain}"
  return f"{row.resolution} px{squeezed}, from {origin}"


def _published(notes: Notes, row: Row, how: Protocol) -> str:
  """Weights that are judged as they were published, or a run of one's own."""
  recipe = f"configs/evaluate.py:{how.published}"
  return notes.mark(
    f"ImNet and ReaL: {how.published} as it was published, in minutes on one "
    "GPU; or a pre-training of one's own, as for the core-days. Data: "
    f"{_REAL}.",
    f"python eval.py --config={recipe} --workdir=DIR",
    f"python -m mixer paper record {row.name} --workdir=DIR",
  )


def _pretraining(notes: Notes, row: Row, how: Protocol) -> str:
  thousand = row.thousand_core_days
  hours = 1000 * thousand * _HOURS_PER_DAY
  cost = (
    f"The paper's cost: {thousand:.2f}k TPUv3 core-days, that is {hours:,.0f} "
    f"core-hours, {hours / _CORES:.3g} h on {_CORES} cores"
    f"{' (extrapolated)' if row.extrapolated else ''}."
  )
  if how.is_pretrained_on_imagenet:
    recipe, what = how.pretrain.more("extra=True"), "Core-days, ImNet, ReaL"
    data = _REAL
  else:
    recipe, what, data = how.pretrain, "Core-days", "imagenet21k"
  if row.private:
    cost += (
      " Its settings are big_vision's: those of the runs that the paper was "
      "told of were not published."
    )
  return notes.mark(
    f"{what}: {row.model} pre-trained. Data: {data}. {cost}",
    f"python train.py --config={recipe} --workdir=RUN",
    f"python -m mixer paper record {row.name} --workdir=RUN",
  )


def _throughput(notes: Notes, row: Row) -> str:
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
    COMMAND,
  )
