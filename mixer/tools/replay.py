# SPDX-License-Identifier: Apache-2.0
"""Replays one update of a run: its batch, losses, layers, first NaN.

python -m mixer replay RUN                 lists the steps
python -m mixer replay RUN --step=N [--out=DIR] [--accept_changes]

Trains with the run's own program, from the nearest checkpoint before step N
(the state after N updates) or from initialisation; compares all numbers with
the run's log, bit for bit; and examines the last update. RUN may be training
meanwhile: only DIR (default RUN/replay_N) is written to.
"""

import collections
import contextlib
import json
import sys
from collections.abc import Sequence

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from mixer import cli, weights
from mixer.cluster import ONE_HOST, find_cluster
from mixer.data.shuffle import IndexShuffler
from mixer.data_plan import check_classes
from mixer.distributed import initialize
from mixer.errors import UserError, format_list, printable
from mixer.jax_setup import configure_xla, enable_compilation_cache
from mixer.plan import Plan, make_plan
from mixer.storage import storage_errors, storage_path, write_text
from mixer.tools import show_batch, table
from mixer.tools.examine import examine, find_first, merge_layers
from mixer.train import to_row
from mixer.training import run_dir, setup
from mixer.training.metrics import read_rows
from mixer.training.sharding import (
  all_devices,
  local_devices,
  replicate,
  to_host,
)
from mixer.training.step import TrainState

PICTURES = 36  # of the examples with the highest losses
SHOWN = 5  # examples and layers that are printed; replay.json has all
COLUMNS = "gradient_norm update_norm parameter_norm output_rms output_max"


def main(arguments: list[str] | None = None) -> int:
  """Returns the exit code: 0 done, 1 not as logged, 2 for the user to act."""
  parser = cli.create_parser(
    "mixer replay", "Rebuilds one update of a run, and examines it."
  )
  add = parser.add_argument
  add("run", metavar="RUN", help="a run's folder")
  add("--step", type=int, metavar="N", help="without it, lists the steps")
  add("--out", metavar="DIR", help="of the results; default: RUN/replay_N")
  add(
    "--accept_changes",
    action="store_true",
    help="replay with another commit than the run's",
  )
  options = vars(parser.parse_args(arguments))
  reports = []
  code = cli.run_cli(lambda: reports.append(replay(**options)))
  return code or int(bool(reports[0] and reports[0]["differences"]))


def replay(
  run: str, step: int | None, out: str | None, accept_changes: bool
) -> dict | None:
  """Prints and writes all about an update; arguments are the command's.

  Returns:
    The content of replay.json; None without a step.

  Raises:
    UserError: there is no such step, or what it needs is gone.
  """
  with storage_errors(run):
    folder = storage_path(run)
    config = run_dir.load_config(folder)
    config.evals, config.checkpoint.best = ConfigDict(), ""  # not needed
    log, saved = read_log(folder), setup.saved_steps(folder)
    last = max([*log, *saved], default=0)
    if step is None:
      skipped = [each for each, row in log.items() if "examples" in row]
      print(
        f"{run}: --step=N replays one of the updates 1 to {last:,}.\n"
        f"checkpoints      {_join(saved)}\nskipped updates  {_join(skipped)}"
      )
      return None
    if not 1 <= step <= last:
      raise UserError(
        f"--step={step}: {run} has the updates 1 to {last:,}: name one of them."
      )
    if find_cluster().hosts > 1:
      raise UserError("A replay takes one host: start it on one machine.")
    configure_xla(deterministic=config.deterministic_operations)
    enable_compilation_cache()
    with initialize(ONE_HOST) as hosts:
      earlier = [each for each in saved if each < step]
      plan = make_plan(config, load_init=not earlier)
      plan.complaints.raise_all()
      if classes := weights.trained_classes(folder):
        check_classes(plan.data.source, classes, str(folder / weights.CLASSES))
      start, state = _restore(plan, folder, step) or (0, None)
      changes = compare_provenance(folder, start, step)
      if "git_commit" in changes and not accept_changes:
        there, here = changes["git_commit"]
        raise UserError(
          f"{run} was trained by commit {there}, and this is {here}: check "
          "that one out, or replay with this one (--accept_changes)."
        )
      if state is None and earlier:  # they are damaged
        plan = make_plan(config)
        plan.complaints.raise_all()
      target = storage_path(out) if out else folder / f"replay_{step}"
      target.mkdir(parents=True, exist_ok=True)
      origin = f"initialisation (checkpoints: {_join(saved)})"
      if start:
        origin = f"the checkpoint of step {start:,}"
      print(
        f"Replays step {step:,} of {run} from {origin}: {step - start:,} "
        f"update{'s' * (step - start > 1)}.",
        flush=True,
      )
      report = {"step": step, "from_step": start, "changed_since": changes}
      report |= train_to(plan, hosts, start, state, step, log)
    write_text(target / "replay.json", json.dumps(report, indent=1) + "\n")
    draw_batch(plan, report, target / "batch.png")
    print(f"{describe(report)}\nWritten: {target}/replay.json, batch.png")
    return report


