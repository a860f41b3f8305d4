# SPDX-License-Identifier: Apache-2.0
"""The scripts that start runs on pods and start them again."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mixer import front_door
from mixer.hosts import find_cluster

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
AGAIN = [front_door.START_AGAIN, 128 + signal.SIGABRT, 128 + signal.SIGKILL]
FLAGS = [
  "--config=configs/pretrain_i21k.py:B/16",
  "--workdir=/runs/b16",
  """--config.data.ops=a("b") | c('d') & \\e {name} $HOME""",
]
SLURM_PROGRAMS = "munged", "slurmctld", "slurmd", "sbatch", "srun"


def run(*command, folder=ROOT, **environ) -> subprocess.CompletedProcess:
  return subprocess.run(
    [str(word) for word in command],
    cwd=folder,
    env=os.environ | environ,
    capture_output=True,
    text=True,
    timeout=60,
  )


def write_program(path: Path, text: str) -> Path:
  path.write_text(text)
  path.chmod(0o755)
  return path


@pytest.mark.parametrize(
  "script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name
)
def test_shellcheck_has_nothing_to_say(script):
  if not shutil.which("shellcheck"):
    pytest.skip("shellcheck is not installed")

  done = run("shellcheck", script)

  assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
  "command",
  [
    "again.sh",
    "again.sh --limit=few true",
    "again.sh --nosuch true",
    "slurm.sh",
    "slurm.sh configs/digits.py",
    "slurm.sh --config=configs/digits.py --workdir=runs",
    "slurm.sh configs/digits.py runs",  # not by sbatch
    "tpu_vm.sh",
    "tpu_vm.sh nosuch b16 --zone=z",
    "tpu_vm.sh run b16 --zone=z",
    "tpu_vm.sh create b16 --zone=z",
    "tpu_vm.sh status b16",
    "tpu_vm.sh status B16 --zone=z",
    "gke.sh",
    "gke.sh b16 --image=i --claim=c --accelerator=tpu-v5p-slice",
    "gke.sh b16 --image=i --claim=c -- --config=c --workdir=/runs/b",
  ],
)
def test_wrong_arguments_end_in_how_to_use_it(command):
  done = run(*f"{LAUNCH}/{command}".split())

  assert done.returncode == 2
  assert done.stderr.startswith("usage: ")
  assert not done.stdout


# again.sh


def leaves_with(code: int) -> str:
  """In the shell; a code that stands for a signal is left with by it."""
  return f"kill -{code - 128} $$" if code > 128 else f"exit {code}"


def again(*command, **options) -> list[str]:
  options = {"pause": 0} | options
  flags = [f"--{name}={value}" for name, value in options.items()]
  return [str(LAUNCH / "again.sh"), *flags, *map(str, command)]


@pytest.mark.parametrize("code", AGAIN)
def test_a_command_that_asks_for_it_is_started_again(tmp_path, code):
  script = f"echo >> starts; (($(wc -l < starts) == 3)) || {leaves_with(code)}"

  done = run(*again("bash", "-c", script), folder=tmp_path)

  assert done.returncode == 0
  assert (tmp_path / "starts").read_text() == 3 * "\n"
  assert f"left with {code} after 0 s; starts again (2 of" in done.stderr


@pytest.mark.parametrize("code", [0, 1, 2, 127, 139])
def test_any_other_exit_code_is_passed_on_at_once(tmp_path, code):
  script = f"echo >> starts; {leaves_with(code)}"

  done = run(*again("bash", "-c", script), folder=tmp_path)

  assert done.returncode == code
  assert (tmp_path / "starts").read_text() == "\n"


def test_starting_again_has_a_limit(tmp_path):
  command = again("bash", "-c", "echo >> starts; exit 75", limit=7, quick=0)

  done = run(*command, folder=tmp_path)

  assert done.returncode == 75
  assert (tmp_path / "starts").read_text() == 8 * "\n"
  assert "started again 7 times, no more" in done.stderr


def test_quick_failures_in_a_row_have_a_smaller_limit(tmp_path):
  # The third takes longer, after which counting begins anew.
  script = "echo >> starts; (($(wc -l < starts) == 3)) && sleep 2; exit 75"

  done = run(*again("bash", "-c", script, quick=2), folder=tmp_path)

  assert done.returncode == 75
  assert (tmp_path / "starts").read_text() == 8 * "\n"
  assert "within 2 s 5 times in a row" in done.stderr


SAVES_SLOWLY = """
import signal, sys, time
received = []
for number in signal.SIGTERM, signal.SIGINT:
  signal.signal(number, lambda number, _: received.append(number))
