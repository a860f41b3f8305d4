# SPDX-License-Identifier: Apache-2.0
"""Times images by `python -m mixer predict` and by an exported program.

python -m benchmarks.inference [--models=Mixer-S/16] [--batches=1,32]

A call, on this machine's first device, goes from uint8 images on the host to
results on the host. Median, 95th percentile and images/s are measured for

  predict   the compiled function of `predict`
  exported  the program that `export` writes, read back and called
  jitted    the model's forward pass in jax.jit, to compare with

and for each the seconds to load its file, and from there to the first result.
Weights and images are random. `predict` itself computes in float32; for
bfloat16 its function gets a model with such products. All three take turns in
one process a model, dtype and batch size. Rows in results/inference/DEVICE.json
are not measured again without --again; all of them are printed as a Markdown
table. Needs all of requirements.txt, as `predict` does.
"""

import functools
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn
from jax import export as jax_export

from benchmarks import cells, harness
from benchmarks.cells import CLASSES, DTYPES, INFERENCE, Cell
from benchmarks.harness import ChildError, Results, format_speed, round_digits
from benchmarks.programs import draw_batch, draw_params
from mixer import models as families
from mixer import weights
from mixer.cli import run_cli
from mixer.errors import notify
from mixer.jax_setup import configure_xla
from mixer.models import create, flops
from mixer.models.infer import infer_model
from mixer.tools.export import write_program
from mixer.tools.inference import bind_to_devices
from mixer.tools.table import render
from mixer.training.sharding import prefetch_to_device
from mixer.training.step import normalise

# Batches and dtypes.
DEFAULTS = {"cpu": ("1,16", "float32")}
OTHERS = "1,32", "float32,bfloat16"
TOPK = 5  # as `predict` has it
HEAD = (
  "model | dtype | batch | by | median ms | 95 % within ms | images/s | "
  "of jitted's time | load s | first result s"
).split(" | ")

# Maps uint8 images [n, h, w, c] on the host to arrays, maybe still pending.
Call = Callable[[np.ndarray], object]


def main() -> int:
  parser = cells.create_speed_parser(
    "inference",
    __doc__,
    on_cpu=DEFAULTS["cpu"],
    elsewhere=OTHERS,
    limit=600.0,
    models="Mixer-S/16,Mixer-B/16",
    counts={"rounds": (3, "of all, in turns"), "calls": (20, "timed, a round")},
    seconds=False,
  )
  return run_cli(fill, **vars(parser.parse_args()))


def fill(
  models: str,
  batches: str | None,
  dtype: str | None,
  results: Path,
  again: bool,
  limit: float,
  **counts: int,
) -> str:
  """Measures the cells that are due; returns the table. For args see flags."""
  chosen = cells.choose(models, families.names())
  cells.check_timing(limit=limit, **counts)
  device = harness.describe_device()
  defaults = DEFAULTS.get(device["platform"], OTHERS)
  dtypes = cells.split_words("dtype", dtype or defaults[1], DTYPES)
  sizes = cells.split_numbers("batches", batches or defaults[0])
  known = Results(results, "inference", device, limit=limit, again=again)
  for name, kind, batch in itertools.product(chosen, dtypes, sizes):
    cell = Cell(name, INFERENCE, kind, batch)
    key = vars(cell)
    if any(known.is_due(key | {"implementation": way}) for way in WAYS):
      rows = run_cell(cell, limit, **counts)
      known.put(key, rows)
      for row in rows:
        text = row.get("why") or f"{row['median_ms']:,.4g} ms"
        notify(f"{cell.label}, {row['implementation']}: {text}")
  return f"{page(device, known.lists[harness.ROWS])}\n\n{known.path}"


def run_cell(cell: Cell, limit: float, **counts: int) -> list[dict]:
  """Runs `measure` in a child; returns a row for each way.

  Raises:
    UserError: the child failed, and not for want of memory or time.
  """
  function = "benchmarks.inference:measure"
  key = vars(cell)
  try:
    rows = list(harness.run_child(function, limit, cell=key, **counts))
  except ChildError as error:
    rows = [error.row]
  if "why" in rows[-1]:
    failed = {"images_per_second": None} | rows[-1]
    return [{"implementation": way} | failed for way in WAYS]
  return rows


def measure(cell: dict, rounds: int, calls: int) -> Iterable[dict]:
  """Measures all ways of a cell, given as a dict of the fields of `Cell`.

  Args:
    cell: model, pass, dtype and batch size.
    rounds: number of turns of each way.
    calls: number of timed calls of a way in a round.

  Returns:
    A row for each way; or one with the reason in "why".
  """
  configure_xla()  # as train.py, eval.py and predict do
  # A compilation of an earlier run must not make this start look fast.
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    return time_ways(Cell(**cell), rounds, calls)
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    return {"why": harness.first_line(error)}


