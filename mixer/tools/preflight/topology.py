# SPDX-License-Identifier: Apache-2.0
"""Names of machines: v4:4x4x4, v4-128, v5litepod-256, gpu:h200x8."""

import dataclasses
import difflib
import math
import re

from mixer.chips import CHIPS, Chip
from mixer.errors import UserError

# Slices that Google Cloud offers, in chips along each axis; of several with as
# many chips the first is what the count alone stands for. v4:16x16x16 is the
# whole Pod.
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
# In v4-32 the count is of cores, two to a chip; in v5e-32 it is of chips.
CORES = {"v2": 2, "v3": 2, "v4": 2, "v5e": 1, "v5p": 2, "v6e": 1}
# Axes of these lengths close to a ring; on v4 and v5p, where optical switches
# join cubes of 4 x 4 x 4, all axes do if all are multiples of 4.
RINGS = {"v2": {16}, "v3": {32}, "v5e": {16}, "v6e": {16}}
CUBE = 4


@dataclasses.dataclass(frozen=True)
class Topology:
  """A machine: chips of a kind, and how they are joined.

  shape: chips along each axis of the links; empty for GPUs.
  """

  name: str
  chip: Chip
  chips: int
  shape: tuple[int, ...] = ()

  @property
  def devices(self) -> int:
    """As jax counts them."""
    return self.chips * self.chip.devices

  @property
  def hosts(self) -> int:
    if self.shape == (2, 4) and self.chip.axes == 2:
      return 1  # the largest v5e and v6e machine that is one host
    return -(-self.chips // self.chip.per_host)

  @property
  def libtpu_options(self) -> dict:
    """What libtpu has to be told beside the name."""
    options = {}
    if self.chip.name == "v4":
      # Without, every chip is two devices with half the memory each.
      options["chip_config_name"] = "megacore"
    if self.hosts == 1:
      bounds = (*self.shape, 1)[:3]
      options["chips_per_host_bounds"] = bounds
    return options

  @property
  def links_used(self) -> float:
    """Share of a chip's links that an all-reduce can keep busy.

    An axis that is no ring serves as one link, because what goes around has to
    come back on it; one of a single chip serves not at all.
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
  """The machine of that name; raises UserError with names that there are."""
  if name.startswith("gpu:"):
    return _parse_gpu(name)
  found = re.fullmatch(r"(v\d\w*)[:-](\w+)", name)
  kind = found and ALIASES.get(found[1], found[1])
  if kind not in SLICES:
    raise UserError(
      f"--topology={name} is no machine that is known here: take a slice such "
      f"as v4:2x2x4 or v4-32 of {', '.join(SLICES)}, or gpu:h200x8."
    )
  chip, shapes = CHIPS[kind], SLICES[kind].split()
  shape = found[2]
  if shape.isdecimal():
    shape = next(
      (s for s in shapes if chips_of(s) * CORES[kind] == int(shape)), shape
    )
  if shape not in shapes:
    counts = {f"{found[1]}-{chips_of(s) * CORES[kind]}": s for s in shapes}
    names = [f"{kind}:{s}" for s in shapes]
    near = difflib.get_close_matches(name, [*names, *counts], n=1, cutoff=0.5)
    raise UserError(
      f"--topology={name} is no slice of {kind}"
      + (f"; did you mean {near[0]}? " if near else ". ")
      + f"There are {', '.join(names)}; by "
      f"{'TensorCores' if CORES[kind] == 2 else 'chips'} {', '.join(counts)}."
    )
  return Topology(
    f"{kind}:{shape}", chip, chips_of(shape), tuple(map(int, shape.split("x")))
  )


def chips_of(shape: str) -> int:
  return math.prod(map(int, shape.split("x")))


def _parse_gpu(name: str) -> Topology:
  kinds = [chip.name for chip in CHIPS.values() if _can_be_judged(chip)]
  found = re.fullmatch(r"gpu:(.+)x(\d+)", name)
  if not found or found[1] not in kinds or not int(found[2]):
    raise UserError(
      f"--topology={name} is no machine that is known here: GPUs are "
      f"{', '.join(f'gpu:{kind}x8' for kind in kinds)}, in any number."
    )
  chip, count = CHIPS[found[1]], int(found[2])
  if count > chip.per_host and (count % chip.per_host or not chip.network):
    raise UserError(
      f"--topology={name}: a host has {chip.per_host} GPUs, and "
      + (
        f"{count} are no whole number of hosts: take a multiple."
        if chip.network
        else "how fast hosts with these talk to each other is not known here: "
        f"take {chip.per_host} at most."
      )
    )
  return Topology(name, chip, count)


def _can_be_judged(chip: Chip) -> bool:
  return not chip.is_tpu and chip.interconnect is not None
