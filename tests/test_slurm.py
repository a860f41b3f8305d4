# SPDX-License-Identifier: Apache-2.0
"""launch/slurm.sh, with SLURM's own programs if they are installed."""

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from launchers import (
  LAUNCH,
  RECORDS,
  SLURM_PROGRAMS,
  exits_with,
  run,
  write_program,
)


def test_a_job_is_put_back_into_the_queue_up_to_a_limit(tmp_path):
  write_program(tmp_path / "scontrol", RECORDS)
  write_program(tmp_path / "srun", "#!/bin/sh\nexit 134\n")
  environ = dict(PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="7")
  job = LAUNCH / "slurm.sh", "configs/digits.py", "runs"

  last = run(*job, **environ, SLURM_RESTART_COUNT="100")
  assert not (tmp_path / "scontrol.called").exists()
  before = run(*job, **environ, SLURM_RESTART_COUNT="99")

  assert last.returncode == before.returncode == 134
  assert "started again 100 times, no more" in last.stderr
  called = json.loads((tmp_path / "scontrol.called").read_text())
  assert called == ["requeue", "7"]


SLURM_CONF = """
ClusterName=test
FirstJobId={first_job}
SlurmctldHost={hostname}
SlurmctldAddr=127.0.0.1
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerParameters=sched_interval=1
KillWait=2
NodeName=127.0.0.1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1000
NodeName=127.0.0.2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=1000
PartitionName=all Nodes=127.0.0.[1-2] Default=YES State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
  """SLURM's own programs, with two nodes of this machine."""
  absent = [name for name in SLURM_PROGRAMS if not shutil.which(name)]
  if absent:
    pytest.skip(f"{', '.join(absent)}: slurm-wlm is not installed")
  with contextlib.ExitStack() as stack:
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    (folder / "slurm.conf").write_text(
      SLURM_CONF.format(
        hostname=socket.gethostname(),
        folder=folder,
        ports=[runs.free_port() for _ in range(3)],
        # Ports of a run follow from it: other clusters here have others.
        first_job=random.randrange(1, 1_000_000),
        user=subprocess.check_output(["id", "-un"], text=True).strip(),
      )
    )
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    for command in (
      f"munged --foreground --force --key-file={folder}/key "
      f"--socket={folder}/munge --pid-file={folder}/munge.pid "
      f"--log-file={folder}/munge.log --seed-file={folder}/munge.seed",
      "slurmctld -D",
      "slurmd -D -N 127.0.0.1",
      "slurmd -D -N 127.0.0.2",
    ):
      stack.enter_context(daemon(command.split()))
    runs.wait_until(lambda: "2 idle" in sinfo())
    stack.callback(end_jobs)
    yield folder


def end_jobs():
  """Tasks would outlive their daemons."""
  runs.wait_until(no_job_is_left)


def no_job_is_left() -> bool:
  # Again each time: a job that was cancelled may still ask to be put back.
  run("scancel", "--me")
  return not run("squeue", "--noheader").stdout


@contextlib.contextmanager
def daemon(command):
  quiet = subprocess.DEVNULL
  process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
  try:
    yield
  finally:
    process.terminate()
    process.wait(timeout=600)


def sinfo() -> str:
  return run("sinfo", "--noheader", "--format=%D %t").stdout


def fields(job: str, *names: str) -> list[str]:
  """Returns values of scontrol's NAME=VALUE."""
  words = run("scontrol", "show", "job", job).stdout.split()
  values = dict(word.split("=", 1) for word in words if "=" in word)
  return [values[name] for name in names]


def has_ended(job: str) -> bool:
  return fields(job, "JobState")[0] in ("COMPLETED", "FAILED")


def submit(folder: Path, *arguments, nodes=1, **environ) -> tuple[str, Path]:
  """Returns the job's number and its log."""
  log = folder / "log"
  log.touch()
  job = run(
    *("sbatch", "--parsable", f"--nodes={nodes}", f"--output={log}"),
    LAUNCH / "slurm.sh",
    *arguments,
    **environ,
  )
  assert job.returncode == 0, job.stderr
  return job.stdout.strip(), log


