# SPDX-License-Identifier: Apache-2.0
"""The least time that a step can take, by a chip's published peaks."""

import dataclasses
from collections.abc import Iterable

from mixer.tools.preflight.hlo import Collective
from mixer.tools.preflight.topology import Topology

# A permute sends to one neighbour, over one of the links of a chip.
_TRIPS = {
  "all-reduce": 2,
  "reduce-scatter": 1,
  "all-gather": 1,
  "all-to-all": 1,
}


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a step.

  compute: matrix products at the peak.
  memory: bytes between chip and memory at the peak bandwidth.
  communication: all that devices send each other, at the links' peak; not
    taken to overlap with the other two, which do with each other.
  """

  compute: float
  memory: float
  communication: float

  @property
  def step(self) -> float:
    return max(self.compute, self.memory) + self.communication

  @property
  def limit(self) -> str:
    """What most of the time goes into."""
    parts = dataclasses.asdict(self)
    return max(parts, key=parts.get)


def roofline(
  topology: Topology,
  *,
  flops: float,
  bytes_moved: float,
  collectives: Iterable[Collective],
) -> Roofline:
  """Of a step that does so much per device."""
  chip = topology.chip
  return Roofline(
    compute=flops / (chip.flops / chip.devices),
    memory=bytes_moved / (chip.bandwidth / chip.devices),
    communication=sum(send_time(each, topology) for each in collectives),
  )


def send_time(collective: Collective, topology: Topology) -> float:
  """Seconds of one collective.

  Around a ring of n, each chip sends (n - 1) / n of the array, twice for an
  all-reduce. The devices of one chip sum among themselves first.
  """
  chip = topology.chip
  if topology.chips == 1:
    return 0.0
  if collective.kind == "collective-permute":
    axes = max(1, chip.axes)
    return collective.bytes / (chip.interconnect / (2 * axes))
  trips = _TRIPS[collective.kind]
  inside = min(topology.chips, chip.per_host)
  if chip.is_tpu:
    inside = topology.chips
  speed = chip.interconnect * topology.links_used
  seconds = trips * collective.bytes * (inside - 1) / inside / speed
  if topology.chips > inside:
    # Between hosts each GPU carries its share of what its host has summed.
    hosts, share = topology.hosts, collective.bytes / inside
    seconds += trips * share * (hosts - 1) / hosts / chip.network
  return seconds
