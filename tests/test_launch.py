# SPDX-License-Identifier: Apache-2.0
"""Launchers for TPU VMs and Kubernetes, and their common rules."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from launchers import AGAIN, FLAGS, LAUNCH, RECORDS, run, write_program

from mixer.__main__ import TOOLS
from mixer.cluster import find_cluster


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
  """Leaves the check of recipes out: it takes seconds."""
  monkeypatch.setenv("PYTHON", "false")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck")
def test_shellcheck_finds_nothing():
  done = run("shellcheck", "-x", *LAUNCH.glob("*.sh"))

  assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
  "command",
  [
    "again.sh",
    "again.sh --limit=few true",
    "again.sh --nosuch true",
    "slurm.sh",
    "slurm.sh configs/digits.py",
    "slurm.sh --config=configs/digits.py",
    "slurm.sh eval",
    "slurm.sh configs/digits.py runs",  # not by sbatch
    "tpu_vm.sh",
    "tpu_vm.sh nosuch b16 --zone=z",
    "tpu_vm.sh run b16 --zone=z",
    "tpu_vm.sh run b16 --zone=z -- sweep --config=configs/digits.py",
    "tpu_vm.sh create b16 --zone=z",
    "tpu_vm.sh status b16",
    "tpu_vm.sh status B16 --zone=z",
    "gke.sh",
    "gke.sh b16 --image=i --claim=c --accelerator=tpu-v5p-slice",
    "gke.sh b16 --image=i --claim=c -- --config=c --workdir=/runs/b",
  ],
)
def test_wrong_arguments_print_the_usage(command):
  done = run(*f"{LAUNCH}/{command}".split())

  assert done.returncode == 2
  assert done.stderr.startswith("usage: ")
  assert not done.stdout


@pytest.mark.parametrize(
  "words, program",
  [
    (["train", *FLAGS], ["train.py"]),
    (["eval", *FLAGS, "--best"], ["eval.py"]),
    (["sweep", *FLAGS], ["-m", "mixer", "sweep"]),
    (["data", "prepare", "digits"], ["-m", "mixer", "data"]),
  ],
)
def test_every_launcher_starts_every_program(checkout, cloud, words, program):
  expected = [*program, *words[1:]]
  flags = ["--worker=0", "--", *words]

  tpu = tpu_vm(checkout, cloud, "run", "--dry_run", flags=flags)
  [container] = pod_of(job_set(*TPU_SLICE, flags=words))["containers"]
  slurm = run(LAUNCH / "slurm.sh", "--dry_run", *words)

  [start] = [line for line in tpu.stdout.splitlines() if "again.sh" in line]
  [command] = shlex.split(start)[-1:]
  assert "--worker=0" in tpu.stdout and "--worker=all" not in tpu.stdout
  assert shlex.split(command)[-len(expected) :] == expected
  python, *arguments = container["command"]
  arguments = [word for word in arguments if word != "--wait=1800"]
  assert [python, *arguments] == ["python", *expected]
  assert shlex.split(slurm.stdout)[-len(expected) - 1 :] == ["false", *expected]


def test_launchers_know_all_tools():
  text = (LAUNCH / "common.sh").read_text()

  [names] = re.findall(r"^    train \| eval \| (.*)\)$", text, re.MULTILINE)
  assert names.split(" | ") == sorted(TOOLS)


@pytest.mark.parametrize(
  "arguments, code, words",
  [
    ("train --config=configs/pretrain_i21k.py:B/16 --workdir=/x", 0, ""),
    (
      "eval --config=configs/evaluate.py --workdir=/x"
      " --config.model.name=Mixer-B/17",
      2,
      "config.model",
    ),
    (
      "sweep --config=configs/finetune.py:dataset=folder:/nowhere --workdir=/x",
      0,
      "not checked here: it reads its data.",
    ),
    ("eval --workdir=/runs/x", 0, ""),
    ("sweep --config=configs/finetune.py --workdir=/x --datasets=all", 0, ""),
    (
      "sweep --config=configs/finetune.py --workdir=/x"
      " --config.sweep.metric=eval/minval/accuracy",
      2,
      "did you mean eval/minival/accuracy",
    ),
  ],
)
def test_recipes_are_checked_without_their_data(
  tmp_path, monkeypatch, arguments, code, words
):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

  done = run(sys.executable, "-m", "launch.check", *arguments.split())

  assert done.returncode == code, done.stderr
  assert words in done.stderr
  assert "Traceback" not in done.stderr


def test_no_launcher_goes_on_with_a_wrong_recipe(checkout, cloud, monkeypatch):
  wrong = '#!/bin/sh\n[ "$1" = -c ] && exit\necho "$@" >&2; exit 2\n'
  write_program(cloud / "python", wrong)
  write_program(cloud / "kubectl", RECORDS)
  monkeypatch.setenv("PYTHON", str(cloud / "python"))

  for done in (
    tpu_vm(checkout, cloud, "run"),
    gke(*TPU_SLICE, dry_run=()),
    run(LAUNCH / "slurm.sh", "--dry_run", *FLAGS),
  ):
    assert done.returncode == 2
    assert "-m launch.check train --config=configs/pretrain" in done.stderr
    assert not done.stdout
  assert not calls(cloud)
  assert not (cloud / "kubectl.called").exists()


@pytest.mark.parametrize(
  "command",
  [
    "tpu_vm.sh create b16 --zone=z --type=v4-32 --project=p --dry_run",
    "gke.sh b16 --image=i --claim=c --accelerator=nvidia-l4 --hosts=2"
    " --chips=8 --dry_run -- --config=configs/digits.py --workdir=/runs/b",
  ],
)
def test_flags_take_their_value_after_a_space_too(command):
  ours, separator, theirs = command.partition(" -- ")
  spaced = ours.replace("=", " ") + separator + theirs

  done = run(*f"{LAUNCH}/{command}".split())

  assert done.returncode == 0 and done.stdout
  assert run(*f"{LAUNCH}/{spaced}".split()).stdout == done.stdout


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
# Records the calls of gcloud.
GCLOUD = f"""#!{sys.executable}
import json, os, pathlib, shutil, sys
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
  calls.write(json.dumps(sys.argv) + "\\n")
