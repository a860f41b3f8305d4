# SPDX-License-Identifier: Apache-2.0
"""Resume on other devices: python -m benchmarks.resume [--workdir=DIR]

A place is 1, 2, 4 or 8 simulated devices of 1, 2 or 4 processes, with a whole
and with a sharded state, every second with accumulation: 18 places. In each, a
small Mixer trains on the digits undisturbed, with everything random on, and
saves in mid-epoch. Then each resumes from the checkpoint of each, beyond the
end of the epoch: 324 transitions. Images must be the same, to the byte, and
losses those of the undisturbed run in this place within TOLERANCE; in the same
place, metrics and weights bit for bit. Exits with 1 if anything differs.

Writes results/resume.json. With --workdir, a later start goes on.
"""

import contextlib
import filecmp
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixer import train, weights
from mixer.cli import EX_OK, create_parser
from mixer.cluster import Cluster
from mixer.distributed import initialize
from mixer.jax_setup import configure_xla
from mixer.tools.paper.protocols import load_recipe
from mixer.tools.table import render
from mixer.training.metrics import read_rows

SAVED, STEPS = 4, 8  # updates; an epoch ends within the seventh
TOLERANCE = 1e-4  # relative, of losses
ATTEMPTS = 5  # a busy machine may be late for a collective, which ends the run
CHANGES = {
  "total_epochs": None,
  "total_steps": STEPS,
  "batch": 16,
  "data.split": "train[:100]",
  "data.examples": 100,
  "model.hidden": 16,
  "model.blocks": 2,
  "model.tokens_mlp": 8,
  "model.channels_mlp": 32,
  "model.dropout": 0.1,
  "model.stoch_depth": 0.2,
  "optimizer.learning_rate": 0.03,
  "schedule.warmup_epochs": None,
  "schedule.warmup_steps": 2,
  "checkpoint.every_epochs": None,
  "checkpoint.every_steps": SAVED,
  "checkpoint.best": "",
  "skip_evals": "test",
  "log.every_steps": 1,
}
DONE = weights.RUN_FILE
# Not there when a run is killed right after its save; and logs.
LATER = str(STEPS), DONE, "images_*", "*.png", "*tfevents*"
HEAD = "resumed in", "transitions", "differ", "largest change of a loss"


class Place(NamedTuple):
  """Devices, in all, of a number of processes, and the modes of a run."""

  devices: int
  hosts: int
  shard_state: bool = False
  accumulation: int = 1

  def __str__(self) -> str:
    text = f"{self.devices} by {self.hosts}{' sharded' * self.shard_state}"
    return text + " accumulated" * (self.accumulation > 1)


MACHINES = [(d, h) for d in (1, 2, 4, 8) for h in (1, 2, 4) if h <= d]
PLACES = [
  Place(*machine, shard_state, 1 + (i + shard_state) % 2)
  for i, machine in enumerate(MACHINES)
  for shard_state in (False, True)
]


class Run(NamedTuple):
  """A run in a place, from the beginning or from another one's checkpoint."""

  folder: Path
  place: Place
  source: Path | None = None

  def metrics(self) -> list[dict]:
    names, rows = ("step", "train/"), read_rows(self.folder)
    return [{k: row[k] for k in row if k.startswith(names)} for row in rows]

  def images(self) -> list[list[int]]:
    """Returns the CRC-32 of the pixels of all images, [updates][batch]."""
    files = (f"images_{host}.jsonl" for host in range(self.place.hosts))
    parts = [read_rows(self.folder, file) for file in files]
    return [sum(hosts, []) for hosts in zip(*parts, strict=True)]


def main() -> int:
  parser = create_parser("benchmarks.resume", __doc__)
  parser.add_argument("--workdir", type=Path, help="folder of the runs")
  folder = parser.parse_args().workdir or Path(tempfile.mkdtemp())
  from benchmarks import curves  # slow to import, for the processes of runs
  from mixer.tools.data import prepare

  prepare("digits")
  measured = measure(folder, [*itertools.product(PLACES, repeat=2)])
  rows = []
  for kind in sorted({each["kind"] for each in measured}):
    group = [each for each in measured if each["kind"] == kind]
    change = max(each["largest_change"] for each in group)
    differ = sum(not each["holds"] for each in group)
    rows.append((kind, len(group), differ, f"{change:.1e}"))
  print(render(HEAD, rows))
  content = {"tolerance": TOLERANCE, "transitions": measured}
  curves.record(Path("results", "resume.json"), content)
  return 0 if all(each["holds"] for each in measured) else 1


