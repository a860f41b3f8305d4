# SPDX-License-Identifier: Apache-2.0
"""What is done to runs, and what comes of it, as rows of a table."""

import contextlib
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

from benchmarks.faults.runs import RECIPE, STEPS, Run, differences
from mixer.cli import EX_OK, EX_TEMPFAIL, EX_USAGE
from mixer.training.metrics import read_rows

# Of the signals, so many come while a run starts: it imports and compiles. The
# rest come when it has been training for up to SECONDS, of some ninety.
AT_START, START_SECONDS, SECONDS = 0.25, 10.0, 4.0
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


class Trials:
  """Runs in a folder, beside one that nothing happens to."""

  def __init__(self, folder: Path, seed: int):
    self.rng = random.Random(seed)
    self.folder = folder
    self.undisturbed = Run(folder / "undisturbed")
    expect(self.undisturbed.go_on(), EX_OK, self.undisturbed)

  def killed(self, times: int = 20) -> tuple:
    """SIGKILL at random moments; some come while a checkpoint is written."""
    run, torn = Run(self.folder / "killed"), 0
    for _ in range(times):
      expect(self.send(run, signal.SIGKILL), -signal.SIGKILL, run)
      torn += bool([*(run.folder / "checkpoints").glob("*.orbax*tmp*")])
    return self.finish(run, f"SIGKILL, {torn} of them in a save", times)

  def stopped(self, times: int = 5) -> tuple:
    """SIGTERM, as a preemption announces itself."""
    run = Run(self.folder / "stopped")
    for _ in range(times):
      expect(self.send(run, signal.SIGTERM, at_start=0), EX_TEMPFAIL, run)
    return self.finish(run, "SIGTERM, each left with 75", times)

  def damaged(self) -> tuple:
    """Every kind of damage to the newest of several checkpoints."""
    run, noticed = Run(self.folder / "damaged"), 0
    for damage in DAMAGES:
      while len(run.checkpoints) < 2:
        self.kill_in_training(run)
      newest = run.checkpoints[-1]
      damage(newest, self.rng)
      seen = len(run.said)
      self.kill_in_training(run)
      noticed += f"{newest} is damaged" in run.said[seen:]
    kinds = ", ".join(damage.__doc__.rstrip(".").lower() for damage in DAMAGES)
    # What is not noticed hit bytes that nothing refers to.
    what = f"newest checkpoint damaged ({kinds}), {noticed} noticed"
    return self.finish(run, what, len(DAMAGES))

  def not_finite(self, times: int = 3) -> tuple:
    """Batches that come to nan, in a run that is killed in between."""
    steps = sorted(self.rng.sample(range(20, STEPS), times))
    command = (
      sys.executable,
      "-m",
      "benchmarks.faults.not_finite",
      ",".join(map(str, steps)),
      *RECIPE,
    )
    whole = Run(self.folder / "not_finite", command)
    expect(whole.go_on(), EX_OK, whole)
    run = Run(self.folder / "not_finite_killed", command)
    for _ in range(3):
      expect(self.send(run, signal.SIGKILL), -signal.SIGKILL, run)
    expect(run.go_on(), EX_OK, run)
    written = (run.folder / "skipped.jsonl").read_text().splitlines()
    if len(written) != times:
      raise RuntimeError(f"{len(written)} of {times} updates in skipped.jsonl")
    return (
      "batches not finite, skipped, in a run killed 3 times",
      times,
      said(differences(run, whole), "as not killed")
      + f"; test accuracy {accuracy(run):.2%}, without them "
      f"{accuracy(self.undisturbed):.2%}",
    )

  def full_disk(self) -> tuple:
    """A disk of 6 MB, where three checkpoints do not fit."""
    with small_disk(megabytes=6) as disk:
      run = Run(disk / "run")
      expect(run.go_on(), EX_USAGE, run)
      if "No space left on device" not in run.said:
        raise RuntimeError(run.said)
      moved = Run(self.folder / "full_disk")
      shutil.copytree(run.folder, moved.folder)
    return self.finish(moved, "disk of 6 MB full, left with 2", 1)

  def one_of_two_hosts(self, times: int = 4) -> tuple:
    """SIGKILL to one of two hosts with two devices each."""
    whole = TwoHosts(self.folder / "two_hosts", environment=TWO_DEVICES)
    expect(whole.go_on(), [EX_OK, EX_OK], whole)
    run = TwoHosts(self.folder / "two_hosts_killed", environment=TWO_DEVICES)
    for i in range(times):
      processes = run.start()
      self.wait_in_training(run, processes[0])
      processes[i % 2].kill()
      codes = [process.wait() for process in processes]
      if codes[1 - i % 2] not in (EX_TEMPFAIL, -signal.SIGABRT):
        expect(codes[1 - i % 2], EX_TEMPFAIL, run)
    expect(run.go_on(), [EX_OK, EX_OK], run)
    return (
      "one of two hosts killed; the other ended with 75 or 134",
      times,
      said(differences(run, whole), "as two hosts undisturbed"),
    )

  def send(self, run: Run, number: int, at_start: float = AT_START) -> int:
    """Starts a run, sends it a signal at some moment; returns its exit code."""
    process = run.start()
    if self.rng.random() < at_start:
      time.sleep(self.rng.uniform(0, START_SECONDS))
    else:
      self.wait_in_training(run, process)
    process.send_signal(number)
    return process.wait()

  def wait_in_training(self, run: Run, process: subprocess.Popen):
    """Waits until rows are written, and then for some moment."""
    for _ in range(2):  # cut back at the start, then the first new row
      before = run.modified
      while process.poll() is None and run.modified == before:
        time.sleep(0.01)
    time.sleep(self.rng.uniform(0, SECONDS))

  def kill_in_training(self, run: Run):
    killed = self.send(run, signal.SIGKILL, at_start=0)
    expect(killed, -signal.SIGKILL, run)

  def finish(self, run: Run, what: str, times: int) -> tuple:
    expect(run.go_on(), EX_OK, run)
    return what, times, said(differences(run, self.undisturbed))


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

  def go_on(self) -> list[int]:
    return [process.wait() for process in self.start()]


