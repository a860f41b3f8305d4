# SPDX-License-Identifier: Apache-2.0
"""Throughput of all models on this machine's first device, as in table 3.

python -m benchmarks.throughput [--models=Mixer-*,ViT-B/16] [--batches=1,2,4]

Images a second of inference (the paper's column: the best over batch sizes) and
of training, on random images. Every model is compiled and timed in a process of
its own, within --limit seconds; models that do not fit or take longer are noted
and the others continue. Rows in results/throughput/DEVICE.json are not measured
again without --again, nor time-outs without a longer --limit. Prints the table
as Markdown. Needs only jax, flax and optax.
"""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks import cells, harness, programs
from benchmarks.cells import CLASSES, IMAGE_SIZE, INFERENCE, PASSES, TRAINING
from mixer import models as families
from mixer.cli import run_cli
from mixer.jax_setup import configure_xla, trim_malloc
from mixer.tools.paper.numbers import ROWS, SPEED_RATIOS
from mixer.tools.paper.results_store import (
  Key,
  Throughput,
  best_throughputs,
  speed_ratio,
)
from mixer.tools.table import render

# Batches and dtypes. A few images keep a CPU as busy as many, and bfloat16 is
# no faster there.
DEFAULTS = {"cpu": ("1,4", "float32")}
OTHERS = "1,8,32,128,512,2048", "bfloat16,float32"
# Lists of rows in the file.
LISTS = {INFERENCE: "rows", TRAINING: "training_rows"}

# (model, image size in pixels)
Model = tuple[str, int]
# (pass, dtype), a column of images a second
Column = tuple[str, str]


def main() -> int:
  parser = cells.create_speed_parser(
    "throughput",
    __doc__,
    on_cpu=DEFAULTS["cpu"],
    elsewhere=OTHERS,
    limit=300.0,
    counts={"repeats": (5, "timings of each")},
  )
  parser.add_argument("--passes", default=",".join(PASSES), help="or one")
  return run_cli(fill, **vars(parser.parse_args()))


def fill(
  models: str,
  batches: str | None,
  dtype: str | None,
  passes: str,
  results: Path,
  again: bool,
  **timing: float,
) -> str:
  """Measures the rows that are due; returns the tables. For args see flags."""
  cells.check_timing(**timing)
  labels = {label(*model): model for model in every_model()}
  chosen = cells.choose(models, labels)
  chosen_passes = cells.split_words("passes", passes, PASSES)
  device = harness.describe_device()
  default_batches, default_dtypes = DEFAULTS.get(device["platform"], OTHERS)
  dtypes = cells.split_words("dtype", dtype or default_dtypes, cells.DTYPES)
  sizes = cells.split_numbers("batches", batches or default_batches)
  known = harness.Results(
    results,
    "throughput",
    device,
    limit=timing["limit"],
    again=again,
    lists=LISTS.values(),
  )
  for each_pass, each_dtype, name in itertools.product(
    chosen_passes, dtypes, chosen
  ):
    model, size = labels[name]
    key = {"model": model, "image_size": size, "dtype": each_dtype}
    rows = LISTS[each_pass]
    due = [x for x in sizes if known.is_due(key | {"batch": x}, rows)]
    for row in run_batches(due, passes=each_pass, **key, **timing):
      harness.log_speed(
        f"{name}, {each_pass}, {each_dtype}, {row['batch']}", row
      )
      cell = key | {"batch": row["batch"]}
      old = known.select(cell, rows)
      # A failure does not replace a speed that was measured before.
      if row["images_per_second"] or not any(
        x["images_per_second"] for x in old
      ):
        known.put(cell, [row], rows)
  rows = {passes: known.lists[name] for passes, name in LISTS.items()}
  return f"{page(device['device'], rows)}\n\n{known.path}"


def run_batches(
  batches: list[int], *, limit: float, **arguments
) -> Iterator[dict]:
  """Yields rows of `measure` in a child, until a batch size fails.

  Args:
    batches: batch sizes, rising.
    limit: seconds for all batch sizes, compilation included.
    **arguments: other arguments of `measure`.

  Raises:
    UserError: the child failed, and not for want of memory or time.
  """
  if not batches:
    return
  left = list(batches)
  function = "benchmarks.throughput:measure"
  try:
    for row in harness.run_child(function, limit, batches=batches, **arguments):
      left.remove(row["batch"])
      yield row
  except harness.ChildError as error:
    if left:  # else the limit came after the last row
      yield {"batch": left[0]} | error.row