def read_log(folder: epath.Path) -> dict[int, dict]:
  """Returns what a run has logged of its updates, by step.

  The rows of skipped.jsonl have "examples".
  """
  rows = collections.defaultdict(dict)
  for row in read_rows(folder, "skipped.jsonl"):
    values = {f"train/{key}": x for key, x in row.items()}
    rows[row["step"]] = {"examples": values.pop("train/examples")}
    del values["train/step"], values["train/positions"]
    rows[row["step"]] |= values
  for row in read_rows(folder):
    if "train/loss" in row:
      rows[row["step"]] |= row
  return dict(rows)


def _restore(
  plan: Plan, folder: epath.Path, step: int
) -> tuple[int, TrainState] | None:
  """Reads the newest sound checkpoint before a step; None without any."""
  checkpoints = setup.open_checkpoints(plan, folder)
  _, optimizer = setup.create_optimizer(plan)
  template = setup.abstract_state(plan, optimizer)
  while earlier := [each for each in checkpoints.steps if each < step]:
    try:
      return checkpoints.restore(template, earlier[-1])
    except UserError:
      if earlier[-1] in checkpoints.steps:
        raise  # neither damaged nor deleted by a run that goes on
  return None


def compare_provenance(folder: epath.Path, start: int, step: int) -> dict:
  """Compares the starts that made the updates after `start` with this process.

  Returns:
    (there, here) of all that differs, by name.
  """
  starts, here = run_dir.read_starts(folder), run_dir.provenance()
  here |= here.pop("packages")
  changes = {}
  for update in range(start + 1, step + 1):
    # A later start from before the update has made it again.
    for there in [x for x in starts if x.get("from_step", 0) < update][-1:]:
      there = there | there.get("packages", {})
      changes |= {
        name: (there[name], x)
        for name, x in here.items()
        if name not in ("date", "command") and there.get(name, x) != x
      }
  # Changes of the config since the first of these updates.
  made = [i for i, x in enumerate(starts) if x.get("from_step", 0) <= start]
  later = starts[made[-1] + 1 :] if made else []
  for line in [line for each in later for line in each.get("changes", ())]:
    key, _, values = line.partition(": ")
    changes[f"config.{key}"] = tuple(values.split(" -> ", 1))
  return changes


def train_to(
  plan: Plan, hosts, start: int, state: TrainState | None, step: int, log: dict
) -> dict:
  """Trains the updates after `start` up to `step`, and examines the last."""
  schedule, optimizer = setup.create_optimizer(plan)
  if state is None:
    state = setup.initial_state(plan, optimizer)
  devices, drop_steps = all_devices(), plan.schedule.drop_steps
  sharding = setup.create_sharding(plan)
  state = sharding.put(state, devices)
  teacher = replicate(setup.teacher_inputs(plan), local_devices())
  updates = [
    setup.create_update(plan, optimizer, devices, drops=drops)
    for drops in (False, True)
  ]
  differences = {}
  with contextlib.closing(setup.open_batches(plan, hosts, start)) as batches:
    for done in range(start, step):
      batch, drops = next(batches), done in drop_steps
      if done + 1 == step:
        before = to_host(sharding.gather(state.params, devices))
        facts = examine(plan, state, batch, teacher, drops=drops)
      state, metrics = updates[drops](state, batch, *teacher)
      lr = plan.config.optimizer.learning_rate * schedule(done)
      row = {k: np.asarray(x).item() for k, x in to_row(metrics, lr).items()}
      logged = log.get(done + 1, {})
      found = {
        name: (x, row.get(name))
        for name, x in logged.items()
        if name.startswith("train/")
        and json.dumps(x) != json.dumps(row.get(name))  # NaN equals NaN
      }
      if found:
        differences[done + 1] = found
  params = (before, to_host(sharding.gather(state.params, devices)))
  before, after = (flatten_dict(x, sep="/") for x in params)
  return {
    "metrics": row,
    "logged": logged,
    "compared_steps": [each for each in log if start < each <= step],
    "differences": differences,
    "first_not_finite": find_first(facts, before, after),
    "layers": merge_layers(facts, before, after),
    "examples": list_examples(plan, step, batch, facts["losses"]),
  }


