# SPDX-License-Identifier: Apache-2.0
"""Worker processes live as long as the loader that started them."""

import contextlib
import importlib.util
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from runs import TIMEOUT, wait_until

from mixer.data import pp_parser, preprocess
from mixer.data.input_pipeline import train_batches
from mixer.data.sources import open_source
from mixer.data.workers import Workers, usable_cores

LOADS_FOR_EVER = """
import sys, time
from mixer.data import preprocess
from mixer.data.input_pipeline import train_batches
from mixer.data.sources import open_source
from mixer.data.workers import Workers

if __name__ == "__main__":
  source = open_source("digits", "train", sys.argv[1])
  batches = train_batches(
    source, preprocess.parse("resize(8)"), batch=64, seed=0,
    workers=Workers(2, "process"),
  )
  for _ in range(8):
    next(batches)
  print("loading", flush=True)
  time.sleep(3600)
"""


ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def workers_of(process):
  return [
    child
    for child in process.children()
    if "spawn_main" in " ".join(child.cmdline())
  ]


@contextlib.contextmanager
def run_script(folder, digits_dir, text=LOADS_FOR_EVER):
  script = folder / "loads.py"
  script.write_text(text)
  process = subprocess.Popen(
    [sys.executable, script, digits_dir],
    stdout=subprocess.PIPE,
    text=True,
    env=ENVIRONMENT,
    start_new_session=True,
  )
  yield process
  process.kill()
  process.wait()


@pytest.fixture
def loading(digits_dir, tmp_path):
  """A process that loads with two worker processes, and these."""
  with run_script(tmp_path, digits_dir) as process:
    assert process.stdout.readline() == "loading\n"
    yield process, workers_of(psutil.Process(process.pid))


def test_a_killed_loader_takes_its_workers_with_it(loading):
  process, workers = loading
  assert len(workers) == 2

  process.kill()

  _, alive = psutil.wait_procs(workers, timeout=TIMEOUT)
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


@pytest.mark.parametrize("delay", [0, 0.5])
def test_workers_are_deaf_while_they_start(digits_dir, tmp_path, delay):
  """A signal at that time must not look like a crash of the workers."""
  text = LOADS_FOR_EVER.replace(
    "import sys, time",
    "import signal, sys, time\nsignal.signal(signal.SIGINT, lambda *_: None)",
  )
  with run_script(tmp_path, digits_dir, text) as process:
    parent = psutil.Process(process.pid)
    wait_until(lambda: workers_of(parent), process)
    time.sleep(delay)

    os.killpg(process.pid, signal.SIGINT)

    assert process.stdout.readline() == "loading\n"


def test_closing_ends_worker_processes(digits_dir):
  source = open_source("digits", "train", digits_dir)
  batches = train_batches(
    source,
    preprocess.parse("resize(8)"),
    batch=64,
    seed=0,
    workers=Workers(2, "process"),
  )
  list(itertools.islice(batches, 2))
  assert multiprocessing.active_children()

  batches.close()

  wait_until(lambda: not multiprocessing.active_children())


def test_there_is_one_worker_for_each_core_that_may_be_used():
  allowed = os.sched_getaffinity(0)
  try:
    os.sched_setaffinity(0, {min(allowed)})
    assert usable_cores() == 1
  finally:
    os.sched_setaffinity(0, allowed)


def test_a_recipe_s_own_op_works_in_worker_processes(digits_dir, tmp_path):
  recipe = tmp_path / "recipe.py"
  recipe.write_text(
    "from __future__ import annotations\n"
    "from mixer.data.preprocess import op\n"
    '@op("brighten")\n'
    "class Brighten:\n"
    "  by: int\n"
    "  def __call__(self, image, rng):\n"
    "    return image + self.by\n"
  )
  # As config_flags loads it: under a name that nobody can import.
  spec = importlib.util.spec_from_file_location("config_config", recipe)
  module = importlib.util.module_from_spec(spec)
  sys.modules["config_config"] = module
  spec.loader.exec_module(module)
  source = open_source("digits", "train", digits_dir)
  images = [
    next(
      train_batches(
        source,
        preprocess.parse(spec),
        batch=16,
        seed=0,
        workers=Workers(1, "process"),
      )
    )["image"]
    for spec in ("resize(8)", "resize(8) | brighten(3)")
  ]

  assert np.array_equal(images[0] + 3, images[1])

  pp_parser.OPS.pop("brighten")
