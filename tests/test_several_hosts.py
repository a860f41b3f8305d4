# SPDX-License-Identifier: Apache-2.0
"""Two processes that train one model over loopback, two devices each."""

import json
import re
import signal
import subprocess

import numpy as np
import pytest
import runs
from runs import (
  ROOT,
  TIMEOUT,
  assert_same_weights,
  free_port,
  has_logged,
  read_rows,
  results,
  run,
  slowed_down,
  wait_until,
)
from test_distributed import Run
from test_own_images import CLASSES, write_images

from mixer.cli import EX_OK, EX_TEMPFAIL, EX_USAGE

ATTEMPTS = 5
STEPS = 40
SHORT = {"total_steps": STEPS, "evals.test.every_steps": 20}
# Updates, checkpoints and evaluations all need collectives.
SHARDED = {"shard_state": True}
# The CPU's collectives print lines that several threads may interleave.
GLOO_OUTPUT = re.compile(
  r"^(?:\[Gloo\] Rank |\d+| is connected to | peer ranks\. "
  r"|Expected number of connected peer ranks is : )+\n+",
  re.MULTILINE,
)


def command(digits_dir, workdir, **changes):
  return runs.command(digits_dir, workdir, **SHORT | changes)


def with_devices(environment, devices):
  flag = f" --xla_force_host_platform_device_count={devices}"
  return environment | {"XLA_FLAGS": environment["XLA_FLAGS"] + flag}