def list_examples(
  plan: Plan, step: int, batch: dict, losses: np.ndarray
) -> list[dict]:
  """Describes the batch of an update, the highest loss first."""
  config, source = plan.config, plan.data.source
  order = IndexShuffler(
    len(source), config.seed, config.batch, config.data.repeats
  )
  numbers = order((step - 1) * config.batch + np.arange(config.batch))
  labels = np.asarray(batch["label"]).reshape(-1)
  ranks = np.argsort(-np.nan_to_num(losses, nan=np.inf), kind="stable")
  return [
    {
      "place": i,
      "example": int(numbers[i]),
      "file": source.locate(int(numbers[i])),
      "label": source.class_names[labels[i]],
      "loss": float(losses[i]),
    }
    for i in ranks.tolist()
  ]


def draw_batch(plan: Plan, report: dict, file: epath.Path):
  """Draws the examples with the highest losses, as cropped and mixed."""
  shown, names = report["examples"][:PICTURES], plan.data.source.class_names
  places = np.array([each["place"] for each in shown])
  pixels, labels = show_batch.fed_examples(plan, report["step"] - 1, places)
  captions = [
    f"{x['example']}: {x['loss']:.4g}\n{show_batch.describe(label, names)}"
    for x, label in zip(shown, labels, strict=True)
  ]
  title = f"step {report['step']:,}, the highest losses (example: loss)"
  show_batch.draw_sheet(file, title, pixels, captions)


def describe(report: dict) -> str:
  """Returns the most important lines of a report."""
  metrics, examples = report["metrics"].items(), report["examples"]
  bad = [x for x in examples if not np.isfinite(x["loss"])]
  first = report["first_not_finite"] or "none"
  ranked = sorted(
    (x for x in report["layers"].items() if "gradient_norm" in x[1]),
    key=lambda x: -np.nan_to_num(x[1]["gradient_norm"], nan=np.inf),
  )
  columns = COLUMNS.split()
  return "\n".join(
    [
      ", ".join(f"{k.removeprefix('train/')} {x:.6g}" for k, x in metrics),
      f"first number that is not finite: {first}",
      f"losses that are not finite: {len(bad)} of {len(examples)}",
      "highest losses:",
      *(
        f"  {x['loss']:<10.4g} {x['label']}, example {x['example']}, "
        f"{printable(x['file'])}"
        for x in examples[:SHOWN]
      ),
      table.render(
        ["largest gradients", *(x.replace("_", " ") for x in columns)],
        [
          [path, *(f"{x.get(column, np.nan):.4g}" for column in columns)]
          for path, x in ranked[:SHOWN]
        ],
      ),
      *_describe_comparison(report),
    ]
  )


def _describe_comparison(report: dict) -> list[str]:
  changes, differences = report["changed_since"], report["differences"]
  compared = report["compared_steps"]
  lines = [
    f"step {step:,}: {name} was {x!r}, is {y!r}"
    for step, found in list(differences.items())[:1]
    for name, (x, y) in found.items()
  ]
  if not compared:
    lines.append("The log has none of these steps: nothing to compare with.")
  elif not differences:
    lines.append(f"Equal to the log, bit for bit: steps {_join(compared)}.")
  elif not changes:
    lines.append(
      "Not as logged, and provenance.json names no reason: look for "
      "uncommitted changes, other data, or a config changed since."
    )
  if changes:
    listed = "; ".join(f"{k} {x}, here {y}" for k, (x, y) in changes.items())
    lines.append(f"other than in the run: {listed}")
  if {"devices", "device_kind"} & changes.keys():
    lines.append("On other devices numbers agree within rounding.")
  return lines


def _join(steps: Sequence[int]) -> str:
  return format_list([f"{step:,}" for step in steps]) or "none"


if __name__ == "__main__":
  sys.exit(main())
