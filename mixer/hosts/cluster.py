# SPDX-License-Identifier: Apache-2.0
"""Who the hosts of a run are, by its flags or by what started it."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

from mixer.errors import UserError
from mixer.hosts import metadata_server

# On machines that the run has to itself. libtpu uses ports from 8471 on, the
# slices of a TPU use 8080.
PORT = 8492
FLAGS = "--coordinator=HOST:PORT", "--hosts=N", "--host=I"

Environment = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The hosts of a run, and which of them this process is.

  What is called a host is a process: one a machine, unless SLURM starts more.
  """

  coordinator: str = ""  # HOST:PORT of host 0; jax.distributed has PORT + 1
  hosts: int = 1
  host: int = 0
  origin: str = ""  # what says so, in words
  local_devices: tuple[int, ...] | None = None  # None: all of the machine
  wait: float = 300.0  # seconds for all to arrive

  @property
  def address(self) -> tuple[str, int]:
    name, _, port = self.coordinator.rpartition(":")
    return name.strip("[]"), int(port)

  @property
  def jax_coordinator(self) -> str:
    name, _, port = self.coordinator.rpartition(":")
    return f"{name}:{int(port) + 1}"


ONE_HOST = Cluster()


def find_cluster(
  *,
  coordinator: str | None = None,
  hosts: int | None = None,
  host: int | None = None,
  environ: Environment = os.environ,
  root: Path = Path("/"),
) -> Cluster:
  """Returns the cluster that the flags name, or else the environment.

  The environment is that of SLURM, of a TPU slice on Kubernetes, of other jobs
  on Kubernetes, or of a TPU VM, which asks the metadata server of its cloud. No
  other machine asks anything of a network.

  Args:
    coordinator: HOST:PORT of host 0; with `hosts` and `host`, or none of them.
    hosts: how many there are.
    host: which one this is, from 0.
    environ: the environment variables.
    root: the folder of the machine's dev/ and sys/.

  Raises:
    UserError: half of it is given, or it makes no sense.
  """
  cluster = (
    _from_flags(coordinator, hosts, host)
    or _from_slurm(environ)
    or _from_tpu_job(environ)
    or _from_kubernetes(environ)
    or _from_tpu_vm(environ, root)
  )
  if cluster is None or cluster.hosts == 1:
    return Cluster()
  return cluster


def _from_flags(
  coordinator: str | None, hosts: int | None, host: int | None
) -> Cluster | None:
  given = coordinator, hosts, host
  missing = [
    flag
    for flag, value in zip(FLAGS, given, strict=True)
    if value is None or value == ""
  ]
  if len(missing) == len(FLAGS):
    return None
  if missing:
    raise UserError(
      f"{', '.join(FLAGS[:2])} and {FLAGS[2]} go together: add "
      f"{' and '.join(missing)}."
    )
  return _checked(
    Cluster(coordinator, hosts, host, "--coordinator"), "--coordinator"
  )


def _checked(cluster: Cluster, coordinator_name: str) -> Cluster:
  """Returns the cluster if its numbers make sense."""
  name, _, port = cluster.coordinator.rpartition(":")
  if not (name and port.isdecimal() and 1 <= int(port) <= 65534):
    raise UserError(
      f"{coordinator_name}={cluster.coordinator} is not HOST:PORT with a PORT "
      "from 1 to 65534 (the one after it is used as well), such as "
      f"10.0.0.1:{PORT}."
    )
  if not 0 <= cluster.host < cluster.hosts:
    raise UserError(
      f"There is no host {cluster.host} of {cluster.hosts} "
      f"({cluster.origin}): hosts are counted from 0."
    )
  return cluster


def _number(environ: Environment, name: str) -> int:
  value = environ.get(name, "")
  if not value.isdecimal():
    raise UserError(
      f"The environment has {name}={value!r}: set it to a number."
    )
  return int(value)


def _from_slurm(environ: Environment) -> Cluster | None:
  if not {"SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID"} <= environ.keys():
    return None
  tasks, job = _number(environ, "SLURM_NTASKS"), environ["SLURM_JOB_ID"]
  if tasks == 1:
    return None
  if "SLURM_STEP_NODELIST" not in environ:
    # What srun has not started has SLURM_PROCID 0 as well.
    raise UserError(
      f"SLURM job {job} has {tasks} tasks, and this is the job's script, not "
      "one of them: begin the command with srun, or with srun --ntasks=1."
    )
  # In pairs, below those that systems give to outgoing connections.
  step = int(environ.get("SLURM_STEP_ID", 0))
  port = 20000 + (_number(environ, "SLURM_JOB_ID") + step) % 5000 * 2
  first = first_node(environ["SLURM_STEP_NODELIST"])
  return _checked(
    Cluster(
      f"{first}:{port}",
      tasks,
      _number(environ, "SLURM_PROCID"),
      f"SLURM job {job}",
      _share_of_devices(environ),
    ),
    "SLURM_STEP_NODELIST",
  )


