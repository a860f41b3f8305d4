# SPDX-License-Identifier: Apache-2.0
"""Who the hosts are, by flags, SLURM, Kubernetes or a metadata server."""

import http.server
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mixer.errors import UserError
from mixer.hosts import Cluster, find_cluster
from mixer.hosts.cluster import first_node

ROOT = Path(__file__).resolve().parent.parent


def test_without_flags_or_a_known_environment_there_is_one_host():
  alone = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
  shell = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}  # of salloc
  index = {"JOB_COMPLETION_INDEX": "3"}  # of a job of single hosts
  one_worker = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
  for environ in ({}, alone, shell, index, one_worker):
    assert find_cluster(environ=environ, root=Path("/nowhere")) == Cluster()
  flags = {"coordinator": "localhost:1234", "hosts": 1, "host": 0}
  assert find_cluster(**flags, environ={}) == Cluster()


def test_flags_come_before_the_environment():
  found = find_cluster(
    coordinator="[fe80::1]:1234", hosts=4, host=0, environ=SLURM
  )

  assert found == Cluster("[fe80::1]:1234", 4, 0, "--coordinator")
  assert found.address == ("fe80::1", 1234)
  assert found.jax_coordinator == "[fe80::1]:1235"


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"host": 0}, "add --coordinator=HOST:PORT and --hosts=N"),
    ({"coordinator": "a:1", "hosts": 2}, "add --host=I"),
    ({"coordinator": "a", "hosts": 2, "host": 0}, "--coordinator=a is not"),
    ({"coordinator": "a:b", "hosts": 2, "host": 0}, "is not HOST:PORT"),
    ({"coordinator": "a:65535", "hosts": 2, "host": 0}, "from 1 to 65534"),
    ({"coordinator": "a:0", "hosts": 2, "host": 0}, "from 1 to 65534"),
    ({"coordinator": ":8", "hosts": 2, "host": 0}, "is not HOST:PORT"),
    ({"coordinator": "a:1", "hosts": 2, "host": 2}, "no host 2 of 2"),
    ({"coordinator": "a:1", "hosts": 2, "host": -1}, "no host -1 of 2"),
    ({"coordinator": "a:1", "hosts": 0, "host": 0}, "no host 0 of 0"),
  ],
)
def test_flags_that_make_no_sense_are_named(flags, message):
  with pytest.raises(UserError, match=message):
    find_cluster(**flags, environ={})


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
def test_slurm_says_who_the_hosts_are(changes, local_devices):
  found = find_cluster(environ=SLURM | changes)

  name, port = found.address
  assert (name, found.hosts, found.host) == ("gpu007", 12, 5)
  assert 20_000 <= port < 30_000
  assert found.origin == "SLURM job 12345"
  assert found.local_devices == local_devices


def test_jobs_and_steps_of_slurm_beside_each_other_have_ports_of_their_own():
  steps = [SLURM, SLURM | {"SLURM_STEP_ID": "1"}, SLURM | {"SLURM_JOB_ID": "7"}]
  ports = [find_cluster(environ=step).address[1] for step in steps]

  assert len({*ports, *(port + 1 for port in ports)}) == 6


@pytest.mark.parametrize(
  ("nodes", "first"),
  [
    ("node1", "node1"),
    ("node1,node2", "node1"),
    ("node[001-015],host2", "node001"),
    ("node[001,007-015],host2", "node001"),
    ("rack[1-2]n[01-16,20],login", "rack1n01"),
    ("a-b[3]-ib,c", "a-b3-ib"),
  ],
)
def test_the_first_of_slurms_nodes_is_read(nodes, first):
  assert first_node(nodes) == first


def test_a_slurm_script_without_srun_is_told():
  script = {key: x for key, x in SLURM.items() if "STEP" not in key}

  with pytest.raises(UserError, match="begin the command with srun"):
    find_cluster(environ=script | {"SLURM_PROCID": "0"})


SLICE = {
  "TPU_WORKER_HOSTNAMES": "t-0.s,t-1.s,t-2.s,t-3.s",
  "TPU_WORKER_ID": "2",
}
SECOND_SLICE = {
  "MEGASCALE_NUM_SLICES": "2",
  "MEGASCALE_SLICE_ID": "1",
  "MEGASCALE_COORDINATOR_ADDRESS": "first-0.s:8080",
}
JOB = {
  "MIXER_COORDINATOR": "run-0.run:8492",
  "MIXER_HOSTS": "4",
  "JOB_COMPLETION_INDEX": "3",
}