print("started", flush=True)
while not received:
  time.sleep(0.01)
time.sleep(0.5)
print("saved after", *map(int, received), flush=True)
sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_and_nothing_starts_again(number):
  command = again(sys.executable, "-c", SAVES_SLOWLY)
  with started(command) as process:
    assert process.stdout.readline() == "started\n"

    os.killpg(process.pid, number)  # as Ctrl-C does, to all in the foreground

    assert process.communicate(timeout=30) == (f"saved after {number}\n", "")
  assert process.returncode == 75


def test_a_signal_ends_the_pause_before_the_next_start():
  command = again("bash", "-c", "exit 75", pause=50)
  with started(command) as process:
    assert "starts again" in process.stderr.readline()

    process.terminate()

    assert process.communicate(timeout=30)[0] == ""
  assert process.returncode == 75


@contextlib.contextmanager
def started(command):
  process = subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  with process:
    try:
      yield process
    finally:
      process.kill()


# tpu_vm.sh

TPU = {
  "create": ["--type=v4-32", "--spot"],
  "run": ["--setup=sudo mount $BUCKET 'a b'", "--", *FLAGS],
  "resume": ["--type=v4-32", "--spot", "--setup=true", "--", *FLAGS],
  "status": [],
  "logs": ["--worker=3"],
  "stop": [],
  "delete": [],
}
# The boundary: what is recorded here, gcloud would have been called with.
GCLOUD = f"""#!{sys.executable}
import json, pathlib, shutil, sys
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
  calls.write(json.dumps(sys.argv) + "\\n")
if "describe" in sys.argv:
  state, *rest = (here / "states").read_text().split()
  (here / "states").write_text(" ".join(rest or [state]))
  print(state)
if "scp" in sys.argv:
  shutil.copy(sys.argv[sys.argv.index("scp") + 1], here / "mixer.bundle")
"""
PASSES = "#!/bin/sh\nexit 0\n"
RECORDS = f"""#!{sys.executable}
import json, sys
json.dump(sys.argv[1:], open(sys.argv[0] + ".called", "w"))
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
  """One in which all is committed."""
  folder = tmp_path / "checkout"
  shutil.copytree(LAUNCH, folder / "launch")
  git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org"]
  for command in "init", "add --all", "commit --message=All":
    assert run(*git, *command.split(), folder=folder).returncode == 0
  return folder


@pytest.fixture
def cloud(tmp_path, monkeypatch) -> Path:
  """A folder in which gcloud notes its calls."""
  folder = tmp_path / "cloud"
  folder.mkdir()
  write_program(folder / "gcloud", GCLOUD)
  (folder / "calls").touch()
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  return folder


def tpu_vm(checkout, cloud, what, *more, states="ACTIVE"):
  (cloud / "states").write_text(states)
  return run(
    checkout / "launch/tpu_vm.sh",
    what,
    "b16",
    "--zone=us-central2-b",
    "--poll=0",
    *more,
    *TPU[what],
  )


def calls(cloud) -> list[list[str]]:
  lines = (cloud / "calls").read_text().splitlines()
  return [["gcloud", *json.loads(line)[1:]] for line in lines]


def verbs(cloud) -> list[str]:
  return [call[4] for call in calls(cloud)]


@pytest.mark.parametrize("what", TPU)
def test_a_dry_run_prints_exactly_what_is_run(checkout, cloud, what):
  dry = tpu_vm(checkout, cloud, what, "--dry_run")
  assert dry.returncode == 0 and not calls(cloud)
  typed = run("bash", "-e", "-c", dry.stdout, folder=checkout)
  assert typed.returncode == 0
  expected = calls(cloud)
  (cloud / "calls").write_text("")

  # resume supposes that the cloud answers this.
  states = "SUSPENDED ACTIVE" if what == "resume" else "ACTIVE"
  done = tpu_vm(checkout, cloud, what, states=states)

  assert done.returncode == 0
  assert calls(cloud) == expected != []


def test_a_queued_resource_is_asked_for_by_the_names_given(checkout, cloud):
  tpu_vm(checkout, cloud, "create")

  [call] = calls(cloud)
  assert call == [
    *("gcloud", "compute", "tpus", "queued-resources", "create", "b16"),
    "--zone=us-central2-b",
    "--node-id=b16",
    "--accelerator-type=v4-32",
    "--runtime-version=tpu-ubuntu2204-base",
    "--spot",
  ]


def test_a_run_waits_for_its_machines(checkout, cloud):
  states = "WAITING_FOR_RESOURCES PROVISIONING ACTIVE"

  done = tpu_vm(checkout, cloud, "run", states=states)

  assert done.returncode == 0
  assert verbs(cloud) == 3 * ["describe"] + ["scp"] + 3 * ["ssh"]
  assert "b16 is PROVISIONING; waits." in done.stderr


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_a_run_on_lost_machines_says_how_to_resume(checkout, cloud, state):
  done = tpu_vm(checkout, cloud, "run", states=state)

  assert done.returncode == 1
  assert f"b16 is {state}: launch/tpu_vm.sh resume" in done.stderr
  assert verbs(cloud) == ["describe"]


@pytest.mark.parametrize(
  "states, expected",
  [
    ("SUSPENDED ACTIVE", "describe delete create describe"),
    ("FAILED PROVISIONING ACTIVE", "describe delete create describe describe"),
    ("SUSPENDING SUSPENDED ACTIVE", "describe describe delete create describe"),
    ("ACTIVE", "describe describe"),
    ("WAITING_FOR_RESOURCES ACTIVE", "describe describe"),
  ],
)
def test_resume_asks_anew_for_machines_that_were_taken_away(
  checkout, cloud, states, expected
):
  done = tpu_vm(checkout, cloud, "resume", states=states)

  assert done.returncode == 0
  assert verbs(cloud) == [*expected.split(), "scp", "ssh", "ssh", "ssh"]


def on_the_machine(cloud, command: str, **programs):
  """Runs what ssh was given, with these programs in front of the others."""
  for name, text in programs.items():
    write_program(cloud / name, text)
  return run("bash", "-c", command, folder=cloud, HOME=str(cloud))


def test_machines_get_the_commit_and_start_the_run(checkout, cloud):
  tpu_vm(checkout, cloud, "run")
  install, setup, start = [
    call[-1].removeprefix("--command=")
    for call in calls(cloud)
    if call[4] == "ssh"
  ]

  programs = dict(systemctl="#!/bin/sh\nexit 3\n", python3=PASSES)
  assert on_the_machine(cloud, install, **programs).returncode == 0
  assert on_the_machine(cloud, start, sudo=RECORDS).returncode == 0

  commits = [
    run("git", "rev-parse", "HEAD", folder=folder).stdout
    for folder in (checkout, cloud / "mixer")
  ]
  assert commits[0] == commits[1]
  assert setup == "sudo mount $BUCKET 'a b'"
  [service, *options] = json.loads((cloud / "sudo.called").read_text())
  there = f"{cloud}/mixer"
  assert service == "systemd-run"
  assert options[-6:] == [
    *(f"{there}/launch/again.sh", f"{there}/.venv/bin/python", "train.py"),
    *FLAGS,
  ]
  assert {
    "--unit=mixer",
    f"--working-directory={there}",
    "--property=KillMode=mixed",
  } <= set(options)


def test_a_run_that_is_under_way_is_left_alone(checkout, cloud):
  tpu_vm(checkout, cloud, "run")
  install = next(call[-1] for call in calls(cloud) if call[4] == "ssh")
  (cloud / "mixer").mkdir()

  done = on_the_machine(
    cloud, install.removeprefix("--command="), systemctl=PASSES
  )

  assert done.returncode == 1
  assert done.stderr == "A run is under way already: stop it first.\n"
  assert not list((cloud / "mixer").iterdir())


def test_a_commit_must_hold_what_runs(checkout, cloud):
  (checkout / "launch/again.sh").write_text("exit 0")

  done = tpu_vm(checkout, cloud, "resume", states="SUSPENDED")

  assert done.returncode == 2
  assert "changes that no commit holds: commit them" in done.stderr
  assert not calls(cloud)


def test_a_bucket_is_not_a_run_folder(checkout, cloud):
  flags = "--", "--config=c", "--workdir=gs://bucket/run"
  commands = [
    ("tpu_vm.sh", "run", "b16", "--zone=z", *flags),
    ("slurm.sh", "--dry_run", "c", "gs://bucket/run"),
  ]

  for name, *arguments in commands:
    done = run(checkout / "launch" / name, *arguments, folder=checkout)
    assert done.returncode == 2
    assert "mount the bucket" in done.stderr and "name a folder" in done.stderr
  assert not calls(cloud)


# gke.sh

TPU_SLICE = ["--accelerator=tpu-v5p-slice", "--topology=2x2x4"]
GPUS = ["--accelerator=nvidia-h100-80gb", "--hosts=2", "--chips=8"]


def gke(*machines, flags=FLAGS, dry_run=("--dry_run",)):
  given = "--image=r/mixer:1", "--claim=nfs", *machines, *dry_run
  return run(LAUNCH / "gke.sh", "b16", *given, "--", *flags)


def job_set(*machines) -> dict:
  return yaml.safe_load(gke(*machines).stdout)


def pod_of(job_set: dict) -> dict:
  [hosts] = job_set["spec"]["replicatedJobs"]
  return hosts["template"]["spec"]["template"]["spec"]


def test_a_tpu_slice_is_one_job_of_all_its_hosts():
  made = job_set(*TPU_SLICE)

  spec, pod = made["spec"], pod_of(made)
  [job] = spec["replicatedJobs"]
  assert made["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert made["kind"] == "JobSet"
  assert made["metadata"] == {
    "name": "b16",
    "annotations": {
      "alpha.jobset.sigs.k8s.io/exclusive-topology": (
        "cloud.google.com/gke-nodepool"
      )
    },
  }
  assert spec["network"] == {"enableDNSHostnames": True, "subdomain": "b16"}
  assert (job["name"], job["replicas"]) == ("hosts", 1)
  job = job["template"]["spec"]
  assert job["completionMode"] == "Indexed"
  assert job["completions"] == job["parallelism"] == 4
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
    "cloud.google.com/gke-tpu-topology": "2x2x4",
  }
  assert pod["terminationGracePeriodSeconds"] == 120
  [container] = pod["containers"]
  assert container["image"] == "r/mixer:1"
  assert container["resources"] == {"limits": {"google.com/tpu": 4}}
  assert container["command"] == ["python", "train.py"]
  assert container["args"] == ["--wait=1800", *FLAGS]
  claims = {
    volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName")
    for volume in pod["volumes"]
  }
  mounts = {
    x["mountPath"]: claims[x["name"]] for x in container["volumeMounts"]
  }
  assert mounts == {"/runs": "nfs", "/dev/shm": None}


def test_a_job_starts_all_again_after_a_lost_machine_and_the_codes_for_it():
  made = job_set(*TPU_SLICE)

  assert made["spec"]["failurePolicy"] == {
    "maxRestarts": 100,
    "restartStrategy": "BlockingRecreate",
    "rules": [
      {
        "name": "lasting",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
      }
    ],
  }
  [hosts] = made["spec"]["replicatedJobs"]
  job = hosts["template"]["spec"]
  # Kubernetes takes exit codes for a policy from pods that never restart.
  assert pod_of(made)["restartPolicy"] == "Never"
  assert job["backoffLimit"] == 0
  lost, others = job["podFailurePolicy"]["rules"]
  assert lost == {
    "action": "Count",
    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
  }
  assert others == {
    "action": "FailJob",
    "onExitCodes": {
      "containerName": pod_of(made)["containers"][0]["name"],
      "operator": "NotIn",
      "values": AGAIN,
    },
  }


@pytest.mark.parametrize(
  "topology, chips, hosts, limit",
  [
    ("16x16", 4, 64, 4),
    ("2x4", 8, 1, 8),
    ("2x2", 8, 1, 4),
    ("4x4x8", 4, 32, 4),
  ],
)
def test_the_hosts_of_a_topology(topology, chips, hosts, limit):
  made = job_set(
    "--accelerator=tpu-v6e-slice", f"--topology={topology}", f"--chips={chips}"
  )

  [job] = made["spec"]["replicatedJobs"]
  [container] = pod_of(made)["containers"]
  assert job["template"]["spec"]["completions"] == hosts
  assert container["resources"]["limits"] == {"google.com/tpu": limit}


def test_hosts_with_gpus_learn_of_each_other_from_the_environment():
  made = job_set(*GPUS)
  [container] = pod_of(made)["containers"]
  environ = {each["name"]: each["value"] for each in container["env"]}

  # Kubernetes adds this one.
  cluster = find_cluster(environ=environ | {"JOB_COMPLETION_INDEX": "1"})

  assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
  assert pod_of(made)["nodeSelector"] == {
    "cloud.google.com/gke-accelerator": "nvidia-h100-80gb"
  }
  assert (cluster.hosts, cluster.host) == (2, 1)
  # JOBSET-JOB-REPLICA-POD.SUBDOMAIN
  assert cluster.coordinator.startswith("b16-hosts-0-0.b16:")


def test_kubectl_applies_what_a_dry_run_prints(cloud):
  write_program(
    cloud / "kubectl", f"#!/bin/sh\necho $@ >{cloud}/called; cat >{cloud}/yaml"
  )

  done = gke(*TPU_SLICE, dry_run=())

  assert done.returncode == 0
  assert (cloud / "called").read_text() == "apply --filename=-\n"
  assert (cloud / "yaml").read_text() == gke(*TPU_SLICE).stdout


@pytest.mark.parametrize(
  "machines, flags, words",
  [
    (["--accelerator=tpu-v5p-slice", "--topology=big"], FLAGS, "--topology=2x"),
    ([*TPU_SLICE, "--chips=3"], FLAGS, "3 chips a host do not divide the 16"),
    (["--accelerator=nvidia-l4"], FLAGS, "nvidia-l4 takes --hosts=N"),
    ([*TPU_SLICE, "--hosts=4"], FLAGS, "no --hosts"),
    (TPU_SLICE, ["--config=c", "--workdir=runs/b16"], "--workdir=/runs/DIR"),
  ],
)
def test_what_kubernetes_could_not_run_is_refused(machines, flags, words):
  done = gke(*machines, flags=flags)

  assert done.returncode == 2
  assert words in done.stderr and done.stderr.count("\n") == 1
  assert not done.stdout


# slurm.sh


def test_a_job_is_put_back_into_the_queue_up_to_a_limit(tmp_path):
  """SLURM_RESTART_COUNT as SLURM documents it."""
  write_program(tmp_path / "scontrol", RECORDS)
  write_program(tmp_path / "srun", "#!/bin/sh\nexit 75\n")
  environ = dict(PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="7")
  job = LAUNCH / "slurm.sh", "configs/digits.py", "runs"

  last = run(*job, **environ, SLURM_RESTART_COUNT="100")
  assert not (tmp_path / "scontrol.called").exists()
  before = run(*job, **environ, SLURM_RESTART_COUNT="99")

  assert last.returncode == before.returncode == 75
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


def free_ports(count: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [
      stack.enter_context(socket.create_server(("127.0.0.1", 0)))
      for _ in range(count)
    ]
    return [each.getsockname()[1] for each in sockets]


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
        ports=free_ports(3),
        # Ports of a run follow from it: clusters beside this one have others.
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
    await_that(lambda: "2 idle" in sinfo(), sinfo)
    stack.callback(end_jobs)
    yield folder


def end_jobs():
  """Tasks would outlive their daemons."""
  run("scancel", "--state=PENDING,RUNNING")
  await_that(lambda: not squeue(), squeue)


def squeue() -> str:
  return run("squeue", "--noheader").stdout


@contextlib.contextmanager
def daemon(command):
  quiet = subprocess.DEVNULL
  process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
  try:
    yield
  finally:
    process.terminate()
    process.wait(timeout=30)


def await_that(happened, describe):
  deadline = time.monotonic() + 240  # where others work too
  while not happened():
    assert time.monotonic() < deadline, describe()
    time.sleep(0.1)


def sinfo() -> str:
  return run("sinfo", "--noheader", "--format=%D %t").stdout


def fields(job: str, *names: str) -> list[str]:
  """Of scontrol's NAME=VALUE."""
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
  [
    (0, "0", "COMPLETED"),
    (2, "0", "FAILED"),
    *((code, "1", "PENDING") for code in AGAIN),
  ],
)
def test_slurm_gets_a_job_back_whose_tasks_ask_for_it(
  slurm, tmp_path, code, restarts, state
):
  python = write_program(
    tmp_path / "python",
    f'#!/bin/bash\necho "$@" >{tmp_path}/called; {leaves_with(code)}\n',
  )

  job, log = submit(tmp_path, "CONFIG", "DIR", "--more", PYTHON=str(python))

  await_that(
    lambda: fields(job, "Restarts", "JobState") == [restarts, state],
    lambda: f"{fields(job, 'Restarts', 'JobState')}\n{log.read_text()}",
  )
  run("scancel", job)
  called = (tmp_path / "called").read_text()
  assert called == "train.py --config=CONFIG --workdir=DIR --more\n"