if "firewall-rules" in sys.argv:
  sys.exit(os.environ.get("FIREWALL"))
if "describe" in sys.argv:
  state, *rest = (here / "states").read_text().split()
  (here / "states").write_text(" ".join(rest or [state]))
  if state == "none":
    sys.exit("NOT_FOUND: no such thing")
  if state == "lost":
    sys.exit("no route")
  if state != "silent":
    print(state)
if "scp" in sys.argv:
  shutil.copy(sys.argv[sys.argv.index("scp") + 1], here / "mixer.bundle")
"""
PASSES = "#!/bin/sh\nexit 0\n"


@pytest.fixture
def checkout(tmp_path) -> Path:
  """Returns a checkout without uncommitted changes."""
  folder = tmp_path / "checkout"
  for part in LAUNCH, LAUNCH.parent / "configs":
    shutil.copytree(part, folder / part.name)
  git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org"]
  for command in "init", "add --all", "commit --message=All":
    assert run(*git, *command.split(), folder=folder).returncode == 0
  return folder


@pytest.fixture
def cloud(tmp_path, monkeypatch) -> Path:
  """Returns the folder in which a false gcloud records its calls."""
  folder = tmp_path / "cloud"
  folder.mkdir()
  write_program(folder / "gcloud", GCLOUD)
  (folder / "calls").touch()
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  return folder


def tpu_vm(checkout, cloud, action, *more, states="ACTIVE", flags=None):
  (cloud / "states").write_text(states)
  return run(
    checkout / "launch/tpu_vm.sh",
    action,
    "b16",
    "--zone=us-central2-b",
    "--poll=0",
    *more,
    *(flags or TPU[action]),
  )


def calls(cloud) -> list[list[str]]:
  lines = (cloud / "calls").read_text().splitlines()
  return [["gcloud", *json.loads(line)[1:]] for line in lines]


@pytest.mark.parametrize("action", TPU)
def test_a_dry_run_prints_the_commands_of_the_run(checkout, cloud, action):
  dry = tpu_vm(checkout, cloud, action, "--dry_run")
  assert dry.returncode == 0 and not calls(cloud)
  typed = run("bash", "-e", "-c", dry.stdout, folder=checkout)
  assert typed.returncode == 0
  expected = calls(cloud)
  (cloud / "calls").write_text("")

  # A dry run of resume assumes these states.
  states = "SUSPENDED ACTIVE" if action == "resume" else "ACTIVE"
  done = tpu_vm(checkout, cloud, action, states=states)

  assert done.returncode == 0
  assert calls(cloud) == expected != []


@pytest.mark.parametrize(
  ("kind", "runtime"),
  [
    ("v4-32", "tpu-ubuntu2204-base"),
    ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-128", "v2-alpha-tpuv5"),
    ("v6e-8", "v2-alpha-tpuv6e"),
  ],
)
def test_a_queued_resource_is_requested_with_the_runtime_of_its_kind(
  checkout, cloud, kind, runtime
):
  tpu_vm(checkout, cloud, "create", flags=[f"--type={kind}", "--spot"])

  *_, call = calls(cloud)
  assert call == [
    *("gcloud", "compute", "tpus", "queued-resources", "create", "b16"),
    "--zone=us-central2-b",
    "--node-id=b16",
    f"--accelerator-type={kind}",
    f"--runtime-version={runtime}",
    "--tags=mixer",
    "--spot",
  ]


@pytest.mark.parametrize(
  ("answer", "rules"),
  [
    ("The resource 'x' already exists", ["mixer-hosts", "mixer-others"]),
    ("Required 'compute.firewalls.create' permission", ["mixer-hosts"]),
  ],
)
def test_only_machines_with_the_tag_reach_the_port_if_rules_can_be_made(
  checkout, cloud, monkeypatch, answer, rules
):
  monkeypatch.setenv("FIREWALL", answer)

  done = tpu_vm(checkout, cloud, "create")

  *firewall, create = calls(cloud)
  assert done.returncode == 0
  assert [call[4] for call in firewall] == rules
  assert {"--rules=tcp:8482", "--target-tags=mixer"} <= {*firewall[-1]}
  assert {"--action=ALLOW", "--source-tags=mixer"} <= {*firewall[0]}
  assert create[3:5] == ["queued-resources", "create"]
  is_refused = "permission" in answer
  for words in answer, "Port 8482 stays as open as the network":
    assert (words in done.stderr) == is_refused


WAITS = "WAITING_FOR_RESOURCES PROVISIONING ACTIVE"


@pytest.mark.parametrize(
  "action, states, expected, words",
  [
    ("run", WAITS, 3 * "describe ", "b16 is PROVISIONING; waits."),
    ("run", "SUSPENDED", "describe", "is SUSPENDED: launch/tpu_vm.sh resume"),
    ("run", "FAILED", "describe", "b16 is FAILED: launch/tpu_vm.sh resume"),
    ("run", "none", "describe", "There is no b16: launch/tpu_vm.sh create"),
    ("run", "lost", "describe", "error: no route"),
    ("run", "silent", "describe", "gcloud reports no state of b16"),
    # Requests machines again that were taken away.
    ("resume", "none ACTIVE", "describe create describe", ""),
    ("resume", "FAILED ACTIVE", "describe delete create describe", ""),
    (
      "resume",
      "SUSPENDING SUSPENDED ACTIVE",
      "describe describe delete create describe",
      "",
    ),
    ("resume", "PROVISIONING ACTIVE", "describe describe", ""),
    ("resume", "ACTIVE", "describe describe", ""),
  ],
)
def test_the_state_of_the_machines_decides(
  checkout, cloud, action, states, expected, words
):
  done = tpu_vm(checkout, cloud, action, states=states)

  is_active = states.endswith("ACTIVE")
  starts = ["scp", "ssh", "ssh", "ssh"] if is_active else []
  assert done.returncode == (0 if is_active else 1)
  verbs = [call[4] for call in calls(cloud) if call[2] == "tpus"]
  assert verbs == [*expected.split(), *starts]
  assert words in done.stderr


def on_the_machine(cloud, command: str, **programs):
  """Runs a command of ssh, with these programs in front of the others."""
  for name, text in programs.items():
    write_program(cloud / name, text)
  return run("bash", "-c", command, folder=cloud, HOME=str(cloud))


def test_machines_get_the_commit_and_start_the_run(checkout, cloud):
  done = tpu_vm(checkout, cloud, "run")
  install, setup, start = [
    call[-1].removeprefix("--command=")
    for call in calls(cloud)
    if call[4] == "ssh"
  ]

  programs = dict(systemctl="#!/bin/sh\nexit 3\n", python3=PASSES)
  assert on_the_machine(cloud, install, **programs).returncode == 0
  assert on_the_machine(cloud, start, sudo=RECORDS).returncode == 0

  # The command that shows the log.
  logs = tpu_vm(checkout, cloud, "logs", "--dry_run", flags=["--worker=0"])
  assert f"Its log: {logs.stdout}" in done.stderr
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


def test_an_active_run_is_not_replaced(checkout, cloud):
  tpu_vm(checkout, cloud, "run")
  install = next(call[-1] for call in calls(cloud) if call[4] == "ssh")
  (cloud / "mixer").mkdir()

  done = on_the_machine(
    cloud, install.removeprefix("--command="), systemctl=PASSES
  )

  assert done.returncode == 1
  assert done.stderr == "A run is active already: stop it first.\n"
  assert not list((cloud / "mixer").iterdir())


def test_uncommitted_changes_are_refused(checkout, cloud):
  (checkout / "launch/again.sh").write_text("exit 0")

  done = tpu_vm(checkout, cloud, "resume", states="SUSPENDED")

  assert done.returncode == 2
  assert "has uncommitted changes: commit them" in done.stderr
  assert not calls(cloud)


@pytest.mark.parametrize(
  ("recipe", "workdir", "words"),
  [
    (
      "configs/digits.py",
      "runs/digits",
      "--workdir has to begin with gs:// or /: anything else lies in the "
      "machines' checkout, which the next run replaces.",
    ),
    ("configs/digits.py", "s3://bucket/run", "--workdir has to begin with gs:"),
    (
      "configs/nope.py:B/16",
      "/runs/b16",
      "The commit has no recipe configs/nope.py",
    ),
    ("configs/digits.py", "gs://bucket/run", ""),
  ],
)
def test_wrong_flags_are_refused_before_the_wait_for_machines(
  checkout, cloud, recipe, workdir, words
):
  flags = ["--", "--config", recipe, f"--workdir={workdir}"]
  done = tpu_vm(checkout, cloud, "run", "--dry_run", flags=flags)

  assert done.returncode == (2 if words else 0)
  assert words in done.stderr
  assert bool(done.stdout) != bool(words)
  if "bucket" in workdir:
    slurm = run(LAUNCH / "slurm.sh", "--dry_run", recipe, workdir)
    assert slurm.returncode == done.returncode


# gke.sh

TPU_SLICE = ["--accelerator=tpu-v5p-slice", "--topology=2x2x4"]
GPUS = ["--accelerator=nvidia-h100-80gb", "--hosts=2", "--chips=8"]


def gke(*machines, flags=FLAGS, dry_run=("--dry_run",)):
  options = "--image=r/mixer:1", "--claim=nfs", *machines, *dry_run
  return run(LAUNCH / "gke.sh", "b16", *options, "--", *flags)


def job_set(*machines, flags=FLAGS) -> dict:
  return yaml_of(*machines, flags=flags)["JobSet"]


def yaml_of(*machines, flags=FLAGS) -> dict[str, dict]:
  documents = yaml.safe_load_all(gke(*machines, flags=flags).stdout)
  return {each["kind"]: each for each in documents}


def pod_of(job_set: dict) -> dict:
  [hosts] = job_set["spec"]["replicatedJobs"]
  return hosts["template"]["spec"]["template"]["spec"]


def test_a_tpu_slice_is_one_job_of_all_its_hosts():
  made = job_set(*TPU_SLICE)

  pod = pod_of(made)
  [job] = made["spec"]["replicatedJobs"]
  [container] = pod["containers"]
  assert made["metadata"]["name"] == made["spec"]["network"]["subdomain"]
  assert job["template"]["spec"]["completionMode"] == "Indexed"
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
    "cloud.google.com/gke-tpu-topology": "2x2x4",
  }
  assert pod["terminationGracePeriodSeconds"] == 120
  assert container["image"] == "r/mixer:1"
  assert container["command"] == ["python", "train.py", "--wait=1800", *FLAGS]
  claims = {
    volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName")
    for volume in pod["volumes"]
  }
  mounts = {
    x["mountPath"]: claims[x["name"]] for x in container["volumeMounts"]
  }
  assert mounts == {"/runs": "nfs", "/dev/shm": None}


def test_lost_machines_and_the_retried_exit_codes_start_all_hosts_again():
  made = job_set(*TPU_SLICE)

  policy = made["spec"]["failurePolicy"]
  assert policy["restartStrategy"] == "BlockingRecreate"
  [rule] = policy["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  [hosts] = made["spec"]["replicatedJobs"]
  job = hosts["template"]["spec"]
  # Kubernetes takes exit codes for a policy from pods that never restart.
  assert pod_of(made)["restartPolicy"] == "Never"
  assert job["backoffLimit"] == 0
  lost, others = job["podFailurePolicy"]["rules"]
  assert lost["action"] == "Count"
  assert lost["onPodConditions"][0]["type"] == "DisruptionTarget"
  assert others["action"] == "FailJob"
  assert others["onExitCodes"] == {
    "containerName": pod_of(made)["containers"][0]["name"],
    "operator": "NotIn",
    "values": AGAIN,
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
  job = job["template"]["spec"]
  assert job["completions"] == job["parallelism"] == hosts
  assert container["resources"]["limits"] == {"google.com/tpu": limit}


def test_hosts_with_gpus_are_described_by_the_environment(monkeypatch):
  made = job_set(*GPUS)
  [container] = pod_of(made)["containers"]
  environ = {each["name"]: each["value"] for each in container["env"]}

  # Kubernetes adds this one.
  for name, value in (environ | {"JOB_COMPLETION_INDEX": "1"}).items():
    monkeypatch.setenv(name, value)
  cluster = find_cluster()

  assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
  assert pod_of(made)["nodeSelector"] == {
    "cloud.google.com/gke-accelerator": "nvidia-h100-80gb"
  }
  assert (cluster.hosts, cluster.host) == (2, 1)
  # JOBSET-JOB-REPLICA-POD.SUBDOMAIN
  assert cluster.coordinator.startswith("b16-hosts-0-0.b16:")


def test_only_pods_of_the_job_reach_its_ports():
  policy = yaml_of(*TPU_SLICE)["NetworkPolicy"]["spec"]

  # JobSet gives its pods this label.
  own = {"matchLabels": {"jobset.sigs.k8s.io/jobset-name": "b16"}}
  assert policy == {
    "policyTypes": ["Ingress"],
    "podSelector": own,
    "ingress": [{"from": [{"podSelector": own}]}],
  }


@pytest.mark.parametrize("refused", ["nothing", "NetworkPolicy"])
def test_kubectl_applies_the_output_of_a_dry_run(cloud, refused):
  write_program(
    cloud / "kubectl",
    f"#!/bin/sh\necho $@ >>{cloud}/called; echo --- >>{cloud}/yaml\n"
    f"! tee -a {cloud}/yaml | grep {refused}\n",
  )

  done = gke(*TPU_SLICE, dry_run=())

  assert done.returncode == 0
  assert (f"could not make its {refused}" in done.stderr) == ("N" in refused)
  assert "Its log: kubectl logs --follow --selector=" in done.stderr
  assert (cloud / "called").read_text() == 2 * "apply --filename=-\n"
  assert (cloud / "yaml").read_text() == "---\n" + gke(*TPU_SLICE).stdout


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
def test_wrong_machines_of_kubernetes_are_refused(machines, flags, words):
  done = gke(*machines, flags=flags)

  assert done.returncode == 2
  assert words in done.stderr and done.stderr.count("\n") == 1
  assert not done.stdout
