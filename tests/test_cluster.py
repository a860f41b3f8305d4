# SPDX-License-Identifier: Apache-2.0
"""The hosts of a run, by flags, SLURM, Kubernetes or a TPU's environment."""

import os

import pytest
from jax._src.clusters import cloud_tpu_cluster, cluster

from mixer.cluster import ONE_HOST, Cluster, find_cluster
from mixer.errors import RetryableError, UserError


@pytest.fixture
def environ(monkeypatch):
  """Sets the environment variables that describe a cluster, and no others."""
  for name in os.environ:
    if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "MIXER_", "JOB_")):
      monkeypatch.delenv(name)
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

  def set_variables(variables):
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return set_variables


@pytest.fixture
def tpu(monkeypatch):
  """Lets jax take this machine for a TPU VM."""
  monkeypatch.setattr(cluster, "running_in_cloud_tpu_vm", True)
  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
  # Names of hosts that do not exist.
  monkeypatch.setattr(
    cloud_tpu_cluster.BaseTpuCluster, "wait_for_coordinator", lambda *_: None
  )


@pytest.mark.parametrize(
  "variables",
  [
    {},
    {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},  # of salloc
    {"JOB_COMPLETION_INDEX": "3"},  # of a job of single hosts
  ],
)
def test_without_flags_or_a_known_environment_there_is_one_host(
  variables, environ
):
  environ(variables)
  assert find_cluster() == ONE_HOST


def test_flags_come_before_the_environment(environ):
  environ(SLURM)
  assert find_cluster("[fe80::1]:1234", 4, 0) == Cluster("[fe80::1]:1234", 4, 0)
  assert find_cluster("localhost:1234", 1, 0) == ONE_HOST
  assert find_cluster(hosts=1) == ONE_HOST


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ((None, None, 0), "add --coordinator=HOST:PORT and --hosts=N"),
    (("a:1", 2, None), "add --host=I"),
    (("a", 2, 0), "--coordinator=a is not HOST:PORT"),
    (("a:b", 2, 0), "is not HOST:PORT"),
    (("a:0", 2, 0), "from 1 to 65535"),
    (("a:65536", 2, 0), "from 1 to 65535"),
    ((":8", 2, 0), "is not HOST:PORT"),
    (("a:1", 2, 2), "no host 2 of 2"),
    (("a:1", 2, -1), "no host -1 of 2"),
    (("a:1", 0, 0), "no host 0 of 0"),
  ],
)
def test_flags_that_make_no_sense_are_named(flags, message, environ):
  with pytest.raises(UserError, match=message):
    find_cluster(*flags)


# As srun sets it for the sixth of twelve tasks, three nodes with four each.
SLURM = {
  "SLURM_JOB_ID": "12345",
  "SLURM_STEP_ID": "0",
  "SLURM_NTASKS": "12",
  "SLURM_PROCID": "5",
  "SLURM_LOCALID": "1",
  "SLURM_NODEID": "1",
  "SLURM_JOB_NODELIST": "login,gpu[007-009]",
  "SLURM_STEP_NODELIST": "gpu[007-009]",
  "SLURM_STEP_TASKS_PER_NODE": "4(x3)",
}


@pytest.mark.parametrize(
  ("changes", "local_devices"),
  [
    ({}, (1,)),
    ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, (2, 3)),
    ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (1,)),
    ({"CUDA_VISIBLE_DEVICES": "0"}, None),
    ({"SLURM_STEP_TASKS_PER_NODE": "4,1,7", "SLURM_LOCALID": "0"}, None),
    ({"SLURM_STEP_TASKS_PER_NODE": "1,6(x2)"}, (1,)),
  ],
)
def test_slurm_tasks_find_their_cluster_and_their_gpus(
  changes, local_devices, environ
):
  environ(SLURM | changes)

  cluster = find_cluster()

  name, _, port = cluster.coordinator.partition(":")
  assert (name, cluster.hosts, cluster.host) == ("gpu007", 12, 5)
  assert int(port) > 61_000
  assert cluster.local_devices == local_devices


def test_a_slurm_script_without_srun_is_told_to_use_it(environ):
  environ({key: x for key, x in SLURM.items() if "STEP" not in key})

  with pytest.raises(UserError, match="begin the command with srun"):
    find_cluster()


SLICE = {
  "TPU_WORKER_HOSTNAMES": "t-0.s,t-1.s,t-2.s,t-3.s",
  "TPU_WORKER_ID": "2",
  "TPU_SKIP_MDS_QUERY": "1",
}
SECOND_SLICE = {
  "MEGASCALE_NUM_SLICES": "2",
  "MEGASCALE_SLICE_ID": "1",
  "MEGASCALE_COORDINATOR_ADDRESS": "first-0.s:8080",
}
ONE_SLICE = {
  "MEGASCALE_NUM_SLICES": "1",
  "MEGASCALE_SLICE_ID": "0",
  "MEGASCALE_COORDINATOR_ADDRESS": "t-0.s",
}
JOB = {
  "MIXER_COORDINATOR": "run-0.run:8492",
  "MIXER_HOSTS": "4",
  "JOB_COMPLETION_INDEX": "3",
}


@pytest.mark.parametrize(
  ("variables", "cluster"),
  [
    (SLICE | ONE_SLICE, Cluster("t-0.s:8482", 4, 2)),
    (SLICE | SECOND_SLICE, Cluster("first-0.s:8482", 8, 6)),
    (
      SLICE
      | ONE_SLICE
      | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
      ONE_HOST,
    ),
  ],
)
def test_hosts_of_tpu_slices_find_their_cluster(
  variables, cluster, environ, tpu
):
  environ(variables)
  assert find_cluster() == cluster


def test_an_indexed_job_on_kubernetes_is_a_cluster(environ):
  environ(JOB)
  assert find_cluster() == Cluster("run-0.run:8492", 4, 3)


@pytest.mark.parametrize(
  ("variables", "message"),
  [
    ({"MIXER_COORDINATOR": "a:1"}, "add MIXER_HOSTS and JOB_COMPLETION_INDEX"),
    (JOB | {"MIXER_HOSTS": "many"}, "'many'"),
    (JOB | {"MIXER_COORDINATOR": "a"}, "MIXER_COORDINATOR=a is not"),
    (SLURM | {"SLURM_JOB_ID": "x"}, "describes no cluster .*'x'"),
  ],
)
def test_environments_that_make_no_sense_are_named(variables, message, environ):
  environ(variables)
  with pytest.raises(UserError, match=message):
    find_cluster()


def test_a_metadata_server_that_does_not_answer_is_reported(
  environ, tpu, monkeypatch
):
  def fail(key):
    raise ConnectionError(f"no answer for {key}")

  monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", fail)
  with pytest.raises(RetryableError, match="no answer.*or only --hosts=1"):
    find_cluster()
