# SPDX-License-Identifier: Apache-2.0
"""Checks that all hosts start the same run: config, folder, devices, data."""

import secrets
import time
import zlib

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from mixer.config_check import PER_HOST_KEYS, resolve, to_dict
from mixer.distributed import Hosts
from mixer.errors import UserError, format_list
from mixer.plan import Plan

# Timeouts for a file written by one host to become visible on another: NFS
# caches directory entries for up to 30 s, busy directories for longer.
_NEW_FILE_SECONDS, BUSY_FOLDER_SECONDS = 35.0, 90.0


def check_same_config(hosts: Hosts, config: ConfigDict) -> None:
  """Raises UserError on all hosts if one has another config."""
  with hosts.raise_on_all():
    config = to_dict(resolve(config))
  hosts.check_same(
    config,
    "has another config than host 0: start all hosts with the same command and "
    "the same code",
    PER_HOST_KEYS,
  )


def check_shared_folder(hosts: Hosts, folder: epath.Path) -> None:
  """Raises UserError on all hosts if the folder is not one and the same."""
  if hosts.count == 1:
    return
  # A random name, which no file system has cached as missing.
  name = f".host_0_{secrets.token_hex(8)}"
  [[name, first_folder], *_] = hosts.gather([name, str(folder)])
  if hosts.is_first:
    (folder / name).touch()
  hosts.gather(None)
  is_visible = hosts.gather(wait_for_path(folder / name, _NEW_FILE_SECONDS))
  if hosts.is_first:
    (folder / name).unlink()
  with hosts.raise_on_all():
    if not all(is_visible):
      blind = format_list(
        [str(host) for host, x in enumerate(is_visible) if not x]
      )
      raise UserError(
        f"--workdir={first_folder} is not the same folder on all hosts: a file "
        f"that host 0 writes there does not appear on host {blind}. Name one "
        "that they share, on NFS or in a bucket (gs://)."
      )


def wait_for_path(
  path: epath.Path, seconds: float = BUSY_FOLDER_SECONDS
) -> bool:
  """Returns whether a path exists, after waiting for it."""
  deadline = time.monotonic() + seconds
  while not (exists := path.exists()) and time.monotonic() < deadline:
    time.sleep(0.2)
  return exists


def check_same_devices(hosts: Hosts) -> None:
  """Raises UserError on all hosts if they have unequal devices."""
  kind = jax.local_devices()[0].device_kind
  hosts.check_same(
    {"devices": f"{jax.local_device_count()} {kind}"},
    "has other devices than host 0: a batch is split between equal hosts",
  )
  with hosts.raise_on_all():
    # A TPU's runtime may count hosts by itself.
    if jax.process_count() != hosts.count:
      raise UserError(
        f"jax counts {jax.process_count()} hosts, and the run {hosts.count}: "
        "give no --coordinator, --hosts and --host on machines that know them."
      )


def check_same_plan(hosts: Hosts, plan: Plan) -> None:
  """Raises UserError on all hosts if their own files lead to other plans.

  Configs and devices are equal; a folder of images or a file of weights may
  not be.
  """
  if hosts.count == 1:  # checksums of large weights take seconds
    return
  sources = {"data": plan.data.source} | {
    f"evals.{name}{part}": source
    for name, each in plan.data.evals.items()
    for part, source in (("", each.source), (".pool", each.pool))
  }
  summary = {
    "model": repr(plan.model.module),  # the weights may decide about GELU
    "examples": {k: len(x) for k, x in sources.items() if x is not None},
    "files": {k: x.checksum for k, x in sources.items() if x is not None},
    "classes": {
      name: zlib.crc32("\n".join(source.class_names).encode())
      for name, source in sources.items()
      if source is not None
    },
    "weights": checksum(plan.model.initial_params),
    "teacher": [plan.teacher.description, checksum(plan.teacher.params)],
  }
  hosts.check_same(
    summary,
    "has other data or weights than host 0: give all hosts the same files",
  )


def checksum(tree: object) -> int:
  """Returns the CRC-32 of all arrays of a tree, in their order."""
  result = 0
  for leaf in jax.tree.leaves(tree):
    result = zlib.crc32(np.ascontiguousarray(leaf), result)
  return result