def measure(
  folder: Path, transitions: Sequence[tuple[Place, Place]]
) -> list[dict]:
  """Trains in all places, then resumes; returns a dict for each transition.

  Complete runs in the folder are not repeated.
  """
  folder.mkdir(parents=True, exist_ok=True)
  places = sorted({*itertools.chain.from_iterable(transitions)})
  whole = {x: Run(folder / f"{x}", x) for x in places}
  transitions = sorted(transitions, key=lambda pair: pair[1])
  resumed = [
    Run(folder / f"{one} to {other}", other, whole[one].folder)
    for one, other in transitions
  ]
  for runs in (whole.values(), resumed):
    for _, group in itertools.groupby(runs, key=lambda run: run.place[:2]):
      train_runs([*group])
  images = whole[places[0]].images()
  return [
    {"from": f"{one}", "to": f"{other}", "kind": kind(one, other)}
    | compare(run, whole[other], images)
    for (one, other), run in zip(transitions, resumed, strict=True)
  ]


def train_runs(runs: list[Run]):
  """Trains runs on one machine, one after the other, in the same processes.

  Raises:
    RuntimeError: a run did not end in any of ATTEMPTS.
  """
  devices, hosts, *_ = runs[0].place
  flag = f"--xla_force_host_platform_device_count={devices // hosts}"
  variables = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}"}
  log, attempts = runs[0].folder.parent / f"{devices}_by_{hosts}.log", 0
  while due := [x for x in runs if not (x.folder / DONE).exists()]:
    if (attempts := attempts + 1) > ATTEMPTS:
      raise RuntimeError(f"{len(due)} runs did not end: see {log}")
    print(f"{devices} devices by {hosts}: {len(due)} runs", flush=True)
    for run in due:  # as a kill after the save would leave it
      shutil.rmtree(run.folder, ignore_errors=True)
      if run.source:
        ignored = shutil.ignore_patterns(*LATER)
        shutil.copytree(run.source, run.folder, ignore=ignored)
    with socket.socket() as listener:
      listener.bind(("localhost", 0))
      address = f"localhost:{listener.getsockname()[1]}"
    jobs = [(str(run.folder), *run.place[2:]) for run in due]
    code = "from benchmarks.resume import work; work"
    with log.open("a") as file:
      options = dict(env=os.environ | variables, stdout=file, stderr=file)
      processes = [
        subprocess.Popen(
          [sys.executable, "-c", f"{code}({(address, hosts, host)}, {jobs})"],
          **options,
        )
        for host in range(hosts)
      ]
      for process in processes:
        process.wait()


def work(cluster: tuple[str, int, int], jobs: list[tuple[str, bool, int]]):
  """Trains the runs of `jobs`, (folder, *modes), as one of the hosts.

  Hosts stay connected, the update of a mode is compiled once, and each host
  writes checksums of its images to images_HOST.jsonl.
  """
  open_batches, create_update = train.open_batches, train.create_update
  updates, compiled = {}, set()

  def record_batches(plan, hosts, start: int) -> Iterator[dict]:
    file = Path(folder, f"images_{hosts.index}.jsonl")
    batches = open_batches(plan, hosts, start)
    with contextlib.closing(batches), file.open("w", buffering=1) as lines:
      for batch in batches:
        images = np.concatenate(np.asarray(batch["image"]))  # n, h, w, 3
        lines.write(json.dumps([*map(zlib.crc32, images)]) + "\n")
        yield batch

  def create_once(*arguments, drops: bool):
    mode = *modes, drops
    update = updates.setdefault(mode, create_update(*arguments, drops=drops))

    def call(*inputs):
      if mode not in compiled:  # on all hosts, before any waits for the others
        update.lower(*inputs).compile()
        compiled.add(mode)
        hosts.gather(None)
      return update(*inputs)

    return call

  configure_xla()
  with initialize(Cluster(*cluster)) as hosts:
    train.initialize = lambda _: contextlib.nullcontext(hosts)
    train.open_batches, train.create_update = record_batches, create_once
    for folder, *modes in jobs:
      config = load_recipe("configs/digits.py")
      config.update_from_flattened_dict(CHANGES)
      config.shard_state, config.accumulation = modes
      assert train.train(config, folder) == EX_OK


def compare(run: Run, whole: Run, images: list[list[int]]) -> dict:
  """Compares a resumed run with the undisturbed one in its place.

  `images` are those of all updates of an undisturbed run in any place.
  """
  ours, theirs = run.metrics(), whole.metrics()
  change = max(
    abs(one["train/loss"] / other["train/loss"] - 1)
    for one, other in zip(ours, theirs, strict=True)
  )
  holds = [whole.images(), run.images()] == [images, images[SAVED:]]
  if run.source == whole.folder:
    files = [each.folder / DONE for each in (run, whole)]  # without dates
    holds &= ours == theirs and filecmp.cmp(*files, shallow=False)
  return {"largest_change": change, "holds": holds and change <= TOLERANCE}


def kind(one: Place, other: Place) -> str:
  if one.devices == other.devices:
    return "the same place" if one == other else "as many devices"
  return "more devices" if one.devices < other.devices else "fewer devices"


if __name__ == "__main__":
  sys.exit(main())
