# SPDX-License-Identifier: Apache-2.0
"""Memory in the log: of the host's limits, of workers, and the warning."""

import multiprocessing
import types

import jax
import pytest

from mixer.training import memory

MIB = 2**20
V2 = ("memory.max", "memory.current", "")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


@pytest.mark.parametrize(
  ("line", "groups", "names", "expected"),
  [
    # Folder of a cgroup: limit; used and half of the page cache, in MiB.
    ("0::/", {}, V2, (300, 1000)),
    ("0::/", {"": (200 * MIB, 150, 20)}, V2, (90, 200)),  # a container
    # Of a parent, and one above what the host has.
    ("0::/job/step", {"job": (400 * MIB, 390, 0)}, V2, (10, 400)),
    ("0::/job", {"job": (900 * MIB, 100, 0)}, V2, (300, 1000)),
    ("0::/job", {"job": ("max", 100, 0)}, V2, (300, 1000)),
    ("4:memory:/outside", {"memory": (200 * MIB, 150, 20)}, V1, (90, 200)),
    ("4:memory:/", {"memory": (2**62, 150, 0)}, V1, (300, 1000)),
  ],
)
def test_the_limit_that_is_met_first_counts(
  tmp_path, line, groups, names, expected
):
  (tmp_path / "proc/self").mkdir(parents=True)
  (tmp_path / "proc/self/cgroup").write_text(f"3:cpu:/x\n{line}\n")
  (tmp_path / "proc/meminfo").write_text(
    f"MemTotal: {1000 * 1024} kB\nMemAvailable: {300 * 1024} kB\nHugePages: 0\n"
  )
  limit_file, usage_file, cache = names
  for name, (limit, used, cached) in groups.items():
    folder = tmp_path / "sys/fs/cgroup" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit_file).write_text(str(limit))
    (folder / usage_file).write_text(str(used * MIB))
    (folder / "memory.stat").write_text(
      f"{cache}active_file {cached * MIB}\n{cache}inactive_file {cached * MIB}"
    )

  available, limit = memory.host_memory(tmp_path)

  assert (available / MIB, limit / MIB) == expected


def hold(megabytes, connection):
  block = b"x" * megabytes * MIB
  connection.send(len(block))
  connection.recv()


def test_memory_of_workers_counts_and_a_host_warns_once(monkeypatch, capsys):
  monkeypatch.setattr(memory, "READ_SECONDS", 0.0)
  monitor = memory.MemoryMonitor(3)
  before = monitor.read()["memory/process_gib"]
  assert not capsys.readouterr().err
  ours, theirs = multiprocessing.Pipe()
  context = multiprocessing.get_context("spawn")
  worker = context.Process(target=hold, args=(200, theirs), daemon=True)
  worker.start()
  assert ours.recv()

  monkeypatch.setattr(memory, "LEAST_LEFT", 1.1)
  row = monitor.read()
  monitor.read()
  ours.send(None)
  worker.join()

  assert row["memory/process_gib"] > before + 0.19
  assert row["memory/available_gib"] > 0
  assert not any("device" in name for name in row)  # CPUs tell nothing
  errors = capsys.readouterr().err
  assert errors.count("Host 3") == 1 and "--config.data.workers" in errors


def test_the_fullest_device_counts(monkeypatch):
  devices = [
    types.SimpleNamespace(
      memory_stats=lambda stats=dict(bytes_in_use=a, peak_bytes_in_use=b): stats
    )
    for a, b in ((1 * memory.GIB, 8 * memory.GIB), (2 * memory.GIB, 0))
  ]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)

  row = memory.MemoryMonitor().read()

  assert row["memory/device_gib"] == 2
  assert row["memory/device_peak_gib"] == 8
