# SPDX-License-Identifier: Apache-2.0
"""Fault injection: python -m benchmarks.faults [TRIAL ...] [--workdir=DIR]

Trains configs/digits.py again and again under faults injected from outside:
signals at random moments, damage to the newest checkpoint, nan in some batches,
a full disk, the loss of one of two hosts. The same command is repeated until
the run is complete, which is then compared with an undisturbed run: all
parameters, and every loss, norm and accuracy in metrics.jsonl, bit for bit. The
goodput ledger of the killed run is compared with what is seen from outside.

Takes about 25 minutes on two cores, and root for the small disk. Exits with 1
if anything differs.
"""

import contextlib
import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from mixer import weights
from mixer.cli import EX_OK, EX_TEMPFAIL, EX_USAGE, create_parser
from mixer.tools.table import render
from mixer.training.goodput import read_goodput
from mixer.training.metrics import read_rows

HEAD = ("what happened", "times", "the end, against the undisturbed run")
NAMES = tuple(
  "killed stopped damaged not_finite full_disk one_of_two_hosts".split()
)
STEPS = 2_245  # as many as the recipe has
RECIPE = (
  "--config=configs/digits.py",
  "--config.checkpoint.every_epochs=0.",
  "--config.checkpoint.every_steps=20",
  "--config.log.every_steps=1",
)
TRAIN = (sys.executable, "train.py", *RECIPE)
# This share of the signals comes within START_SECONDS, while a run imports and
# compiles, the others up to SECONDS after the first step; a run takes 90 s.
AT_START, START_SECONDS, SECONDS = 0.25, 10.0, 4.0
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def main() -> int:
  parser = create_parser("benchmarks.faults", __doc__)
  parser.add_argument("names", nargs="*", metavar="TRIAL", help=f"of {NAMES}")
  parser.add_argument("--workdir", type=Path, help="folder of the runs")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  parser.add_argument(
    "--kills", type=int, default=20, help="in the trial killed"
  )
  parser.add_argument("--epochs", type=float, default=100.0, help="of a run")
  flags = parser.parse_args()
  if unknown := {*flags.names} - {*NAMES}:
    parser.error(f"no trial {', '.join(unknown)}; there are {', '.join(NAMES)}")
  folder = flags.workdir or Path(tempfile.mkdtemp(prefix="faults_"))
  folder.mkdir(parents=True, exist_ok=True)
  trials = Trials(folder, flags.seed, flags.kills, flags.epochs)
  rows = []
  for name in flags.names or NAMES:
    rows.append(getattr(trials, name)())
    print(*rows[-1], sep="; ", flush=True)
  print(render(HEAD, rows))
  return 0 if all(str(row[2]).startswith("the same") for row in rows) else 1


@dataclasses.dataclass
class Run:
  """A digits run in processes of its own; `command` lacks --workdir."""

  folder: Path
  command: tuple[str, ...] = TRAIN
  environment: dict[str, str] = dataclasses.field(default_factory=dict)

  def start(self, *flags: str) -> subprocess.Popen:
    with self.folder.with_suffix(".log").open("a") as file:
      return subprocess.Popen(
        [*self.command, f"--workdir={self.folder}", *flags],
        env=os.environ | self.environment,
        stdout=file,
        stderr=subprocess.STDOUT,
      )

  def finish(self) -> int:
    """Starts the command, waits and returns the exit code."""
    return self.start().wait()

  @property
  def modified(self) -> int:
    """Time of the last write to metrics.jsonl in ns; 0 without the file."""
    path = self.folder / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else 0

  @property
  def log(self) -> str:
    """Output of all processes until now."""
    return self.folder.with_suffix(".log").read_text()

  @property
  def checkpoints(self) -> list[Path]:
    """Complete checkpoints, oldest first."""
    folders = (self.folder / "checkpoints").glob("*")
    steps = (path for path in folders if path.name.isdecimal())
    return sorted(steps, key=lambda path: int(path.name))


class TwoHosts(Run):
  """A run of two processes on loopback, with two simulated devices each."""

  def start(self) -> list[subprocess.Popen]:
    with socket.socket() as listener:
      listener.bind(("localhost", 0))
      coordinator = f"--coordinator=localhost:{listener.getsockname()[1]}"
    return [
      super(TwoHosts, self).start(coordinator, "--hosts=2", f"--host={host}")
      for host in range(2)
    ]

  def finish(self) -> list[int]:
    return [process.wait() for process in self.start()]