def first_node(nodes: str) -> str:
  """Returns the first of SLURM's list, such as rack[1-2]n[01-16,20],login."""
  first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0]
  return re.sub(r"\[([^,\-\]]*)[^\]]*\]", r"\1", first)


def _share_of_devices(environ: Environment) -> tuple[int, ...] | None:
  """Devices of this task, where several tasks share a node."""
  tasks = _tasks_on_node(environ)
  if tasks == 1:
    return None
  local = _number(environ, "SLURM_LOCALID")
  visible = [x for x in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if x]
  if visible and len(visible) < tasks:
    return None  # SLURM shows each task its own, as with --gpus-per-task
  share = max(len(visible) // tasks, 1)
  return tuple(range(local * share, (local + 1) * share))


def _tasks_on_node(environ: Environment) -> int:
  """Reads, such as for the third of four nodes, 8(x3),4."""
  text = environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
  tasks = [
    int(count)
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    for _ in range(int(times or 1))
  ]
  node = int(environ.get("SLURM_NODEID", 0))
  return tasks[min(node, len(tasks) - 1)]


def _from_tpu_job(environ: Environment) -> Cluster | None:
  """A slice of a TPU, or several, on Kubernetes."""
  names = (
    environ.get("TPU_PROCESS_ADDRESSES")
    or environ.get("TPU_WORKER_HOSTNAMES")
    or ""
  ).split(",")
  slices = environ.get("MEGASCALE_NUM_SLICES", "1")
  if names == [""]:
    return None
  if len(names) == 1 and slices == "1":
    return Cluster()
  worker = _number(environ, "TPU_WORKER_ID")
  return _slices(names, worker, environ, "the environment")


def _from_kubernetes(environ: Environment) -> Cluster | None:
  """An Indexed Job whose file says what Kubernetes does not."""
  names = "MIXER_COORDINATOR", "MIXER_HOSTS", "JOB_COMPLETION_INDEX"
  missing = [name for name in names if name not in environ]
  if not environ.keys() & set(names[:2]):
    return None
  if missing:
    raise UserError(
      f"{', '.join(names[:2])} and {names[2]} go together in the environment: "
      f"{' and '.join(missing)} is missing."
    )
  return _checked(
    Cluster(
      environ["MIXER_COORDINATOR"],
      _number(environ, "MIXER_HOSTS"),
      _number(environ, "JOB_COMPLETION_INDEX"),
      "Kubernetes job",
    ),
    "MIXER_COORDINATOR",
  )


def _from_tpu_vm(environ: Environment, root: Path) -> Cluster | None:
  skips = "TPU_SKIP_MDS_QUERY" in environ
  if skips or not metadata_server.is_tpu_vm(root):
    return None
  worker = metadata_server.read("agent-worker-number", environ)
  endpoints = metadata_server.read("worker-network-endpoints", environ)
  if worker is None or endpoints is None:
    return None
  # HOST, or NAME:ID:HOST, of each worker.
  names = [worker.rpartition(":")[2] for worker in endpoints.split(",")]
  of_slices = metadata_server.settings(
    metadata_server.read("tpu-env", environ) or ""
  )
  return _slices(
    names, int(worker), of_slices | dict(environ), "the metadata server"
  )


def _slices(
  names: list[str], worker: int, environ: Environment, source: str
) -> Cluster:
  """The cluster of all slices, host 0 being the first of slice 0."""
  slices, first, index = 1, names[0], 0
  if environ.get("MEGASCALE_NUM_SLICES"):
    slices = _number(environ, "MEGASCALE_NUM_SLICES")
  origin = "TPU slice"
  if slices > 1:
    origin = f"{slices} TPU slices"
    first = environ.get("MEGASCALE_COORDINATOR_ADDRESS", "")
    index = _number(environ, "MEGASCALE_SLICE_ID")
  first = first.partition(":")[0]
  return _checked(
    Cluster(
      f"{first}:{PORT}",
      len(names) * slices,
      worker + index * len(names),
      origin,
    ),
    f"MEGASCALE_COORDINATOR_ADDRESS, as {source} says",
  )