def truncated(checkpoint: Path, rng: random.Random):
  """Arrays cut short."""
  file = _largest(checkpoint)
  with file.open("r+b") as opened:
    opened.truncate(rng.randrange(file.stat().st_size))


def flipped(checkpoint: Path, rng: random.Random):
  """A bit of an array flipped."""
  _flip(_largest(checkpoint), rng)


def truncated_record(checkpoint: Path, rng: random.Random):
  """Metadata cut short."""
  file = checkpoint / "_CHECKPOINT_METADATA"
  with file.open("r+b") as opened:
    opened.truncate(rng.randrange(file.stat().st_size))


def flipped_record(checkpoint: Path, rng: random.Random):
  """A bit of the metadata flipped."""
  _flip(checkpoint / "_CHECKPOINT_METADATA", rng)


def without_arrays(checkpoint: Path, rng: random.Random):
  """A file gone."""
  del rng
  _largest(checkpoint).unlink()


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
  truncated,
  flipped,
  truncated_record,
  flipped_record,
  without_arrays,
)


def _largest(checkpoint: Path) -> Path:
  files = [path for path in checkpoint.rglob("*") if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def _flip(file: Path, rng: random.Random):
  content = bytearray(file.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  file.write_bytes(content)


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
  """A file system of its own, in memory; mounting it takes root."""
  folder = Path(tempfile.mkdtemp(prefix="small_disk_"))
  options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs"]
  subprocess.run(["mount", *options, folder], check=True)
  try:
    yield folder
  finally:
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


def expect(code: object, wanted: object, run: Run):
  if code != wanted:
    raise RuntimeError(
      f"{run.folder} left with {code}, not {wanted}: {run.said}"
    )


def said(different: list[str], same_as: str = "") -> str:
  if different:
    return f"differs: {', '.join(different[:3])}"
  return f"the same, bit for bit{same_as and f', {same_as}'}"


def accuracy(run: Run) -> float:
  return read_rows(run.folder)[-1]["eval/test/accuracy"]