ONE_IS_FIRST = """#!/bin/bash
if ((SLURM_PROCID)); then
  sleep 2; touch "$0.saved"; exit 75
fi
exit 75
"""


def test_the_first_task_to_leave_does_not_cut_short_the_others(slurm, tmp_path):
  python = write_program(tmp_path / "python", ONE_IS_FIRST)

  job, log = submit(tmp_path, "CONFIG", "DIR", nodes=2, PYTHON=str(python))

  await_that(
    lambda: "left with" in log.read_text() or has_ended(job), log.read_text
  )
  assert "left with 75; goes back" in log.read_text()
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
    JAX_DISABLE_MOST_OPTIMIZATIONS="true",
    XLA_FLAGS="--xla_force_host_platform_device_count=1",
  )
  await_that(
    lambda: (numbers.exists() and numbers.read_text()) or has_ended(job),
    log.read_text,
  )
  run("scancel", "--signal=TERM", job)  # what --signal sends as well
  await_that(
    lambda: (
      fields(job, "Restarts", "JobState") == ["1", "PENDING"] or has_ended(job)
    ),
    log.read_text,
  )
  # Not in the same second: nodes count time in those, and take it for the old.
  run("scontrol", "update", f"jobid={job}", "StartTime=now+2")
  await_that(lambda: has_ended(job), log.read_text)

  assert fields(job, "JobState") == ["COMPLETED"], log.read_text()
  rows = numbers.read_text().splitlines()
  steps = [json.loads(row)["step"] for row in rows]
  assert sorted(set(steps)) == list(range(1, 31))
  assert "2 hosts x 1 cpu" in log.read_text()
