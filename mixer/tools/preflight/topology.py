# SPDX-License-Identifier: Apache-2.0
"""Machines by name: v4:4x4x4, v4-128, v5litepod-256, gpu:h200x8."""

import dataclasses
import math
import re

from mixer.chips import CHIPS, Chip
from mixer.errors import UserError, nearest

# Google Cloud's slices, in chips along each axis. A name with only a number of
# chips means the first slice of that size. v4:16x16x16 is the whole Pod.
SLICES = {
  "v2": "2x2 4x4 8x8 8x16 16x16",
  "v3": "2x2 4x4 4x8 8x8 8x16 16x16 16x32 32x32",
  "v4": (
    "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x4x12 4x8x8 4x4x16 8x8x8 8x8x12 "
    "8x8x16 8x16x16 12x16x16 16x16x16"
  ),
  "v5e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
  "v5p": (
    "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 "
    "16x16x24"
  ),
  "v6e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
}
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v5": "v5p", "v6": "v6e"}
# v4-32 counts cores, two per chip; v5e-32 counts chips.
CORES = {"v2": 2, "v3": 2, "v4": 2, "v5e": 1, "v5p": 2, "v6e": 1}
# Axes of these lengths are rings. On v4 and v5p, where optical switches connect
# cubes of 4 x 4 x 4, all axes are rings if all are multiples of 4.
RINGS = {"v2": {16}, "v3": {32}, "v5e": {16}, "v6e": {16}}
CUBE = 4


@dataclasses.dataclass(frozen=True)
class Topology:
  """A machine: its chips and their interconnect.

  shape: chips along each axis of the mesh or torus; empty for GPUs.
  """

  name: str
  chip: Chip
  chips: int
  shape: tuple[int, ...] = ()

  @property
  def devices(self) -> int:
    """Number of jax devices."""
    return self.chips * self.chip.devices

  @property
  def hosts(self) -> int:
    if self.shape == (2, 4) and self.chip.axes == 2:
      return 1  # the largest v5e and v6e slice on one host
    return -(-self.chips // self.chip.per_host)

  @property
  def libtpu_options(self) -> dict:
    """Options for libtpu besides the name."""
    options = {}
    if self.chip.name == "v4":
      # Otherwise every chip is two devices with half the memory each.
      options["chip_config_name"] = "megacore"
    if self.hosts == 1:
      options["chips_per_host_bounds"] = (*self.shape, 1)[:3]
    return options

  @property
  def links_used(self) -> float:
    """Share of a chip's links that an all-reduce can keep busy.

    An axis that is not a ring counts as one link instead of two, because data
    must return along it. An axis of one chip has no links.
    """
    if not self.shape:
      return 1.0
    links = sum(
      2 if self._is_ring(length) else min(1, length - 1)
      for length in self.shape
    )
    return links / (2 * self.chip.axes)

  def _is_ring(self, length: int) -> bool:
    if self.chip.axes == 3:
      return all(n % CUBE == 0 for n in self.shape)
    return length in RINGS[self.chip.name]


def parse(name: str) -> Topology:
  """Returns the machine of that name.

  Raises:
    UserError: the name is unknown; the message lists known ones.
  """
  if name.startswith("gpu:"):
    return _parse_gpu(name)
  match = re.fullmatch(r"(v\d\w*)[:-](\w+)", name)
  kind = match and ALIASES.get(match[1], match[1])
  if kind not in SLICES:
    raise UserError(
      f"--topology={name} is not a known machine: take a slice of "
      f"{', '.join(SLICES)}, such as v4:2x2x4 or v4-32, or gpu:h200x8."
    )
  chip, shapes = CHIPS[kind], SLICES[kind].split()
  shape = match[2]
  sizes = {s: _count_chips(s) * CORES[kind] for s in shapes}
  if shape.isdecimal():
    shape = next((s for s in shapes if sizes[s] == int(shape)), shape)
  if shape not in shapes:
    counts = list(dict.fromkeys(f"{match[1]}-{n}" for n in sizes.values()))
    names = [f"{kind}:{s}" for s in shapes]
    near = nearest(name, [*names, *counts])
    raise UserError(
      f"--topology={name} is not a slice of {kind}"
      + (f"; did you mean {near[0]}? " if near else ". ")
      + f"There are {', '.join(names)}; by "
      f"{'TensorCores' if CORES[kind] == 2 else 'chips'} {', '.join(counts)}."
    )
  return Topology(
    f"{kind}:{shape}",
    chip,
    _count_chips(shape),
    tuple(map(int, shape.split("x"))),
  )


def _count_chips(shape: str) -> int:
  return math.prod(map(int, shape.split("x")))


def _parse_gpu(name: str) -> Topology:
  kinds = [
    chip.name
    for chip in CHIPS.values()
    if not chip.is_tpu and chip.interconnect is not None
  ]
  match = re.fullmatch(r"gpu:(.+)x(\d+)", name)
  if not match or match[1] not in kinds or not int(match[2]):
    raise UserError(
      f"--topology={name} is not a known machine: GPUs are "
      f"{', '.join(f'gpu:{kind}x8' for kind in kinds)}, in any number."
    )
  chip, count = CHIPS[match[1]], int(match[2])
  if count > chip.per_host and (count % chip.per_host or not chip.network):
    raise UserError(
      f"--topology={name}: a host has {chip.per_host} GPUs, and "
      + (
        f"{count} are no whole number of hosts: take a multiple."
        if chip.network
        else "the bandwidth between hosts with these is not known here: take "
        f"{chip.per_host} at most."
      )
    )
  return Topology(name, chip, count)