def measure(
  model: str,
  image_size: int,
  passes: str,
  dtype: str,
  batches: list[int],
  repeats: int,
  seconds: float,
) -> Iterator[dict]:
  """Yields a row for each batch size, until one does not fit."""
  configure_xla()  # as train.py, eval.py and predict do
  module = families.create(
    model,
    num_classes=CLASSES,
    dtype=None if dtype == "float32" else jnp.dtype(dtype),
    **grow_tokens(model, image_size),
  )
  shape = (image_size, image_size, module.image_channels)
  make = {INFERENCE: programs.infer, TRAINING: programs.train}[passes]
  for batch in batches:
    row = {"batch": batch}
    try:
      program = make(module, (batch, *shape))
      timings = harness.time_calls(program.call, repeats, seconds)
    except (
      programs.DoesNotFitError,
      jax.errors.JaxRuntimeError,
      MemoryError,
    ) as error:
      yield row | {"images_per_second": None, "why": harness.first_line(error)}
      return
    yield row | harness.speed(batch, timings) | {"bytes": program.needs}
    del program  # and its arrays, before the next are made
    trim_malloc()  # memory that malloc caches does not count as free


def grow_tokens(model: str, image_size: int) -> dict[str, int]:
  """Returns the fields of a Mixer that depend on the image size.

  Token mixing grows as in fine-tuning at a higher resolution (appendix C).
  """
  sizes = families.sizes(model)
  if "tokens_mlp" not in sizes:
    return {}
  factor = image_size // IMAGE_SIZE
  return {"tokens_mlp": factor**2 * sizes["tokens_mlp"]}


def label(model: str, image_size: int) -> str:
  return model if image_size == IMAGE_SIZE else f"{model}@{image_size}"


def paper_speeds() -> dict[Model, int]:
  """Returns images per second and TPUv3 core of tables 2 and 3."""
  return {
    (row.model, row.resolution): row.images_per_second
    for row in ROWS.values()
    if row.images_per_second and row.resolution
  }


def every_model() -> list[Model]:
  """Lists all models at 224 px, then the paper's at other resolutions."""
  names = families.names()
  others = {(name, size) for name, size in paper_speeds() if name in names}
  models = [(name, IMAGE_SIZE) for name in names]
  return models + sorted(others - {*models})


def page(device: str, rows: dict[str, list[dict]]) -> str:
  """Renders both tables.

  Args:
    device: name of the device.
    rows: pass -> rows of the file.
  """
  best = {passes: best_throughputs(rows[passes]) for passes in PASSES}
  columns = [
    (passes, dtype)
    for passes in PASSES
    for dtype in cells.DTYPES
    if any(key[-1] == dtype for key in best[passes])
  ]
  parts = [
    f"Images a second, {device}; the best of the batch sizes measured, which "
    "is behind @. Paper: of a TPUv3 core, table 3.",
    _speeds(best, columns),
  ]
  if ratios := list(_ratios(best, columns)):
    parts += [
      "Mixer / ViT, images a second:",
      render(("", *map(" ".join, columns), "paper"), ratios),
    ]
  return "\n\n".join(parts)


def _speeds(
  best: dict[str, dict[Key, Throughput]], columns: list[Column]
) -> str:
  paper = paper_speeds()
  # In the order in which they were measured.
  models = dict.fromkeys(key[:2] for keys in best.values() for key in keys)
  head = ("model", *map(" ".join, columns), "paper")
  rows = (
    (
      label(*model),
      *(_cell(best[passes].get((*model, dtype))) for passes, dtype in columns),
      f"{paper[model]:,}" if model in paper else "",
    )
    for model in models
  )
  return render(head, rows)


def _cell(best: Throughput | None) -> str:
  if best is None:
    return ""
  if best.images_per_second is None:
    return best.beyond[1]
  return f"{harness.format_speed(best.images_per_second)} @{best.batch}"


def _ratios(
  best: dict[str, dict[Key, Throughput]], columns: list[Column]
) -> Iterator[tuple[str, ...]]:
  for models, published in SPEED_RATIOS.items():
    ratios = [
      speed_ratio(best[passes], models, dtype) for passes, dtype in columns
    ]
    if any(ratios):
      mixer, vit, _ = models
      values = (f"{ratio:.2f}" if ratio else "" for ratio in ratios)
      yield f"{mixer} / {vit}", *values, f"{published:.2f}"


if __name__ == "__main__":
  sys.exit(main())
