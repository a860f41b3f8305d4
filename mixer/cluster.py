# SPDX-License-Identifier: Apache-2.0
"""The hosts of a run, by flags, by the environment or by jax's detection.

A "host" is one process: one a machine, unless SLURM starts more. jax is
imported late, so that front doors can parse flags first.
"""

import dataclasses
import math
import os
import re

from absl import flags

from mixer.errors import RetryableError, UserError

_FLAGS = "--coordinator=HOST:PORT", "--hosts=N", "--host=I"
_VARIABLES = "MIXER_COORDINATOR", "MIXER_HOSTS", "JOB_COMPLETION_INDEX"


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The hosts of a run, and this one's index among them."""

  coordinator: str = ""  # HOST:PORT of host 0
  hosts: int = 1
  host: int = 0
  local_devices: tuple[int, ...] | None = None  # None: all of the machine
  wait: float = 300.0  # seconds for all hosts to connect
  heartbeat: int = 30  # seconds without one until a host is lost


ONE_HOST = Cluster()


def define_flags() -> None:
  """Defines the flags that `cluster_from_flags` reads."""
  flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of the first of several hosts. These three are for clusters "
    "that are not detected; TPU slices, SLURM and Kubernetes are.",
  )
  flags.DEFINE_integer("hosts", None, "Number of hosts; 1 detects no cluster.")
  flags.DEFINE_integer("host", None, "Index of this host, from 0 on.")
  flags.DEFINE_float(
    "wait", ONE_HOST.wait, "Seconds to wait for all hosts to connect."
  )
  flags.DEFINE_integer(
    "heartbeat",
    ONE_HOST.heartbeat,
    "Seconds without a heartbeat after which a host is lost.",
    lower_bound=1,
  )


def cluster_from_flags() -> Cluster:
  """Returns the cluster of the flags, or the detected one."""
  values = flags.FLAGS
  if not 0 <= values.wait < math.inf:
    raise UserError(
      f"--wait={values.wait:g} is not a duration: give seconds, such as "
      f"--wait={ONE_HOST.wait:g}."
    )
  cluster = find_cluster(
    values.coordinator, values.hosts, values.host, wait=values.wait
  )
  return dataclasses.replace(
    cluster, wait=values.wait, heartbeat=values.heartbeat
  )


def find_cluster(
  coordinator: str | None = None,
  hosts: int | None = None,
  host: int | None = None,
  *,
  wait: float = ONE_HOST.wait,
) -> Cluster:
  """Returns the given cluster, or the one that the environment describes.

  MIXER_COORDINATOR, MIXER_HOSTS and JOB_COMPLETION_INDEX (of an Indexed Job on
  Kubernetes) come first; then jax's detection: TPU slices, SLURM, Open MPI,
  Kubernetes.

  Args:
    coordinator: HOST:PORT of host 0, together with `hosts` and `host`.
    hosts: their number; 1 by itself turns detection off.
    host: index of this host, from 0.
    wait: seconds until the coordinator's name has to resolve.

  Raises:
    UserError: the values are incomplete or contradict each other.
  """
  values = (coordinator, hosts, host)
  if values == (None, 1, None):
    return ONE_HOST
  if values != (None, None, None):
    names, source = _FLAGS, "the flags"
  elif os.environ.keys() & set(_VARIABLES[:2]):
    names, source = _VARIABLES, "the environment"
    values = tuple(os.environ.get(name) for name in names)
  else:
    return _detect(wait)
  missing = [
    name
    for name, value in zip(names, values, strict=True)
    if value in (None, "")
  ]
  if missing:
    raise UserError(
      f"{', '.join(names)} go together in {source}: add "
      f"{' and '.join(missing)}."
    )
  try:
    cluster = Cluster(values[0], int(values[1]), int(values[2]))
  except ValueError as error:
    raise UserError(f"{' and '.join(names[1:])}: {error}.") from error
  name, _, port = cluster.coordinator.rpartition(":")
  if not (name and port.isdecimal() and 1 <= int(port) <= 65535):
    raise UserError(
      f"{names[0].partition('=')[0]}={cluster.coordinator} is not HOST:PORT "
      "with a PORT from 1 to 65535, such as 10.0.0.1:8492."
    )
  if not 0 <= cluster.host < cluster.hosts:
    raise UserError(
      f"There is no host {cluster.host} of {cluster.hosts} ({source}): hosts "
      "are numbered from 0."
    )
  return cluster if cluster.hosts > 1 else ONE_HOST


def _detect(wait: float) -> Cluster:
  """Returns the cluster that jax detects."""
  from jax._src.clusters import ClusterEnv

  environ = os.environ
  is_slurm = {"SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID"} <= environ.keys()
  if is_slurm and "SLURM_STEP_NODELIST" not in environ:
    # Outside of srun, SLURM_PROCID is 0 on every node.
    if environ["SLURM_NTASKS"] != "1":
      raise UserError(
        f"SLURM job {environ['SLURM_JOB_ID']} has {environ['SLURM_NTASKS']} "
        "tasks, and this is the job's script, not one of them: begin the "
        "command with srun, or with srun --ntasks=1."
      )
    return ONE_HOST
  advice = (
    "give --coordinator=HOST:PORT, --hosts=N and --host=I, or only --hosts=1 "
    "on a single host"
  )
  try:
    # The private function that jax.distributed.initialize calls: one host is a
    # ValueError there, and the number of hosts is needed for messages.
    address, hosts, host, devices = (
      ClusterEnv.auto_detect_unset_distributed_params(
        environ.get("JAX_COORDINATOR_ADDRESS"),
        None,
        None,
        None,
        None,
        max(1, int(wait)),
      )
    )
  except (OSError, RuntimeError) as error:
    raise RetryableError(
      f"jax cannot detect the cluster ({error}): {advice}."
    ) from error
  except ValueError as error:
    raise UserError(
      f"The environment describes no cluster ({error}): {advice}."
    ) from error
  if hosts is None or hosts == 1:
    return ONE_HOST
  if is_slurm:
    devices = _slurm_devices()
  return Cluster(address, hosts, host, devices and tuple(devices))


def _slurm_devices() -> tuple[int, ...] | None:
  """Returns this task's GPUs where several tasks share those of a node.

  jax would give each task one GPU, also where it has the node for itself.
  """
  text = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1")  # such as 8(x3),4
  counts = [
    int(count)
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    for _ in range(int(times or 1))
  ]
  tasks = counts[min(int(os.environ.get("SLURM_NODEID", 0)), len(counts) - 1)]
  visible = [
    x for x in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if x
  ]
  if tasks == 1 or 0 < len(visible) < tasks:
    return None  # all that are visible, as with --gpus-per-task
  share = max(len(visible) // tasks, 1)
  first = int(os.environ["SLURM_LOCALID"]) * share
  return tuple(range(first, first + share))
