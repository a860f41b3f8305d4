# SPDX-License-Identifier: Apache-2.0
"""Worker processes live as long as the loader that started them."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mixer.data import ops
from mixer.data.loader import train_batches
from mixer.data.sources import open_source
from mixer.data.workers import Workers, usable_cores

LOADS_FOR_EVER = """
import sys, time
from mixer.data import ops
from mixer.data.loader import train_batches
from mixer.data.sources import open_source
from mixer.data.workers import Workers

if __name__ == "__main__":
  source = open_source("digits", "train", sys.argv[1])
  batches = train_batches(
    source, ops.parse("resize(8)"), batch=64, seed=0,
    workers=Workers(2, "process"),
  )
  for _ in range(8):
    next(batches)
  print("loading", flush=True)
  time.sleep(600)
"""


@pytest.fixture
def loading(digits_dir, tmp_path):
  """A process that loads with two worker processes, and these."""
  script = tmp_path / "loads.py"
  script.write_text(LOADS_FOR_EVER)
  process = subprocess.Popen(
    [sys.executable, script, digits_dir],
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"},
    start_new_session=True,
  )
  assert process.stdout.readline() == "loading\n"
  workers = [
    child
    for child in psutil.Process(process.pid).children(recursive=True)
    if "spawn_main" in " ".join(child.cmdline())
  ]
  yield process, workers
  process.kill()
  process.wait()


def test_a_killed_loader_takes_its_workers_with_it(loading):
  process, workers = loading
  assert len(workers) == 2

  process.kill()

  _, alive = psutil.wait_procs(workers, timeout=20)
  assert not alive


def test_workers_are_deaf_to_what_a_terminal_or_a_scheduler_sends(loading):
  _, workers = loading

  for worker in workers:
    worker.send_signal(signal.SIGINT)
    worker.send_signal(signal.SIGTERM)

  _, alive = psutil.wait_procs(workers, timeout=1)
  assert len(alive) == 2


def test_workers_do_not_import_tensorflow(loading):
  _, workers = loading

  for worker in workers:
    mapped = {os.path.basename(region.path) for region in worker.memory_maps()}
    assert any("cv2" in name for name in mapped)
    assert not any("tensorflow" in name for name in mapped)


def test_closing_ends_worker_processes(digits_dir):
  source = open_source("digits", "train", digits_dir)
  batches = train_batches(
    source,
    ops.parse("resize(8)"),
    batch=64,
    seed=0,
    workers=Workers(2, "process"),
  )
  list(itertools.islice(batches, 2))
  assert multiprocessing.active_children()

  batches.close()

  deadline = time.monotonic() + 20
  while multiprocessing.active_children() and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not multiprocessing.active_children()


def test_there_is_one_worker_for_each_core_that_may_be_used():
  allowed = os.sched_getaffinity(0)
  try:
    os.sched_setaffinity(0, {min(allowed)})
    assert usable_cores() == 1
  finally:
    os.sched_setaffinity(0, allowed)
