# SPDX-License-Identifier: Apache-2.0
"""Flags of programs that run on several hosts."""

import dataclasses
import math

from absl import flags

from mixer.errors import UserError
from mixer.hosts.cluster import ONE_HOST, Cluster, find_cluster

COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "HOST:PORT of the first of several hosts. These three are for hosts that "
  "nothing else tells who they are; TPU slices and SLURM do.",
)
HOSTS = flags.DEFINE_integer("hosts", None, "How many hosts there are.")
WAIT = flags.DEFINE_float(
  "wait", ONE_HOST.wait, "Seconds to wait for all hosts to arrive."
)
HOST = flags.DEFINE_integer("host", None, "Which one this is, from 0 on.")


def cluster() -> Cluster:
  """The hosts that the flags or the environment speak of."""
  if not 0 <= WAIT.value < math.inf:
    raise UserError(
      f"--wait={WAIT.value:g} is no time to wait: give seconds, such as "
      f"--wait={ONE_HOST.wait:g}."
    )
  found = find_cluster(
    coordinator=COORDINATOR.value, hosts=HOSTS.value, host=HOST.value
  )
  return dataclasses.replace(found, wait=WAIT.value)
