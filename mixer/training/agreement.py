# SPDX-License-Identifier: Apache-2.0
"""What the hosts of a run must have in common."""

import secrets
import sys
import time
import zlib
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mixer.config_check import PER_HOST_KEYS, diff_configs, resolve, to_dict
from mixer.errors import UserError, format_list
from mixer.hosts import Hosts
from mixer.plan import Plan
from mixer.training.run_dir import make_folder

# Seconds for what one host writes to be seen by another: as long as NFS
# believes what it knew of a folder, and longer of one that is much in use.
NEW, USED = 35.0, 90.0
SOON = 3.0  # after these, to say what is waited for


def meet(hosts: Hosts, config: ConfigDict, workdir: str | None) -> Path:
  """Makes the run's folder, once the hosts agree, and connects their devices.

  Nothing is left half-started where they do not.

  Raises:
    UserError: on all hosts, with what one of them complains of.
  """
  with hosts.together():
    folder = make_folder(workdir)
  with hosts.together():
    check_same_config(hosts, config)
    check_shared(hosts, folder)
  hosts.initialize()
  with hosts.together():
    check_same_devices(hosts)
  return folder


def check_same_config(hosts: Hosts, config: ConfigDict):
  """Raises UserError, on all hosts, if one was given another config."""
  with hosts.together():
    own = to_dict(resolve(config))
  first, *others = hosts.gather(own)
  for host, other in enumerate(others, start=1):
    if changes := list(diff_configs(first, other, ignored=PER_HOST_KEYS)):
      listed = "\n  ".join(changes)
      raise UserError(
        f"Host {host} has another config than host 0: start all hosts with the "
        f"same command and the same code.\n  {listed}"
      )


def check_shared(hosts: Hosts, folder: Path):
  """Raises UserError on all hosts if the folder is not one and the same.

  Host 0 writes there, the others read what it has written.
  """
  if hosts.count == 1:
    return
  # A name that nobody has looked for before.
  name = f".host_0_{secrets.token_hex(8)}"
  [[name, where], *_] = hosts.gather([name, str(folder)])
  token = folder / name
  if hosts.is_first:
    token.touch()
  hosts.gather(None)
  if not (is_there := appears(token, SOON)):
    print(
      f"Looks for what host 0 writes in {folder}, up to {NEW:g} s.",
      file=sys.stderr,
      flush=True,
    )
    is_there = appears(token, NEW - SOON)
  sees = hosts.gather(is_there)
  if hosts.is_first:
    token.unlink()
  if not all(sees):
    strangers = format_list([str(host) for host, x in enumerate(sees) if not x])
    raise UserError(
      f"--workdir={where} is not the same folder on all hosts: what host 0 "
      f"writes there does not appear on host {strangers}. Name one that they "
      "share, such as a mounted bucket or NFS."
    )


def appears(path: Path, patience: float = USED) -> bool:
  """Whether a file or folder is there, or is within `patience` seconds."""
  deadline = time.monotonic() + patience
  while not path.exists():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.2)
  return True


def check_same_devices(hosts: Hosts):
  """Raises UserError on all hosts if they have unequal devices.

  Or if jax, which may have asked the machine itself, counts other hosts.
  """
  kind = jax.local_devices()[0].device_kind
  found = hosts.gather([jax.local_device_count(), kind])
  if any(each != found[0] for each in found):
    listed = ", ".join(f"{count} {kind}" for count, kind in found)
    raise UserError(
      f"The hosts have {listed}, in their order: a batch is shared by equal "
      "hosts."
    )
  seen = [jax.process_index(), jax.process_count()]
  if any(each != [i, hosts.count] for i, each in enumerate(hosts.gather(seen))):
    raise UserError(
      f"Of {hosts.count} hosts jax sees others than they say they are: here "
      f"process {seen[0]} of {seen[1]}. Give hosts the numbers that their "
      "machines have, or none where the machines know."
    )


def check_same_plan(hosts: Hosts, plan: Plan):
  """Raises UserError on all hosts if their own files make other plans.

  Configs may be the same and a folder of images not, or a file of weights.
  """
  if hosts.count == 1:  # checksums of large weights take seconds
    return
  first, *others = hosts.gather(_summary(plan))
  for host, other in enumerate(others, start=1):
    if changes := list(diff_configs(first, other, ignored=())):
      listed = "\n  ".join(changes)
      raise UserError(
        f"Host {host} has other data or weights than host 0: give all hosts "
        f"the same files.\n  {listed}"
      )


def _summary(plan: Plan) -> dict:
  """What has to be the same for hosts to stay in step, and what is quick."""
  sources = {"data": plan.source} | {
    f"evals.{name}{part}": source
    for name, each in plan.evals.items()
    for part, source in (("", each.source), (".pool", each.pool))
  }
  return {
    "steps": plan.total_steps,
    "warmup_steps": plan.warmup_steps,
    "checkpoint_every": plan.checkpoint_every,
    "milestone_every": plan.milestone_every,
    "evals_every": {name: each.every for name, each in plan.evals.items()},
    "accumulation": plan.accumulation,
    "model": repr(plan.model),
    "examples": {k: len(x) for k, x in sources.items() if x is not None},
    "classes": {
      name: zlib.crc32("\n".join(source.class_names).encode())
      for name, source in sources.items()
      if source is not None
    },
    "weights": checksum(plan.initial_params),
  }


def checksum(tree: object) -> int:
  """Of all arrays of a tree, in their order."""
  result = 0
  for leaf in jax.tree.leaves(tree):
    result = zlib.crc32(np.ascontiguousarray(leaf), result)
  return result