class Trials:
  """Fault trials in a folder; each returns a row of the table."""

  def __init__(self, folder: Path, seed: int, kills: int, epochs: float):
    self.rng = random.Random(seed)
    self.folder = folder
    self.kills = kills
    self.command = (*TRAIN, f"--config.total_epochs={epochs}")

  def run(self, name: str) -> Run:
    return Run(self.folder / name, self.command)

  @functools.cached_property
  def undisturbed(self) -> Run:
    """The complete run to compare with."""
    run = self.run("undisturbed")
    expect(run.finish(), EX_OK, run)
    return run

  def killed(self) -> tuple:
    """Sends SIGKILL at random moments, some of them during a save."""
    run, torn, updates = self.run("killed"), 0, 0
    began = time.time()
    for _ in range(self.kills):
      started = time.time()
      expect(self.send(run, signal.SIGKILL), -signal.SIGKILL, run)
      updates += updates_since(started, run)
      torn += bool([*(run.folder / "checkpoints").glob("*.orbax*tmp*")])
    started = time.time()
    expect(run.finish(), EX_OK, run)
    wall = time.time() - began
    updates += updates_since(started, run)
    lost = updates - read_rows(run.folder)[-1]["step"]
    return (
      f"SIGKILL, {torn} of them in a save",
      self.kills,
      verdict(differences(run, self.undisturbed))
      + compare_ledger(run, wall, lost),
    )

  def stopped(self, times: int = 5) -> tuple:
    """Sends SIGTERM, the signal of a preemption."""
    run = self.run("stopped")
    for _ in range(times):
      expect(self.send(run, signal.SIGTERM, at_start=0), EX_TEMPFAIL, run)
    return self.compare(run, "SIGTERM, each left with 75", times)

  def damaged(self) -> tuple:
    """Damages the newest of several checkpoints in every way."""
    run, noticed = self.run("damaged"), 0
    for damage in DAMAGES.values():
      while len(run.checkpoints) < 2:
        self.kill_in_training(run)
      newest = run.checkpoints[-1]
      damage(newest, self.rng)
      seen = len(run.log)
      self.kill_in_training(run)
      noticed += f"{newest} is damaged" in run.log[seen:]
    # Damage in bytes that nothing refers to goes unnoticed.
    kinds = ", ".join(DAMAGES)
    fault = f"newest checkpoint damaged ({kinds}), {noticed} noticed"
    return self.compare(run, fault, len(DAMAGES))

  def not_finite(self, times: int = 3) -> tuple:
    """Injects nan in some batches of a run that is also killed."""
    steps = sorted(self.rng.sample(range(20, STEPS), times))
    numbers = ",".join(map(str, steps))
    module = "benchmarks.train_with_nan"
    command = (sys.executable, "-m", module, numbers, *RECIPE)
    whole = Run(self.folder / "not_finite", command)
    expect(whole.finish(), EX_OK, whole)
    run = Run(self.folder / "not_finite_killed", command)
    for _ in range(3):
      expect(self.send(run, signal.SIGKILL), -signal.SIGKILL, run)
    expect(run.finish(), EX_OK, run)
    skipped = (run.folder / "skipped.jsonl").read_text().splitlines()
    if len(skipped) != times:
      raise RuntimeError(f"{len(skipped)} of {times} updates in skipped.jsonl")
    return (
      "batches not finite, skipped, in a run killed 3 times",
      times,
      verdict(differences(run, whole), "as not killed")
      + f"; test accuracy {accuracy(run):.2%}, without them "
      f"{accuracy(self.undisturbed):.2%}",
    )

  def full_disk(self) -> tuple:
    """Runs on a disk of 6 MB, too small for three checkpoints."""
    with small_disk(megabytes=6) as disk:
      run = Run(disk / "run", self.command)
      expect(run.finish(), EX_USAGE, run)
      if "No space left on device" not in run.log:
        raise RuntimeError(run.log)
      moved = self.run("full_disk")
      shutil.copytree(run.folder, moved.folder)
    return self.compare(moved, "disk of 6 MB full, left with 2", 1)

  def one_of_two_hosts(self, times: int = 4) -> tuple:
    """Sends SIGKILL to one of two hosts with two devices each."""
    whole = TwoHosts(self.folder / "two_hosts", environment=TWO_DEVICES)
    expect(whole.finish(), [EX_OK, EX_OK], whole)
    run = TwoHosts(self.folder / "two_hosts_killed", environment=TWO_DEVICES)
    for i in range(times):
      processes = run.start()
      self.wait_in_training(run, processes[0])
      processes[i % 2].kill()
      codes = [process.wait() for process in processes]
      if codes[1 - i % 2] not in (EX_TEMPFAIL, -signal.SIGABRT):
        expect(codes[1 - i % 2], EX_TEMPFAIL, run)
    expect(run.finish(), [EX_OK, EX_OK], run)
    return (
      "one of two hosts killed; the other ended with 75 or 134",
      times,
      verdict(differences(run, whole), "as two hosts undisturbed"),
    )

  def send(self, run: Run, number: int, at_start: float = AT_START) -> int:
    """Starts a run and sends it a signal; returns its exit code.

    `at_start` is the probability of a moment before the first step.
    """
    process = run.start()
    if self.rng.random() < at_start:
      time.sleep(self.rng.uniform(0, START_SECONDS))
    else:
      self.wait_in_training(run, process)
    process.send_signal(number)
    return process.wait()

  def wait_in_training(self, run: Run, process: subprocess.Popen):
    """Waits for new rows of metrics, then for a random time."""
    for _ in range(2):  # a resumed run truncates the file, then adds a row
      before = run.modified
      while process.poll() is None and run.modified == before:
        time.sleep(0.01)
    time.sleep(self.rng.uniform(0, SECONDS))

  def kill_in_training(self, run: Run):
    code = self.send(run, signal.SIGKILL, at_start=0)
    expect(code, -signal.SIGKILL, run)

  def compare(self, run: Run, fault: str, times: int) -> tuple:
    """Completes a run and compares it with the undisturbed one."""
    expect(run.finish(), EX_OK, run)
    return fault, times, verdict(differences(run, self.undisturbed))