@pytest.mark.parametrize(
  "code, restarts, state",
  [(2, "0", "FAILED"), (75, "1", "PENDING"), (137, "1", "PENDING")],
)
def test_slurm_gets_a_job_back_whose_tasks_ask_for_it(
  slurm, tmp_path, code, restarts, state
):
  python = write_program(
    tmp_path / "python",
    f'#!/bin/bash\necho "$@" >{tmp_path}/called; {exits_with(code)}\n',
  )

  job, log = submit(tmp_path, "CONFIG.py", "DIR", "--more", PYTHON=str(python))

  runs.wait_until(
    lambda: fields(job, "Restarts", "JobState") == [restarts, state]
  )
  run("scancel", job)
  called = (tmp_path / "called").read_text()
  assert called == "train.py --config=CONFIG.py --workdir=DIR --more\n"


def test_every_task_of_an_array_joins_the_sweep(slurm, tmp_path):
  script = f'echo "$@" >{tmp_path}/$SLURM_ARRAY_TASK_ID; echo done'
  python = write_program(tmp_path / "python", f"#!/bin/bash\n{script}\n")
  flags = "sweep", "--config=CONFIG.py", "--workdir=DIR"
  (tmp_path / "log").touch()

  done = run(
    *("sbatch", "--wait", "--array=0-1", f"--output={tmp_path}/log"),
    *(LAUNCH / "slurm.sh", *flags),
    PYTHON=str(python),
  )

  assert done.returncode == 0, (tmp_path / "log").read_text()
  for task in "01":
    words = (tmp_path / task).read_text().split()
    assert words == ["-m", "mixer", *flags]


ONE_IS_FIRST = """#!/bin/bash
if ((SLURM_PROCID)); then
  sleep 2; touch "$0.saved"; exit 75
fi
exit 75
"""


def test_the_first_task_to_leave_does_not_cut_short_the_others(slurm, tmp_path):
  python = write_program(tmp_path / "python", ONE_IS_FIRST)

  job, log = submit(tmp_path, "CONFIG.py", "DIR", nodes=2, PYTHON=str(python))

  runs.wait_until(lambda: "exited with" in log.read_text() or has_ended(job))
  assert "exited with 75; goes back" in log.read_text()
  assert (tmp_path / "python.saved").exists()
  run("scancel", job)


DIGITS = (
  "--config.model.hidden=16",
  "--config.model.blocks=1",
  "--config.total_epochs=0.0",
  "--config.total_steps=30",
  "--config.batch=16",
  "--config.schedule.warmup_epochs=0.0",
  "--config.log.every_steps=1",
)


def test_two_tasks_of_a_job_train_save_before_its_end_and_go_on(
  slurm, tmp_path, digits_dir
):
  workdir = tmp_path / "run"
  numbers = workdir / "metrics.jsonl"

  job, log = submit(
    tmp_path,
    "configs/digits.py",
    workdir,
    *DIGITS,
    nodes=2,
    PYTHON=sys.executable,
    TFDS_DATA_DIR=digits_dir,
    XLA_FLAGS="--xla_force_host_platform_device_count=1",
  )
  runs.wait_until(
    lambda: (numbers.exists() and numbers.read_text()) or has_ended(job)
  )
  run("scancel", "--signal=TERM", job)  # what --signal sends as well
  runs.wait_until(
    lambda: (
      fields(job, "Restarts", "JobState") == ["1", "PENDING"] or has_ended(job)
    )
  )
  # Not in the same second: nodes count time in those, and take it for the old.
  run("scontrol", "update", f"jobid={job}", "StartTime=now+2")
  runs.wait_until(lambda: has_ended(job))

  assert fields(job, "JobState") == ["COMPLETED"], log.read_text()
  rows = numbers.read_text().splitlines()
  steps = [json.loads(row)["step"] for row in rows]
  assert sorted(set(steps)) == list(range(1, 31))
  assert "2 hosts x 1 cpu" in log.read_text()
