# SPDX-License-Identifier: Apache-2.0
"""Worker processes live as long as the loader that started them."""

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
from runs import ROOT, TIMEOUT, wait_until

from mixer.data import pp_parser, preprocess
from mixer.data.input_pipeline import train_batches
from mixer.data.sources import open_source
from mixer.data.workers import Workers, usable_cores

LOADS_FOR_EVER = """
import signal, sys, time
from mixer.data import preprocess
from mixer.data.input_pipeline import train_batches
from mixer.data.sources import open_source
from mixer.data.workers import Workers

if __name__ == "__main__":
  signal.signal(signal.SIGINT, lambda *_: None)
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


def workers_of(process):
  return [
    child
    for child in process.children()
    if "spawn_main" in " ".join(child.cmdline())
  ]


def test_workers_are_deaf_to_signals_and_end_with_their_loader(
  digits_dir, tmp_path
):
  script = tmp_path / "loads.py"
  script.write_text(LOADS_FOR_EVER)
  process = subprocess.Popen(
    [sys.executable, script, digits_dir],
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    start_new_session=True,
  )
  parent = psutil.Process(process.pid)
  wait_until(lambda: workers_of(parent), process)

  # While they start, it must not look like a crash of the workers.
  os.killpg(process.pid, signal.SIGINT)
  assert process.stdout.readline() == "loading\n"

  workers = workers_of(parent)
  for worker in workers:
    mapped = {os.path.basename(each.path) for each in worker.memory_maps()}
    assert any("cv2" in name for name in mapped)
    assert not any("tensorflow" in name for name in mapped)
    # A terminal or a scheduler sends them.
    worker.send_signal(signal.SIGINT)
    worker.send_signal(signal.SIGTERM)
  _, alive = psutil.wait_procs(workers, timeout=1)
  assert len(alive) == 2

  process.kill()
  process.wait()
  _, alive = psutil.wait_procs(workers, timeout=TIMEOUT)
  assert not alive


def test_there_is_one_worker_for_each_core_that_may_be_used():
  allowed = os.sched_getaffinity(0)
  try:
    os.sched_setaffinity(0, {min(allowed)})
    assert usable_cores() == 1
  finally:
    os.sched_setaffinity(0, allowed)


def test_a_recipe_s_own_op_works_in_worker_processes_until_they_are_closed(
  digits_dir, tmp_path
):
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
  batches = [
    train_batches(
      open_source("digits", "train", digits_dir),
      preprocess.parse(spec),
      batch=16,
      seed=0,
      workers=Workers(1, kind),
    )
    for spec, kind in (
      ("resize(8)", "thread"),
      ("resize(8) | brighten(3)", "process"),
    )
  ]
  pp_parser.OPS.pop("brighten")

  images = [next(each)["image"] for each in batches]

  assert np.array_equal(images[0] + 3, images[1])
  assert multiprocessing.active_children()
  for each in batches:
    each.close()
  wait_until(lambda: not multiprocessing.active_children())