def start_hosts(arguments, environment, heartbeat=TIMEOUT):
  """Starts a command as two hosts; returns their processes."""
  flags = [
    f"--coordinator=localhost:{free_port()}",
    *("--hosts=2", f"--wait={TIMEOUT}", f"--heartbeat={heartbeat}"),
  ]
  return [
    subprocess.Popen(
      [*arguments, *flags, f"--host={host}"],
      cwd=ROOT,
      env=with_devices(environment, 2),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for host in range(2)
  ]


def end(processes):
  """Waits for all; returns [(exit code, stdout, stderr)]."""
  try:
    ended = [process.communicate(timeout=TIMEOUT) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [
    (process.returncode, GLOO_OUTPUT.sub("", output or ""), errors)
    for process, (output, errors) in zip(processes, ended, strict=True)
  ]


def is_gloo_timeout(ended):
  """Returns whether a host was late at a collective.

  Gloo gives up after 30 s, for instance while the other host still compiles on
  a busy machine. The hosts then exit with 75 or abort, and a launcher starts
  them again; so do these tests.
  """
  late = re.compile(r"Gloo.*(DEADLINE_EXCEEDED|[Tt]imed out)")
  return any(late.search(errors) for _, _, errors in ended)


def finish(arguments, environment, codes=(EX_OK, EX_OK)):
  """Runs two hosts to their end; returns as `end` does."""
  for _ in range(ATTEMPTS):
    ended = end(start_hosts(arguments, environment))
    if not is_gloo_timeout(ended):
      break
  assert tuple(code for code, *_ in ended) == codes, ended
  return ended


def start_until(workdir, step, arguments, environment):
  """Starts two hosts, and returns them after a step."""
  for _ in range(ATTEMPTS):
    processes = start_hosts(arguments, environment, heartbeat=60)
    wait_until(
      lambda processes=processes: (
        has_logged(workdir, step)
        or any(p.poll() is not None for p in processes)
      )
    )
    if all(process.poll() is None for process in processes):
      return processes
    ended = end(processes)
    assert is_gloo_timeout(ended), ended
  raise TimeoutError(ended)


@pytest.fixture(scope="module")
def by_two_hosts(digits_dir, environment, tmp_path_factory):
  """The folder of a run of two hosts, and their outputs."""
  workdir = tmp_path_factory.mktemp("by_two_hosts")
  return workdir, finish(command(digits_dir, workdir, **SHARDED), environment)


@pytest.fixture(scope="module")
def by_one_host(digits_dir, environment, tmp_path_factory):
  """The folder of the same run on one host of four devices, and its output."""
  workdir = tmp_path_factory.mktemp("by_one_host")
  done = run(command(digits_dir, workdir), with_devices(environment, 4))
  assert done.returncode == EX_OK, done.stderr
  return workdir, done.stdout


def test_two_hosts_train_as_one_with_as_many_devices(by_two_hosts, by_one_host):
  (by_two, ended), (by_one, output) = by_two_hosts, by_one_host
  ours, theirs = results(read_rows(by_two)), results(read_rows(by_one))

  assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
  for one, other in zip(ours, theirs, strict=True):
    assert one.keys() == other.keys()
    for key in one:
      np.testing.assert_allclose(one[key], other[key], rtol=2e-4, atol=1e-6)
  assert "global 32 = 2 hosts x 2 cpu x 8 x 1 accumulated" in ended[0][1]
  assert "global 32 = 1 host x 4 cpu x 8 x 1 accumulated" in output


def test_only_the_first_host_prints_and_writes(by_two_hosts):
  workdir, [(_, output, _), (_, other_output, other_errors)] = by_two_hosts

  assert f"Done: {STEPS} steps." in output
  assert other_output == ""
  assert "step" not in other_errors
  starts = json.loads((workdir / "provenance.json").read_text())["starts"]
  assert len(list(workdir.glob("events.out.tfevents.*"))) == len(starts)


def test_two_hosts_evaluate_what_they_have_trained(
  by_two_hosts, digits_dir, environment
):
  workdir, _ = by_two_hosts
  arguments = command(digits_dir, workdir)
  arguments[1] = "eval.py"

  [(_, output, _), (_, other_output, _)] = finish(arguments, environment)

  row = read_rows(workdir)[-1]
  for name in "eval/test/accuracy", "eval/test/loss":
    assert re.search(rf"{name} +{row[name]:.5f}", output)
  assert other_output == ""


def test_a_run_of_stopped_and_killed_hosts_ends_bit_for_bit_the_same(
  by_two_hosts, digits_dir, environment, tmp_path
):
  workdir, _ = by_two_hosts
  arguments = command(digits_dir, tmp_path, **SHARDED)

  # A signal to one host stops all at the same step, which takes them a second
  # or two to agree on.
  slow = slowed_down(arguments, 0.5)
  for _ in range(ATTEMPTS):
    processes = start_until(tmp_path, 3, slow, environment)
    processes[1].send_signal(signal.SIGTERM)
    if not is_gloo_timeout(ended := end(processes)):
      break
  assert [code for code, *_ in ended] == [EX_TEMPFAIL, EX_TEMPFAIL], ended
  [step] = re.findall(r"Stopped and saved at step (\d+)", ended[0][1])
  assert 3 <= int(step) < STEPS
  assert (tmp_path / "checkpoints" / step).is_dir()

  # A killed host ends all.
  processes = start_until(tmp_path, int(step) + 3, slow, environment)
  processes[0].kill()
  code, _, errors = end(processes)[1]
  assert code in (EX_TEMPFAIL, -signal.SIGABRT), errors

  again = finish(arguments, environment)
  assert "Goes on from the checkpoint of step" in again[0][1]
  assert_same_weights(workdir, tmp_path)
  assert results(read_rows(workdir)) == results(read_rows(tmp_path))


def test_sigterm_before_the_others_are_there_is_a_stop_too(
  digits_dir, environment, tmp_path
):
  coordinator = f"--coordinator=localhost:{free_port()}"
  waiting = subprocess.Popen(
    [*command(digits_dir, tmp_path), coordinator, "--hosts=2", "--host=0"],
    cwd=ROOT,
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert "waits for all of them" in waiting.stderr.readline()
  waiting.send_signal(signal.SIGTERM)

  [(code, _, errors)] = end([waiting])

  assert code == EX_TEMPFAIL
  assert "Traceback" not in errors


# Three runs that connected hosts begin, one after the other.
DIFFERENT = """
import contextlib
sys.path.append("tests")
import runs
from mixer import train, weights
from mixer.training import consistency

train.initialize = lambda _: contextlib.nullcontext(hosts)
consistency._NEW_FILE_SECONDS = 1.0  # a network's folder may be slow

def start(workdir, **changes):
  try:
    train.train(runs.small({digits_dir!r}, **changes), workdir)
  except UserError as error:
    print(error, flush=True)

home = f"{folder}/{{hosts.index}}"
changes = dict(optimizer__learning_rate=0.1, data__workers=1)
start("{folder}/run", **changes if hosts.index else {{}})
start(home)
os.environ["HOME"] = home
params = weights.load("{weights}")
params["head"]["bias"] += hosts.index
weights.save(f"{{home}}/init.npz", params)
start("{folder}/run", init="~/init.npz")
"""


def test_hosts_with_other_configs_folders_or_weights_do_not_begin(
  by_two_hosts, digits_dir, tmp_path
):
  hosts = Run(tmp_path)
  hosts.start(
    DIFFERENT.format(
      digits_dir=digits_dir, folder=tmp_path, weights=by_two_hosts[0]
    )
  )

  codes, outputs, errors = hosts.end()

  assert codes == [EX_OK] * 2, errors
  for output in outputs:
    config, folder, weights = re.split(r"\n(?=\S)", output.strip())
    assert "Host 1 has another config than host 0" in config
    assert "optimizer.learning_rate: 0.003 -> 0.1" in config
    assert "data.workers" not in config
    assert "is not the same folder on all hosts" in folder
    assert "Host 1 has other data or weights than host 0" in weights
    assert "weights: " in weights
  assert not [*tmp_path.rglob("config.json"), *tmp_path.rglob(".host_0_*")]


def test_an_evaluation_that_fails_on_one_host_costs_no_training(
  environment, tmp_path
):
  """Host 1 has the second half of each batch of 32."""
  write_images(tmp_path / "images" / "train", CLASSES, 12)
  write_images(tmp_path / "images" / "test", CLASSES, 11)
  (tmp_path / "images" / "test" / "grey" / "9.png").write_bytes(b"")
  changes = {
    "data.name": f"folder:{tmp_path / 'images'}",
    "data.examples": 0,
    "data.ops": "resize(8)",
    "model.num_classes": 3,
    "evals.test.ops": "resize(8)",
    "evals.test.examples": 0,
    "evals.test.every_steps": 4,
    "checkpoint.every_steps": 0,
    "checkpoint.best": "",
  }
  arguments = command("", tmp_path / "run", **changes)

  [first, _] = finish(arguments, environment, (EX_USAGE, EX_USAGE))

  assert "Host 1 stopped: " in first[2]
  assert (tmp_path / "run" / "checkpoints" / "4").is_dir()


def test_two_hosts_that_diverge_go_back_together(
  digits_dir, environment, tmp_path
):
  changes = {"total_steps": 20, "checkpoint.every_steps": 5, "max_skipped": 4}
  steady = command(digits_dir, tmp_path, **changes)
  bad_steps = ["-m", "benchmarks.train_with_nan", "9,10,11,12,13"]
  back = ["--from_step=5", "--accept_changes", "--config.seed=1"]

  for _, _, errors in finish(
    [steady[0], *bad_steps, *steady[2:]], environment, (EX_USAGE, EX_USAGE)
  ):
    assert "--from_step=5 --accept_changes" in errors
  [first, second] = finish([*steady, *back], environment)

  assert "seed: 0 -> 1" in first[1]
  assert second[1] == ""
  rows = read_rows(tmp_path)
  assert [row["step"] for row in rows] == list(range(1, 21))
  assert rows[-1]["train/skipped"] == 0


def test_sweeps_take_one_host(digits_dir, environment, tmp_path):
  arguments = command(digits_dir, tmp_path)
  arguments[1:2] = ["-m", "mixer", "sweep"]
  slurm = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "node[1-2]",
  }

  done = run(arguments, environment | slurm)

  assert done.returncode == EX_USAGE
  assert "this is host 0 of 2: start the sweep on one machine" in done.stderr