def time_ways(cell: Cell, rounds: int, calls: int) -> list[dict]:
  """Returns a row for each way; see `measure`."""
  pixels = draw_batch(cell.image_shape)["image"]
  with tempfile.TemporaryDirectory() as folder:
    file = write_weights(Path(folder), cell.model, cell.image_shape[1:3])
    files = {"exported": write_exported(file, cell.dtype)}
    starts = {
      name: _start(
        functools.partial(way, files.get(name, file), cell.dtype), pixels
      )
      for name, way in WAYS.items()
    }
  timings = {name: [] for name in WAYS}
  for name in harness.turns(tuple(WAYS), rounds):
    call, _ = starts[name]
    # Any time is long enough, so that each timing is one call.
    timings[name] += harness.time_calls(
      functools.partial(call, pixels), calls, 0.0, to_host
    )
  return [
    {"implementation": name} | summarize(cell.batch, timings[name]) | seconds
    for name, (_, seconds) in starts.items()
  ]


def _start(
  load: Callable[[], Call], pixels: np.ndarray
) -> tuple[Call, dict[str, float]]:
  """Returns a way's call, and the seconds to load and to the first result."""
  begin = time.perf_counter()
  call = load()
  loaded = time.perf_counter()
  to_host(call(pixels))
  first = time.perf_counter()
  return call, {
    "load_seconds": round(loaded - begin, 3),
    "first_seconds": round(first - loaded, 3),
  }


def summarize(batch: int, timings: Sequence[float]) -> dict:
  """Summarizes the seconds of single calls."""
  median = statistics.median(timings)
  return {
    "images_per_second": round_digits(batch / median),
    "median_ms": round_digits(1e3 * median),
    "p95_ms": round_digits(1e3 * float(np.percentile(timings, 95))),
    "calls": len(timings),
  }


def write_weights(
  folder: Path, model: str, image_size: tuple[int, int]
) -> Path:
  """Writes random weights; returns their file."""
  made = create(model, num_classes=CLASSES)
  file = folder / "weights.npz"
  weights.save(file, draw_params(flops.abstract_params(made, image_size)))
  return file


def write_exported(file: Path, dtype: str) -> Path:
  """Writes the program of weights next to them; returns its file."""
  program = file.with_suffix(".stablehlo")
  write_program(weights.read(file), program, dtype=dtype)
  # Loading must compile it, as in another process.
  jax.clear_caches()
  return program


def predict(file: Path, dtype: str) -> Call:
  """Computes like `predict`, which dispatches a batch a little earlier."""
  model, params = _read(file, dtype)
  devices = jax.local_devices()[:1]
  judge = bind_to_devices(model, params, devices, loss="softmax", topk=TOPK)

  def call(pixels: np.ndarray) -> tuple[jax.Array, jax.Array]:
    [batch] = prefetch_to_device(({"image": x} for x in [pixels]), devices)
    return judge(batch)

  return call


def exported(file: Path, dtype: str) -> Call:
  """Calls a program as `export` documents it; the dtype is in the file."""
  return jax_export.deserialize(file.read_bytes()).call


def jitted(file: Path, dtype: str) -> Call:
  """Computes only the forward pass."""
  model, params = _read(file, dtype)

  def apply(params: dict, pixels: jax.Array) -> jax.Array:
    images = normalise(pixels)
    return model.apply({"params": params}, images, train=False)[0]

  return functools.partial(jax.jit(apply), jax.device_put(params))


WAYS = {"predict": predict, "exported": exported, "jitted": jitted}


def to_host(results: object) -> object:
  """Waits for arrays, and copies them to the host."""
  return jax.tree.map(np.asarray, results)


def _read(file: Path, dtype: str) -> tuple[nn.Module, dict]:
  checkpoint = weights.read(file)
  model = infer_model(checkpoint.params, gelu=checkpoint.gelu, dtype=dtype)
  return model, checkpoint.params


def page(device: dict, rows: Sequence[dict]) -> str:
  """Renders the table, with notes on its numbers.

  Args:
    device: device, from `device.describe`.
    rows: rows of the file, with a way as "implementation".
  """
  note = (
    f"{device['device']}; {harness.list_versions(rows or [device])}. A call is "
    "from uint8 images on the host to results on the host."
  )
  rows = cells.sort_rows(rows, WAYS)
  jitted = {
    cells.cell_of(row): row for row in rows if row["implementation"] == "jitted"
  }
  lines = (_line(row, jitted[cells.cell_of(row)]) for row in rows)
  return f"{note}\n\n{render(HEAD, lines)}"


def _line(row: dict, jitted: dict) -> Iterable[str]:
  first = [row[key] for key in ("model", "dtype", "batch", "implementation")]
  if row["images_per_second"] is None:
    return *first, row["why"], *[""] * (len(HEAD) - 5)
  return (
    *first,
    format_speed(row["median_ms"]),
    format_speed(row["p95_ms"]),
    format_speed(row["images_per_second"]),
    "" if row is jitted else f"{row['median_ms'] / jitted['median_ms']:.2f} x",
    f"{row['load_seconds']:.2f}",
    f"{row['first_seconds']:.2f}",
  )


if __name__ == "__main__":
  sys.exit(main())
