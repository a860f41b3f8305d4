# SPDX-License-Identifier: Apache-2.0
"""Several hosts as one program: who they are, how they meet, agree and end.

`jax.distributed` aborts the process when a host never arrives or is lost, and
says little. So the hosts meet by themselves first, and stay in touch: what goes
wrong on one of them ends all of them, each with the same message.
"""

from mixer.hosts.cluster import ONE_HOST, Cluster, find_cluster
from mixer.hosts.hosts import Hosts, join
from mixer.hosts.leaving import leave

__all__ = ["ONE_HOST", "Cluster", "Hosts", "find_cluster", "join", "leave"]