METADATA = "_CHECKPOINT_METADATA"
# Name -> function of a checkpoint's folder and a random generator.
DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
  "arrays cut short": lambda folder, rng: _truncate(_largest(folder), rng),
  "a bit of an array flipped": lambda folder, rng: _flip(_largest(folder), rng),
  "metadata cut short": lambda folder, rng: _truncate(folder / METADATA, rng),
  "a bit of the metadata flipped": lambda folder, rng: _flip(
    folder / METADATA, rng
  ),
  "a file gone": lambda folder, rng: _largest(folder).unlink(),
}


def _largest(checkpoint: Path) -> Path:
  files = [path for path in checkpoint.rglob("*") if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def _truncate(file: Path, rng: random.Random):
  with file.open("r+b") as opened:
    opened.truncate(rng.randrange(file.stat().st_size))


def _flip(file: Path, rng: random.Random):
  content = bytearray(file.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  file.write_bytes(content)


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
  """Mounts a file system in memory, which takes root."""
  folder = Path(tempfile.mkdtemp(prefix="small_disk_"))
  options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs"]
  subprocess.run(["mount", *options, folder], check=True)
  try:
    yield folder
  finally:
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


def expect(code: object, expected: object, run: Run):
  if code != expected:
    raise RuntimeError(
      f"{run.folder} left with {code}, not {expected}: {run.log}"
    )


def differences(one: Run, other: Run) -> list[str]:
  """Lists parameters and files that are not bitwise equal in two runs."""
  ours, theirs = (
    flatten_dict(weights.load(run.folder), sep="/") for run in (one, other)
  )
  if ours.keys() != theirs.keys():
    return ["names of parameters"]
  changed = [k for k in ours if not np.array_equal(ours[k], theirs[k])]
  return changed + ["metrics.jsonl"] * (_numbers(one) != _numbers(other))


def _numbers(run: Run) -> str:
  """Returns the metrics as text, because nan is not equal to itself."""
  rows = [
    {k: v for k, v in row.items() if k.startswith(("step", "train", "eval"))}
    for row in read_rows(run.folder)
  ]
  return json.dumps(rows)


def updates_since(started: float, run: Run) -> int:
  """Returns how many updates a start has logged; 0 if it was killed before."""
  file = run.folder / "provenance.json"
  written = file.stat().st_mtime if file.exists() else 0
  if written < started or run.modified < written * 1e9:
    return 0
  first = json.loads(file.read_text())["starts"][-1]["from_step"]
  return max(0, (read_rows(run.folder) or [{"step": 0}])[-1]["step"] - first)


def compare_ledger(run: Run, wall: float, known: int) -> str:
  """Compares a ledger with the wall time and the number of lost updates."""
  line, seconds, lost = read_goodput(run.folder)
  total, steps = sum(seconds.values()), read_rows(run.folder)[-1]["step"]
  # The first interpreter's start and the last one's end are outside of it.
  is_near = abs(total - wall) <= max(2.0, 0.02 * wall)
  if not is_near or abs(lost - known) > 0.02 * steps:
    raise RuntimeError(f"{wall:.1f} s, {known} updates lost, and: {line}")
  return (
    f"; its ledger has {total:.1f} of {wall:.1f} s and {lost} of {known} lost "
    f"updates: {line}"
  )


def verdict(changed: list[str], same_as: str = "") -> str:
  if changed:
    return f"differs: {', '.join(changed[:3])}"
  return f"the same, bit for bit{same_as and f', {same_as}'}"


def accuracy(run: Run) -> float:
  return read_rows(run.folder)[-1]["eval/test/accuracy"]


if __name__ == "__main__":
  sys.exit(main())