@pytest.mark.parametrize(
  ("environ", "cluster"),
  [
    (SLICE, Cluster("t-0.s:8492", 4, 2, "TPU slice")),
    (SLICE | SECOND_SLICE, Cluster("first-0.s:8492", 8, 6, "2 TPU slices")),
    (
      {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
      | SECOND_SLICE,
      Cluster("first-0.s:8492", 2, 1, "2 TPU slices"),
    ),
    (JOB, Cluster("run-0.run:8492", 4, 3, "Kubernetes job")),
  ],
)
def test_jobs_on_kubernetes_say_who_the_hosts_are(environ, cluster):
  assert find_cluster(environ=environ) == cluster


@pytest.mark.parametrize(
  ("environ", "message"),
  [
    ({"MIXER_COORDINATOR": "a:1"}, "MIXER_HOSTS and JOB_COMPLETION_INDEX is"),
    (JOB | {"MIXER_HOSTS": "many"}, "MIXER_HOSTS='many'"),
    (JOB | {"MIXER_COORDINATOR": "a"}, "MIXER_COORDINATOR=a is not"),
    (SLICE | {"TPU_WORKER_ID": "x"}, "TPU_WORKER_ID='x'"),
    (SLICE | {"TPU_WORKER_ID": "4"}, "no host 4 of 4"),
    (SLURM | {"SLURM_JOB_ID": "x"}, "SLURM_JOB_ID='x'"),
  ],
)
def test_environments_that_make_no_sense_are_named(environ, message):
  with pytest.raises(UserError, match=message):
    find_cluster(environ=environ)


class MetadataServer(http.server.BaseHTTPRequestHandler):
  """Answers as Google's does; counts on attributes of its server."""

  def do_GET(self):  # noqa: N802, http.server's name
    self.server.asked += 1
    name = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
    text = self.server.attributes.get(name)
    if self.headers["Metadata-Flavor"] != "Google":
      self.send_error(403)
    elif text is None:
      self.send_error(404)
    elif self.server.asked <= self.server.busy:
      self.send_error(503)
    else:
      self.send_response(200)
      self.end_headers()
      self.wfile.write(text.encode())

  def log_message(self, *_):
    pass


@pytest.fixture
def metadata_server():
  server = http.server.ThreadingHTTPServer(("localhost", 0), MetadataServer)
  server.attributes, server.asked, server.busy = {}, 0, 0
  with server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def asks(server):
  return {
    "GCE_METADATA_IP": f"localhost:{server.server_address[1]}",
    "http_proxy": "http://localhost:9",
  }


@pytest.fixture
def tpu_vm(tmp_path):
  """The folder of a machine's devices, as it is on a TPU VM."""
  device = tmp_path / "sys" / "bus" / "pci" / "devices" / "0000:00:04.0"
  device.mkdir(parents=True)
  (device / "vendor").write_text("0x1ae0\n")
  (tmp_path / "dev").mkdir()
  (tmp_path / "dev" / "accel0").touch()
  return tmp_path


WORKER = {
  "agent-worker-number": "1",
  "worker-network-endpoints": "10.0.0.5,10.0.0.6",
}
OLD_WORKER = WORKER | {
  "worker-network-endpoints": "unknown:unknown:10.0.0.5,"
  "unknown:unknown:10.0.0.6"
}
TPU_ENV = {
  "tpu-env": "ACCELERATOR_TYPE: 'v4-16'\nMEGASCALE_NUM_SLICES: '2'\n"
  "MEGASCALE_SLICE_ID: '1'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1:8080'\n"
}


@pytest.mark.parametrize(
  ("attributes", "cluster"),
  [
    (WORKER, Cluster("10.0.0.5:8492", 2, 1, "TPU slice")),
    (OLD_WORKER, Cluster("10.0.0.5:8492", 2, 1, "TPU slice")),
    (WORKER | TPU_ENV, Cluster("10.0.0.1:8492", 4, 3, "2 TPU slices")),
    (
      {"agent-worker-number": "0", "worker-network-endpoints": "10.0.0.5"},
      Cluster(),
    ),
    ({}, Cluster()),
  ],
)
def test_the_metadata_server_of_a_tpu_vm_says_who_the_hosts_are(
  attributes, cluster, metadata_server, tpu_vm
):
  metadata_server.attributes = attributes

  found = find_cluster(environ=asks(metadata_server), root=tpu_vm)

  assert found == cluster
  assert metadata_server.asked


def test_a_busy_metadata_server_is_asked_again(metadata_server, tpu_vm):
  metadata_server.attributes, metadata_server.busy = WORKER, 1

  assert find_cluster(environ=asks(metadata_server), root=tpu_vm).hosts == 2


def test_only_tpu_vms_ask_the_metadata_server(metadata_server, tpu_vm):
  metadata_server.attributes = WORKER
  environ = asks(metadata_server)

  skips = environ | {"TPU_SKIP_MDS_QUERY": "1"}
  assert find_cluster(environ=skips, root=tpu_vm) == Cluster()
  (tpu_vm / "dev" / "accel0").rename(tpu_vm / "dev" / "sda")
  assert find_cluster(environ=environ, root=tpu_vm) == Cluster()
  (tpu_vm / "dev" / "vfio").mkdir()
  (tpu_vm / "dev" / "vfio" / "vfio").touch()  # any Linux may have it
  assert find_cluster(environ=environ, root=tpu_vm) == Cluster()
  assert not metadata_server.asked

  (tpu_vm / "dev" / "vfio" / "0").touch()
  assert find_cluster(environ=environ, root=tpu_vm).hosts == 2
  for vendor in tpu_vm.glob("sys/bus/pci/devices/*/vendor"):
    vendor.write_text("0x8086\n")
  assert find_cluster(environ=environ, root=tpu_vm) == Cluster()


def test_a_metadata_server_that_does_not_answer_is_an_error(tpu_vm):
  with socket.socket() as deaf:
    deaf.bind(("localhost", 0))
    environ = {"GCE_METADATA_IP": f"localhost:{deaf.getsockname()[1]}"}

  with pytest.raises(
    UserError, match="set TPU_SKIP_MDS_QUERY=1 if it is alone"
  ):
    find_cluster(environ=environ, root=tpu_vm)


@pytest.mark.parametrize("wait", ["-1", "nan", "inf"])
def test_what_is_no_time_to_wait_is_refused(wait):
  done = subprocess.run(
    [
      sys.executable,
      "train.py",
      "--config=configs/digits.py",
      f"--wait={wait}",
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )

  assert done.returncode == 2
  assert f"error: --wait={wait} is no time to wait: give seconds" in done.stderr
